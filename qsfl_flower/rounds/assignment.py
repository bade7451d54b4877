"""What the clients of a round were told, and what their answers are read against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from qsfl_flower.errors import QSFLError
from qsfl_flower.rounds.admission import Asked
from qsfl_flower.rounds.aggregate import GlobalModel
from qsfl_flower.rounds.context import Exchange, RoundContext, State
from qsfl_flower.rounds.update import Rejection, Sender

States = Mapping[str, State]
Answers = dict[int, tuple[Sender, RecordDict] | Rejection]
Inquire = Callable[[Mapping[int, RecordDict], States], tuple[Answers, States]]
"""Asks nodes something inside a round: their answers, and the next states."""


def _nobody(contents: Mapping[int, RecordDict], states: States) -> tuple[Answers, States]:
    del states
    raise QSFLError(f"there is no grid to ask {len(contents)} nodes on")


class Inquiry:
    """What a stage asks with while it prepares or combines; keeps the states that follow.

    Parameters
    ----------
    ask : Inquire
        Asks.
    states : Mapping[str, State]
        The states before the first question.
    """

    def __init__(self, ask: Inquire, states: States) -> None:
        self._ask, self.states = ask, states

    def __call__(self, contents: Mapping[int, RecordDict]) -> Answers:
        """Ask; see `RoundContext.ask`."""
        answers, self.states = self._ask(contents, self.states)
        return answers


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
    ask : Inquire
        Asks the clients of the round something more.
    """

    exchange: Exchange
    content: RecordDict
    model: GlobalModel
    context: RoundContext
    ask: Inquire = _nobody


@dataclass(frozen=True)
class Opened:
    """A round between its instructions and what is made of the answers.

    Parameters
    ----------
    assignment : Assignment
        What the clients are told.
    messages : Sequence[Message]
        What was sent.
    enough : int
        Answers without error that end the exchange, >= 1.
    spans : Mapping[int, tuple[float, float]]
        When a rank was asked and when it answered, in seconds of the clock.
    cut : bool
        Whether the exchange ended because enough had answered.
    withheld : Sequence[Rejection]
        The nodes that were sampled but not asked, and why.
    """

    assignment: Assignment
    messages: Sequence[Message]
    enough: int
    spans: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    cut: bool = False
    withheld: Sequence[Rejection] = ()

    def asked(self, ranks: Mapping[int, int]) -> Asked:
        """Return who was asked, given the canonical order of all nodes."""
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self.messages}
        return Asked(nodes, ranks, self.spans, self.cut)
