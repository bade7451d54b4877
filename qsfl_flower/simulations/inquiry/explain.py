"""What questions open, to whom, and how exact the answers will be, before anybody is asked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from qsfl_flower.mechanisms.analytics.core.plan import Plan
from qsfl_flower.mechanisms.analytics.core.statistics import statistic_of
from qsfl_flower.mechanisms.analytics.options import HeavyHitters
from qsfl_flower.simulations.inquiry.config import InquiryOptions
from qsfl_flower.simulations.report.text import count, size


def explain_inquiry(asked: InquiryOptions) -> str:
    """Return the explanation as text."""
    inquiry, told = asked.inquiry, asked.privacy
    plan, noise = inquiry.plan, inquiry.noise_multiplier
    unit = "one row" if told.unit == "record" else "a client with all its rows"
    hidden = (
        f"a committee of {asked.sum.members} clients, of whom {asked.sum.threshold} open a sum"
        if asked.sum.kind == "committee"
        else "masks of the clients for each other"
    )
    honest = asked.fewest - told.non_contributors
    lines = [
        f"{asked.name}: {count(len(asked.questions), 'question')} to {asked.count} clients, "
        f"{count(plan.rounds, 'round')}",
        "",
        "Who sees what",
        *_bullets(
            [
                f"the server and the analyst: in each round one noisy sum over at least "
                f"{asked.fewest} clients, and who took part",
                f"the other clients: nothing of a table; the sums are hidden by {hidden}",
            ]
        ),
        "",
        "Privacy",
        *_bullets(
            [
                f"({told.epsilon:g}, {told.delta:g})-differential privacy for {unit}, all answers "
                f"together, against everybody but its own client; noise multiplier {noise:.3g}, "
                f"as long as {honest} of the clients in a sum add their noise",
                f"a client with more than {told.most_rows:,} rows counts as if it had about so "
                "many; numbers outside of low and high count as the bound",
                "a client can change the answers as its rows could; a sum longer than the bounds "
                "of all clients allow is not answered",
            ]
        ),
        "",
        f"Questions (epsilon of each alone; error: half the interval of {asked.level:.0%})",
        *_bullets(_questions(asked, plan, noise)),
        "",
        "Costs",
        *_bullets(
            [
                f"up: about {size(_bytes(asked, plan))} for each client and round, at most "
                f"{plan.size:,} numbers"
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _questions(asked: InquiryOptions, plan: Plan, noise: float) -> Iterator[str]:
    inquiry, rows = asked.inquiry, asked.expected_rows
    epsilons = plan.epsilons(noise, asked.privacy.delta)
    std = inquiry.std(asked.count)
    shares: dict[int, float] = {}
    for part in (part for parts in plan.parts for part in parts):
        words = part.question >= 0 and isinstance(plan.questions[part.question], HeavyHitters)
        shares[part.question] = part.share if words else shares.get(part.question, 0) + part.share
    rows_std = std / shares[-1] ** 0.5
    yield f"number of rows: epsilon {epsilons[-1]:.3g}"
    for i, question in enumerate(plan.questions):
        one = statistic_of(question)
        noise_std = std * one.sensitivity / shares[i] ** 0.5
        sentence = f"{question.title}: epsilon {epsilons[i]:.3g}, noise of {noise_std:.3g}"
        if rows is None:
            yield f"{sentence} on each sum; give expected_rows to be told the error"
            continue
        error, what = one.error(noise_std, rows, rows_std, asked.level)
        yield f"{sentence} on each sum; about {error:.3g} {what} at {rows:,} rows"


def _bytes(asked: InquiryOptions, plan: Plan) -> int:
    m, t = asked.sum.members, asked.sum.threshold
    vectors = m - t + 1 if asked.sum.kind == "committee" else 0.5
    return int(8 * vectors * plan.size + 1300 * m)


def _bullets(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        yield textwrap.fill(sentence, 100, initial_indent="  - ", subsequent_indent="    ")
