"""Fewer bytes downwards: clients that hold an earlier model get the steps since then."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.mechanisms.broadcast.options import BroadcastOptions
from qsfl_flower.mechanisms.compression.core import Memory, Scheme
from qsfl_flower.mechanisms.compression.core.released import Released, model_digest
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.context import Exchange, Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.stages import VectorStage
from qsfl_flower.wire import (
    BASE_KEY,
    BROADCAST_KEY,
    RELEASED_KEY,
    ROLES_KEY,
    config_of,
    content_bytes,
    from_record,
    records_of,
    to_record,
    with_keys,
)


class Broadcast(BroadcastOptions, VectorStage):
    """Release the global step compressed, and send clients what they miss instead of the model.

    The global model itself moves by what the record says, so that server and clients have the same
    model bit by bit; what the record leaves out is kept by the server and added to its next step
    (error feedback). Both ends name models by digests. A client that cannot get from what it holds
    to the model of the round fails that round, and is sent the whole model the next time. It keeps
    one copy of the model in its Flower client state.

    Parameters
    ----------
    ratio : float
        Share of the coordinates that a step changes, 0 < ratio <= 1.
    values : str
        Format of their values (not ``qsgd``), see
        `qsfl_flower.mechanisms.compression.core.FORMATS`.
    zstd : bool
        Try zstandard on the records.

    Notes
    -----
    Who sees what: every client sees the released models, as without this stage.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation(size=10_000).run([Broadcast(ratio=0.01)], rounds=3)
    >>> full, short = outcome.rounds[1].bytes_down, outcome.rounds[3].bytes_down
    >>> short < full / 5
    True
    """

    name = "broadcast"
    phase = Phase.RELEASE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scheme = Scheme("topk", self.ratio, values=self.values, zstd=self.zstd)

    def init(self, layout: Layout) -> State:
        """Return the state before the first round: nothing left out, nobody holds anything."""
        start = {"residual": np.zeros(layout.size), "held": {}, "sent": {}, "run": 0}
        return {**start, **Released().to_state()}

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the step as clients will read it."""
        memory = Memory(state["residual"]).correct(vector)
        chosen = self.scheme.choose(memory.residual, context.server_round, 0)
        record, taken, sent = self.scheme.encode(memory.residual[chosen], vector.size, chosen, 0)
        vector[:] = 0.0
        vector[chosen] = sent
        layout = context.layout
        blank = {
            name: np.zeros(shape, dtype)
            for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes, strict=True)
            if name in layout.beside
        }
        after = layout.unpack(vector, blank, base=context.model)
        released = Released.of(state).plus(
            model_digest(context.model), record, model_digest(Vector.of(after, layout))
        )
        residual = memory.after(chosen, taken, sent).residual
        state = {**state, "residual": residual, **released.to_state()}
        return vector, state, {"record_bytes": float(len(record))}

    def address(
        self, contents: Mapping[int, RecordDict], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Replace the model by the steps that lead to it, for every node that holds an old one."""
        known = state["run"] == exchange.run_id
        held, sent = (dict(state[key]) if known else {} for key in ("held", "sent"))
        released, told = Released.of(state), {}
        made: dict[tuple[int, str | None], tuple[RecordDict, str]] = {}
        for node, content in contents.items():
            key = (id(content), held.get(str(node)))
            if key not in made:
                made[key] = _instruction(content, key[1], released)
            told[node], sent[str(node)] = made[key]
        return told, {**state, "run": exchange.run_id, "held": held, "sent": sent}

    def heard(self, answered: Mapping[int, bool], state: State) -> State:
        """Remember what the nodes hold now; of one that failed nothing is known."""
        held, sent = dict(state["held"]), dict(state["sent"])
        for node, good in answered.items():
            model = sent.pop(str(node), None)
            if not good:
                held.pop(str(node), None)
            elif model is not None:
                held[str(node)] = model
        return {**state, "held": held, "sent": sent}


def _instruction(
    content: RecordDict, held: str | None, released: Released
) -> tuple[RecordDict, str]:
    """Return what a client is told that holds a model, and the model that it holds then."""
    ((key, record),) = records_of(content, ArrayRecord).items()
    arrays = from_record(record)
    told = config_of(content)
    layout = Layout.read(arrays, told.get(ROLES_KEY))
    wanted = model_digest(Vector.of(arrays, layout))
    steps = released.between(held, wanted)
    if held is None or steps is None or sum(map(len, steps)) >= content_bytes(content):
        return with_keys(content, {BROADCAST_KEY: wanted}), wanted
    fields: dict[str, str | bytes | list[bytes]] = {
        BROADCAST_KEY: wanted,
        BASE_KEY: held,
        RELEASED_KEY: list(steps),
    }
    carried = to_record({name: arrays[name] for name in layout.carried})
    return with_keys(RecordDict({**content, key: carried}), fields), wanted
