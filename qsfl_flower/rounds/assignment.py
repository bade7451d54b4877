"""What the clients of a round were told, and what their answers are read against."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from qsfl_flower.rounds.aggregate import GlobalModel
from qsfl_flower.rounds.context import Exchange, RoundContext


@dataclass(frozen=True)
class Assignment:
    """The same for all clients of a round, whenever they are asked and whenever they answer.

    Parameters
    ----------
    exchange : Exchange
        The exchange that it belongs to.
    content : RecordDict
        What each client is sent, before stages on whole messages add to it. Not to be changed:
        Flower's simulation passes records by reference.
    model : GlobalModel
        The model that the clients start from.
    context : RoundContext
        What the stages may know.
    """

    exchange: Exchange
    content: RecordDict
    model: GlobalModel
    context: RoundContext
