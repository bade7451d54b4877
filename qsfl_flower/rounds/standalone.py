"""Replies without a round: what users' unit tests hand to a strategy that has asked nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.admission import Asked, outcome_of
from qsfl_flower.rounds.aggregate import GlobalModel
from qsfl_flower.rounds.assignment import Assignment
from qsfl_flower.rounds.context import Exchange, RoundContext
from qsfl_flower.rounds.update import Rejection, Sender, Weighting, catch
from qsfl_flower.wire import from_record

Entries = list[tuple[Sender, RecordDict | Rejection]]


def replies_alone(replies: Iterable[Message]) -> Entries:
    """Take every reply for that of another client, in the order given."""
    messages = list(replies)
    asked = Asked({str(i): i for i in range(len(messages))}, {i: i for i in range(len(messages))})
    entries: Entries = []
    for i, message in enumerate(messages):
        found = catch(asked.sender(i), partial(outcome_of, asked, i, message))
        entries.append((found.sender, found) if isinstance(found, Rejection) else found)
    return entries


def assignment_alone(
    entries: Entries,
    server_round: int,
    key: str,
    weighting: Weighting,
    layout_of: Callable[[Mapping[str, NDArray[Any]]], Layout],
) -> Assignment:
    """Return the round that replies could belong to: it began with zeros.

    The mean, and every rule that follows when all updates move, give the same model whatever the
    round began with.

    Raises
    ------
    ConfigError
        If no reply holds a model.
    """
    for _, content in entries:
        if isinstance(content, RecordDict) and content.array_records:
            first = content.array_records.get(key) or next(iter(content.array_records.values()))
            break
    else:
        raise ConfigError("aggregate_train: no reply holds a model; call configure_train first")
    own = {
        name: np.zeros_like(array) if array.dtype.kind == "f" else array
        for name, array in from_record(first).items()
    }
    model = GlobalModel.of(own, layout_of(own))
    exchange = Exchange("train", server_round, 0, 0.0)
    content = RecordDict({key: ArrayRecord()})
    return Assignment(
        exchange,
        content,
        model,
        RoundContext(server_round, model.layout, model.vector, weighting=weighting),
    )


def refuse_alone(hook: str, needing: Sequence[str], client_api: str, asks: str) -> None:
    """Refuse to work without a round where stages or the clients' replies need one.

    Raises
    ------
    ConfigError
        With their names and what to do.
    """
    parts = [f"the stage {name!r}" for name in needing]
    if client_api == "legacy":
        parts.append("client_api='legacy'")
    if parts:
        raise ConfigError(
            f"{hook}: no client was asked, and {', '.join(parts)} must know what the round began "
            f"with; call {asks} first, or test whole rounds with qsfl_flower.testing.LocalGrid"
        )
