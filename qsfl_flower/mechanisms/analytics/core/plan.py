r"""Which question is asked in which round, with how much of the privacy budget.

What a client sends in a round is one vector: the statistics of all questions one after the other,
statistic j times :math:`w_j / \Delta_j`, with :math:`\Delta_j` its sensitivity and
:math:`\sum_j w_j^2 = 1`. A row then adds a vector of norm at most 1, and one Gaussian mechanism
with noise multiplier z covers all of them: question j alone is :math:`\mu`-Gaussian with
:math:`\mu = w_j / z`, and together they cost no more than the mechanism.

References
----------
J. Dong, A. Roth, W. J. Su, "Gaussian differential privacy", 2022. arXiv:1905.02383.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.analytics.core.statistics import (
    Columns,
    Floats,
    Noisy,
    Rows,
    Statistic,
    WordsOf,
    statistic_of,
)
from qsfl_flower.mechanisms.analytics.options import HeavyHitters, Question, question_of
from qsfl_flower.privacy.gaussian import gaussian_epsilon

ROWS = 0.25
"""Weight of the number of rows, which every mean and every quantile is measured against."""

MOST = 4_000_000
"""Most numbers in a round, so that no instruction makes a device build a larger vector."""

_TEXTS = 1000
_NAMES = 256


@dataclass(frozen=True)
class Part:
    """What is asked of one question in one round.

    Parameters
    ----------
    question : int
        Which question; -1 is the number of rows.
    share : float
        :math:`w_j^2`, in (0, 1]: its part of the round's budget.
    """

    question: int
    share: float


def needed_columns(questions: Sequence[Question]) -> dict[str, type]:
    """Return the columns that are read, and whether they hold numbers or texts.

    Raises
    ------
    ConfigError
        If a column is read as both.
    """
    needs: dict[str, type] = {}
    for question in questions:
        for column, kind in question.needs.items():
            if needs.setdefault(column, kind) is not kind:
                raise ConfigError(
                    f"column {column!r} is asked for numbers and for texts; ask for one"
                )
    return needs


@dataclass(frozen=True)
class Ask:
    """The questions of one round, as they travel to the clients.

    Parameters
    ----------
    questions : tuple of Question
        All questions.
    parts : tuple of Part
        What is asked of them now.
    beginnings : Mapping[int, tuple of str]
        For heavy hitters: what is followed.
    """

    questions: tuple[Question, ...]
    parts: tuple[Part, ...]
    beginnings: Mapping[int, tuple[str, ...]]

    def __post_init__(self) -> None:
        shares = [part.share for part in self.parts]
        if not (self.parts and all(s > 0 for s in shares) and sum(shares) <= 1 + 1e-9):
            raise ConfigError(
                f"the questions of a round take {sum(shares):.6g} of its budget; allowed are "
                "shares > 0 whose sum is at most 1"
            )
        if self.size > MOST:
            raise ConfigError(f"the questions of a round need {self.size} numbers, at most {MOST}")

    @cached_property
    def statistics(self) -> list[Statistic]:
        """Return the statistic of each part."""
        return [
            Rows()
            if part.question < 0
            else statistic_of(
                self.questions[part.question], self.beginnings.get(part.question, ("",))
            )
            for part in self.parts
        ]

    @property
    def size(self) -> int:
        """Return the length of the vector."""
        return sum(one.size for one in self.statistics)

    def vector(self, columns: Columns, most_rows: float) -> Floats:
        """Return what a client sends: at most of norm `most_rows`.

        Parameters
        ----------
        columns : Mapping[str, ndarray]
            Its table, of one length.
        most_rows : float
            A client with more rows counts as if it had about so many of the same kind. Scaling down
            to a ball brings no two vectors further apart, so one row still moves it by at most 1.
        """
        found = np.concatenate(
            [
                math.sqrt(part.share) / one.sensitivity * one.sum(columns)
                for part, one in zip(self.parts, self.statistics, strict=True)
            ]
        )
        norm = float(np.linalg.norm(found))
        return found if norm <= most_rows else found * (most_rows / norm)

    def read(self, total: Floats, std: float) -> dict[int, Noisy]:
        """Return the sum of each question from the noisy sum of all vectors.

        Parameters
        ----------
        total : ndarray, shape (size,)
            The sum over the clients.
        std : float
            Standard deviation of its noise.
        """
        found, at = {}, 0
        for part, one in zip(self.parts, self.statistics, strict=True):
            factor = one.sensitivity / math.sqrt(part.share)
            found[part.question] = Noisy(total[at : at + one.size] * factor, std * factor)
            at += one.size
        return found

    def encode(self) -> str:
        """Return the text that an instruction carries."""
        values = {
            "questions": [question.to_dict() for question in self.questions],
            "parts": [[part.question, part.share] for part in self.parts],
            "beginnings": {str(i): list(texts) for i, texts in self.beginnings.items()},
        }
        return json.dumps(values)

    @classmethod
    def decode(cls, text: object) -> Ask:
        """Read what `encode` returned, strictly.

        Raises
        ------
        ConfigError
            If it is something else.
        """
        try:
            values = json.loads(text if isinstance(text, str) else "")
            questions = tuple(question_of(one) for one in values["questions"])
            parts = tuple(Part(*_pair(one)) for one in values["parts"])
            beginnings = {int(i): _texts(one) for i, one in values["beginnings"].items()}
            places = [part.question for part in parts]
            if len(set(places)) != len(places) or not set(places) <= set(range(-1, len(questions))):
                raise ConfigError(f"the parts name the questions {places}")
            return cls(questions, parts, beginnings)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"the questions cannot be read: {error}") from None


@dataclass(frozen=True)
class Plan:
    """All rounds of an inquiry.

    Parameters
    ----------
    questions : tuple of Question
        What is asked.
    """

    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        titles = [question.title for question in self.questions]
        if not titles or len(set(titles)) != len(titles):
            raise ConfigError(
                f"the answers would be called {', '.join(titles) or 'nothing'}; there must be at "
                "least one question, and each needs a name of its own (name)"
            )
        needed_columns(self.questions)
        if self.size > MOST:
            raise ConfigError(
                f"a round needs {self.size:,} numbers, at most {MOST:,}; take fewer bins, a "
                "smaller depth, fewer letters or fewer beginnings (most)"
            )

    @property
    def _words(self) -> dict[int, int]:
        """Return how many rounds each question about frequent texts needs."""
        return {
            i: q.max_length for i, q in enumerate(self.questions) if isinstance(q, HeavyHitters)
        }

    @property
    def rounds(self) -> int:
        """Return how many rounds there are, at most."""
        return max(self._words.values(), default=1)

    @property
    def size(self) -> int:
        """Return how many numbers a round has, at most."""

        def of(part: Part, first: bool) -> int:
            question = self.questions[part.question]
            if isinstance(question, HeavyHitters):
                return (1 if first else question.most) * (len(question.letters) + 1)
            return 1 if part.question < 0 else statistic_of(question).size

        return max(sum(of(p, r == 0) for p in parts) for r, parts in enumerate(self.parts))

    @cached_property
    def parts(self) -> tuple[tuple[Part, ...], ...]:
        """Return what is asked in each round.

        Frequent texts take their share in each of their rounds; what remains goes to the other
        questions one after the other, so that one of them may be asked in two rounds, which are
        averaged.
        """
        weights = {-1: ROWS} | {i: q.weight for i, q in enumerate(self.questions)}
        whole, words = sum(weights.values()), self._words
        rounds = [
            [Part(i, weights[i] / whole) for i, length in words.items() if r < length]
            for r in range(self.rounds)
        ]
        room = [1 - sum(part.share for part in parts) for parts in rounds]
        others = {i: weight for i, weight in weights.items() if i not in words}
        each, at = sum(room) / sum(others.values()), 0
        for i, weight in others.items():
            wanted = weight * each
            while wanted > 1e-9 and at < len(rounds):
                taken = min(wanted, room[at])
                if taken > 1e-9:
                    rounds[at].append(Part(i, taken))
                wanted, room[at] = wanted - taken, room[at] - taken
                at += room[at] <= 1e-9
        return tuple(tuple(sorted(parts, key=lambda part: part.question)) for parts in rounds)

    def ask(self, server_round: int, beginnings: Mapping[int, tuple[str, ...]]) -> Ask:
        """Return the questions of a round, without texts of which no beginning is followed."""
        parts = [
            part
            for part in self.parts[server_round - 1]
            if part.question not in self._words or beginnings.get(part.question)
        ]
        names = sorted({part.question for part in parts if part.question >= 0})
        places = {-1: -1} | {name: place for place, name in enumerate(names)}
        return Ask(
            tuple(self.questions[i] for i in names),
            tuple(Part(places[part.question], part.share) for part in parts),
            {places[i]: texts for i, texts in beginnings.items() if i in names},
        )

    def epsilons(self, noise_multiplier: float, delta: float) -> dict[int, float]:
        """Return what each question would cost alone, -1 for the number of rows."""
        squares: dict[int, float] = {}
        for part in (part for parts in self.parts for part in parts):
            squares[part.question] = squares.get(part.question, 0.0) + part.share
        return {
            i: gaussian_epsilon(math.sqrt(square) / noise_multiplier, delta)
            for i, square in squares.items()
        }


class Answers:
    """What the rounds of a plan have told so far.

    Parameters
    ----------
    plan : Plan
        The rounds.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.beginnings: dict[int, tuple[str, ...]] = dict.fromkeys(plan._words, ("",))
        self._sums: dict[int, list[Noisy]] = {}
        self._words: dict[int, list[tuple[WordsOf, Noisy]]] = {}

    def ask(self, server_round: int) -> Ask | None:
        """Return what the round asks; None if nothing is left to ask."""
        asked = {part.question for part in self.plan.parts[server_round - 1]} - {-1}
        if not any(self.beginnings.get(i, ("",)) for i in asked):
            return None
        return self.plan.ask(server_round, self.beginnings)

    def take(self, server_round: int, total: Floats, std: float) -> None:
        """Take the noisy sum of a round."""
        ask = self.plan.ask(server_round, self.beginnings)
        asked = [self.plan.questions.index(q) for q in ask.questions]
        statistics = {p.question: s for p, s in zip(ask.parts, ask.statistics, strict=True)}
        for place, found in ask.read(total, std).items():
            i = -1 if place < 0 else asked[place]
            one = statistics[place]
            if isinstance(one, WordsOf):
                self._words.setdefault(i, []).append((one, found))
                self.beginnings[i] = one.next(found)
            else:
                self._sums.setdefault(i, []).append(found)

    def results(self, level: float) -> list[dict[str, Any]]:
        """Return all answers with intervals of this level, the number of rows first."""
        rows = Noisy.mean(self._sums[-1])
        told = [{"name": "rows", "kind": "rows", **Rows().answer(rows, rows, level)}]
        for i, question in enumerate(self.plan.questions):
            if i in self._words:
                found = [one.answer(noisy, rows, level)["words"] for one, noisy in self._words[i]]
                words = sorted((w for part in found for w in part), key=lambda w: -w["value"])
                answer: dict[str, Any] = {"words": words}
            else:
                noisy = Noisy.mean(self._sums[i])
                answer = statistic_of(question).answer(noisy, rows, level)
            told.append({"name": question.title, "kind": question.kind, **answer})
        return told


def _pair(value: Any) -> tuple[int, float]:
    place, share = value
    if type(place) is not int or type(share) not in (int, float):
        raise ConfigError(f"a part is {value!r:.60}; it must be a place and a share")
    return place, float(share)


def _texts(values: Any) -> tuple[str, ...]:
    good = isinstance(values, list) and 0 < len(values) <= 10 * _TEXTS
    if not good or not all(isinstance(v, str) and len(v) <= _NAMES for v in values):
        raise ConfigError(f"beginnings are {values!r:.60}; they must be a list of texts")
    if len({len(v) for v in values}) > 1 or len(set(values)) < len(values):
        raise ConfigError("beginnings must be different texts of one length")
    return tuple(values)
