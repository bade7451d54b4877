"""What a strategy does about divergence."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from qsfl_flower.numerics import Layout, Reaction
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.rounds.stages import VectorStage
from qsfl_flower.wire import from_record, to_record

_GOOD = "good/"
_HISTORY = (Phase.UPDATE, Phase.RELEASE)
"""Phases whose states come from past steps."""


class Guard(VectorStage):
    """Remembers the best model so far, and scales the step of the global model.

    Added by a strategy whose `Monitor` has reactions; `respond` changes its state.
    """

    name = "guard"
    phase = Phase.GUARD

    def init(self, layout: Layout) -> State:
        """Start with full steps."""
        del layout
        return {"rate": 1.0, "tightened": 0, "valid_from": 0, "loss": None, "round": 0}

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Scale the step."""
        del context
        measured = {"rate": state["rate"], "tightened": state["tightened"]}
        return vector if state["rate"] == 1.0 else state["rate"] * vector, state, measured


def remember(state: State, arrays: ArrayRecord, server_round: int, loss: float | None) -> State:
    """Return the guard's state with this model if it is the best so far.

    Without a loss, every model that raised no alarm counts as better than those before it.
    """
    best = state["loss"]
    if loss is not None and best is not None and loss > best:
        return state
    kept = {key: value for key, value in state.items() if not key.startswith(_GOOD)}
    model = {_GOOD + name: array for name, array in from_record(arrays).items()}
    return {**kept, **model, "loss": loss, "round": server_round}


def respond(
    engine: Engine, reaction: Reaction, arrays: ArrayRecord, server_round: int
) -> tuple[ArrayRecord, str]:
    """Carry out a reaction.

    Parameters
    ----------
    engine : Engine
        Whose states change.
    reaction : Reaction
        What to do.
    arrays : ArrayRecord
        The model after the round.
    server_round : int
        The round.

    Returns
    -------
    tuple[ArrayRecord, str]
        The model to go on with, and a sentence that says what was done.
    """
    state: dict[str, Any] = dict(engine.states[Guard.name])
    if reaction is Reaction.LOWER_RATE:
        state["rate"] *= 0.5
        told = f"the server's step is scaled by {state['rate']:g} from now on"
    elif reaction is Reaction.TIGHTEN_STALENESS:
        state["tightened"] += 1
        told = f"max_staleness is divided by {2 ** state['tightened']} from now on"
    else:
        best = {k.removeprefix(_GOOD): v for k, v in state.items() if k.startswith(_GOOD)}
        if best:
            arrays = to_record({name: best[name] for name in from_record(arrays)})
        told = f"the model is that of round {state['round']} again"
        if reaction is Reaction.HALT:
            told = f"the run ends; {told}"
        # What led to the bad model does not count any more: tasks under way, and momentum.
        state["valid_from"] = server_round
        layout = engine.layout_of(from_record(arrays))
        fresh = {s.name: s.init(layout) for s in engine.chain.stages if s.phase in _HISTORY}
        engine.states = {**engine.states, **fresh}
    engine.states = {**engine.states, Guard.name: state}
    return arrays, told
