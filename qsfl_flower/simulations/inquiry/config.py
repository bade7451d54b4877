"""Files of questions: options, reading with clear errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from qsfl_flower import plugins
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.analytics.options import KINDS, Question
from qsfl_flower.mechanisms.analytics.server import Guarantee, Inquiry
from qsfl_flower.mechanisms.secure_sum.options import Committee
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.ledger import Ledger
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.simulations.config import document
from qsfl_flower.simulations.config.files import Unreadable, display, find_file, read
from qsfl_flower.simulations.config.merge import apply_overrides
from qsfl_flower.simulations.config.shape import closest
from qsfl_flower.simulations.config.tree import (
    Node,
    Place,
    Problem,
    config_error,
    shown,
    to_plain,
)
from qsfl_flower.simulations.inquiry.tables import BUILT_IN

Made = TypeVar("Made", bound=Options)

_SHARE = 0.8
"""Clients that a sum needs, as a share of all, unless the file says so."""


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions(Options):
    """How the rows are protected."""

    epsilon: float = option(
        "Largest loss of privacy of all answers together (epsilon).", gt=0, le=1000
    )
    delta: float = option("Probability with which it may be exceeded (delta).", 1e-6, gt=0, lt=1)
    unit: Literal["record", "client"] = option(
        "What is protected: one row, or a client with all its rows.", "record"
    )
    most_rows: int = option(
        "A client with more rows counts as if it had about so many.", 1000, ge=1, le=10**9
    )
    non_contributors: int = option(
        "Clients of a sum that may leave out their noise; the others add more for them.", 0, ge=0
    )
    ledger: str | None = option(
        "File of budgets, asked before every round and charged after it; null: none.", None
    )
    account: str = option("The ledger's account that holds the clients' accounts.", "federation")


@dataclass(frozen=True, kw_only=True)
class SumOptions(Options):
    """How the sums are hidden."""

    kind: Literal["committee", "masks"] = option(
        "A committee of clients opens the sum, or masks cancel in it.", "committee"
    )
    min_clients: int | None = option(
        "Fewest clients in a sum; the noise is sized for them. null: four fifths of the clients.",
        None,
        ge=2,
    )
    members: int = option("Committee members.", 5, ge=2, le=16)
    threshold: int = option("So many members open a sum.", 3, ge=2, le=16)


@dataclass(frozen=True, kw_only=True)
class InquiryOptions(Options):
    """A file of questions."""

    name: str = option("Name of the run.", "analytics")
    tables: tuple[str, ...] = option(
        "A file for each client (.csv, .parquet, .npz); or one file, or the name of a data set of "
        f"scikit-learn ({', '.join(BUILT_IN)}), whose rows are dealt to the clients in turn."
    )
    clients: int | None = option("Number of clients; null: one for each table.", None, ge=2)
    questions: tuple[Question, ...] = option("What is asked; each has a kind.")
    privacy: PrivacyOptions = option("See below.")
    sum: SumOptions = option("See below.", SumOptions())
    level: float = option(
        "Probability with which each interval holds the number without noise.", 0.95, gt=0, lt=1
    )
    expected_rows: int | None = option(
        "Rows of all clients, about: for the errors that `qsfl explain` tells; null: not told.",
        None,
        ge=1,
    )
    output: str = option("Folder that holds the runs.", "runs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tables:
            raise ConfigError("tables: there must be at least one")
        if len(self.tables) > 1 and self.clients not in (None, len(self.tables)):
            raise ConfigError(
                f"clients: is {self.clients}, there are {len(self.tables)} tables; leave it out, "
                "or name one table whose rows are dealt to the clients"
            )
        if len(self.tables) == 1 and self.clients is None:
            raise ConfigError("clients: needed with one table, whose rows are dealt to them")
        if self.count < 2:
            raise ConfigError("tables: there must be at least 2 clients")
        if self.fewest > self.count:
            raise ConfigError(f"sum.min_clients: is {self.fewest}, there are {self.count} clients")
        if self.committee is not None and self.committee.members > self.count:
            raise ConfigError(
                f"sum.members: is {self.committee.members}, there are {self.count} clients; take a "
                "smaller committee (sum: {members: 3, threshold: 2}), or masks (sum: {kind: masks})"
            )

    @property
    def count(self) -> int:
        """Return the number of clients."""
        return self.clients or len(self.tables)

    @property
    def fewest(self) -> int:
        """Return the fewest clients in a sum."""
        return self.sum.min_clients or max(2, min(self.count, math.ceil(_SHARE * self.count)))

    @property
    def committee(self) -> Committee | None:
        """Return the sizes of the committee; None under masks."""
        told = self.sum
        if told.kind == "masks":
            return None
        return Committee(told.members, told.threshold, min_clients=self.fewest)

    @cached_property
    def inquiry(self) -> Inquiry:
        """Return the questions with their guarantee."""
        told = self.privacy
        accounts = {str(n): f"{told.account}/{n}" for n in range(self.count)}
        ledger = None if told.ledger is None else Ledger(Path(told.ledger).expanduser())
        budget = PrivacyBudget(
            delta=told.delta, epsilon=told.epsilon, ledger=ledger, accounts=accounts
        )
        guarantee = Guarantee(
            budget,
            told.unit,
            told.most_rows,
            self.count,
            self.fewest,
            told.non_contributors,
            self.sum.kind == "masks",
        )
        return Inquiry(self.questions, guarantee, self.level)


def load_inquiry(name: str, overrides: Sequence[str] = ()) -> InquiryOptions:
    """Read a file of questions.

    Raises
    ------
    ConfigError
        With a line for each mistake: file and line, key, what was found, what is allowed.
    """
    tree = apply_overrides(_tree(name), overrides)
    problems: list[Problem] = []
    made = _read(InquiryOptions, tree, "", problems)
    if problems or made is None:
        raise config_error(problems)
    try:
        made.inquiry.noise_multiplier  # noqa: B018  # what cannot be asked is said before any work
    except ConfigError as error:
        raise config_error([Problem(tree.place, str(error))]) from None
    return made


def asks_questions(name: str) -> bool:
    """Return whether a configuration is a file of questions."""
    try:
        tree = _tree(name)
    except ConfigError:
        return False
    return isinstance(tree.value, dict) and "questions" in tree.value


def _tree(name: str) -> Node:
    place = Place(display(Path(name)))
    try:
        path = find_file(name, Path())
        place = Place(display(path), 1)
        tree = document.parse(read(path), place)
    except Unreadable as error:
        raise config_error([Problem(place, str(error))]) from None
    if tree is None:
        raise config_error([Problem(place, "the file is empty")])
    return tree


def _read(kind: type[Made], node: Node, path: str, problems: list[Problem]) -> Made | None:
    """Return options, or None and at least one problem."""
    known = {one.name: one for one in dataclasses.fields(kind)}
    known = {k: v for k, v in known.items() if "x-hidden" not in v.metadata["about"].schema}
    if not isinstance(node.value, dict):
        keys = ", ".join(known)
        text = f"must be a section with keys ({keys}), got {shown(to_plain(node))}"
        problems.append(Problem(node.place, f"{path}{': ' * bool(path)}{text}"))
        return None
    before, hints, values = len(problems), get_type_hints(kind), {}
    for key, below in node.value.items():
        where = f"{path}.{key}".lstrip(".")
        if key not in known:
            meant = closest(key, known)
            hint = f"did you mean '{meant}'?" if meant else f"allowed are {', '.join(known)}"
            problems.append(Problem(below.place, f"{where}: unknown key; {hint}"))
            continue
        values[key] = _value(hints[key], known[key], below, where, problems)
    for key, one in known.items():
        if key not in values and one.default is dataclasses.MISSING:
            allowed = plugins.allowed(hints[key], one.metadata["about"].limits)
            text = f"{path}.{key}".lstrip(".") + f": needed; {allowed}"
            problems.append(Problem(node.place, text))
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ConfigError as error:
        problems.append(Problem(node.place, f"{path}{': ' * bool(path)}{error}"))
        return None


def _value(
    hint: Any, one: dataclasses.Field[Any], node: Node, path: str, problems: list[Problem]
) -> Any:
    """Return the value of one key, checked."""
    if plugins.is_options(hint):
        return _read(hint, node, path, problems)
    if one.name == "questions":
        return _questions(node, path, problems)
    value = to_plain(node)
    if one.name == "tables" and isinstance(value, str):
        value = [value]
    value = tuple(value) if isinstance(value, list) else value
    limits = one.metadata["about"].limits
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = plugins.fits(value, hint) and all(
        not number or plugins.LIMITS[name][0](value, bound) for name, bound in limits.items()
    )
    if not good:
        text = f"{path}: must be {plugins.allowed(hint, limits)}, got {shown(to_plain(node))}"
        problems.append(Problem(node.place, text))
    return value


def _questions(node: Node, path: str, problems: list[Problem]) -> tuple[Question, ...]:
    if not isinstance(node.value, list) or not node.value:
        text = f"{path}: must be a list of questions, got {shown(to_plain(node))}"
        problems.append(Problem(node.place, text))
        return ()
    found: list[Question] = []
    for index, one in enumerate(node.value):
        where = f"{path}.{index}"
        entries = dict(one.value) if isinstance(one.value, dict) else {}
        kind = to_plain(entries.pop("kind")) if "kind" in entries else None
        if not isinstance(kind, str) or kind not in KINDS:
            text = f"{where}.kind: must be one of {', '.join(KINDS)}, got {shown(kind)}"
            problems.append(Problem(one.place, text))
            continue
        made = _read(KINDS[kind], Node(entries, one.place), where, problems)
        if made is not None:
            found.append(made)
    return tuple(found)


def reference() -> str:
    """Return the tables of the documentation: every key, what is allowed, default, meaning."""
    sections: Mapping[str, type[Options]] = {
        "Top level": InquiryOptions,
        "`privacy`": PrivacyOptions,
        "`sum`": SumOptions,
        **{f"`questions`, kind `{kind}`": made for kind, made in KINDS.items()},
    }
    blocks = []
    for title, kind in sections.items():
        hints = get_type_hints(kind)
        rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
        for one in dataclasses.fields(kind):
            about = one.metadata["about"]
            if "x-hidden" in about.schema:
                continue
            section = plugins.is_options(hints[one.name]) or one.name == "questions"
            allowed = plugins.allowed(hints[one.name], about.limits)
            value = "required" if one.default is dataclasses.MISSING else f"`{shown(one.default)}`"
            if one.name == "sum":
                value = "see below"
            allowed = "a section, see below" if section else allowed
            rows.append(f"| `{one.name}` | {allowed} | {value} | {about.text} |")
        blocks += [f"### {title}", (kind.__doc__ or "").partition("\n")[0], "\n".join(rows)]
    return "\n\n".join(blocks) + "\n"
