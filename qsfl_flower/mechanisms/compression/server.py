"""The server's half of compression: own coordinates of each client, or the same for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core import Mask, Scheme, decode_record, derive_seed
from qsfl_flower.mechanisms.compression.core.mask import pack_leading
from qsfl_flower.mechanisms.compression.core.select import keep_count
from qsfl_flower.mechanisms.compression.options import (
    CompressOptions,
    MaskOptions,
    SharedMaskOptions,
)
from qsfl_flower.numerics import SparseVector, Vector
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Exchange, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts
from qsfl_flower.rounds.stages import DecodeStage
from qsfl_flower.wire import (
    CHOOSE_STEP,
    COMPRESS_STEP,
    LEADING_KEY,
    MASK_ENCODE_STEP,
    MASK_ENCODING,
    MASK_STEP,
    ClientPhase,
    PlanItem,
    change_records,
    from_blob,
    with_keys,
)


class Compress(DecodeStage):
    """Clients send a few of their coordinates, in a few bits each.

    Parameters
    ----------
    scheme : CompressOptions
        What is sent of an update (a `Scheme` is one), and what happens to the rest.
    seed : int
        Of random coordinates and stochastic rounding, together with the round and the client.

    Notes
    -----
    Who sees what: the server sees which coordinates a client has chosen, and their values.

    Examples
    --------
    >>> from qsfl_flower.mechanisms.compression.core import Scheme
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation(size=10_000)
    >>> outcome = federation.run([Compress(Scheme(select="topk", ratio=0.01, values="int8"))])
    >>> outcome.rounds[-1].bytes_up < 0.2 * outcome.rounds[-1].dense_up
    True
    """

    name = "compress"
    encoding = COMPRESS_STEP

    def __init__(self, scheme: CompressOptions | None = None, *, seed: int = 0) -> None:
        self.scheme = Scheme() if scheme is None else Scheme.from_dict(scheme.to_dict())
        self.warmup_rounds = self.scheme.warmup_rounds
        self.seed = seed

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask for the choice before clipping and for the encoding at the end."""
        del state
        told = {
            "scheme": self.scheme.to_dict(),
            "round": context.server_round,
            "seed": derive_seed(self.seed, "compress"),
        }
        return [
            (ClientPhase.SPARSIFY, PlanItem(CHOOSE_STEP, told)),
            (ClientPhase.ENCODE, PlanItem(COMPRESS_STEP)),
        ]

    def upload(self, size: int, clients: int) -> int:
        """Return the bytes of a record with the coordinates of noise."""
        noise = np.random.default_rng(0).normal(size=size)
        chosen = self.scheme.choose(noise, self.scheme.warmup_rounds + 1, 0)
        return len(self.scheme.encode(noise[chosen], size, chosen, 0)[0])

    def decode(self, payload: ArrayRecord, context: RoundContext) -> Vector:
        """Read a record of at most as many values as the round allows."""
        size = context.layout.size
        return decode_record(
            from_blob(payload, "record"),
            size,
            self.scheme.count(size, context.server_round),
            self.scheme.values,
        )


class SharedMask(DecodeStage):
    """All clients of a round send the same public coordinates, and only these.

    Works with everything that adds up or compares updates: hidden sums, robust rules, clipping,
    noise. Where nothing hides the updates, each is one record of k values without indices.

    Parameters
    ----------
    mask : MaskOptions
        How the coordinates are found (a `Mask` is one).
    seed : int
        Of the random coordinates and of stochastic rounding.
    epoch : int
        For how many rounds in a row the random coordinates stay the same, >= 1. Updates that come
        together must have the same: an asynchronous strategy rejects those of the epoch before
        (``other-support``).

    Notes
    -----
    Who sees what: the coordinates are public. The server sees the values of every client on them,
    unless another stage hides these.

    Examples
    --------
    >>> from qsfl_flower.mechanisms.compression.core import Mask
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation(size=1000).run([SharedMask(Mask(ratio=0.1))])
    >>> int(np.count_nonzero(outcome.model))
    100
    """

    name = "shared_mask"
    encoding = MASK_ENCODING
    declares = frozenset({Trait.FLAT})

    def __init__(self, mask: MaskOptions | None = None, *, seed: int = 0, epoch: int = 1) -> None:
        given = Mask() if mask is None else mask
        values = SharedMaskOptions(**{"epoch": epoch, **given.to_dict()}).to_dict()
        self.epoch, self.seed = values.pop("epoch"), seed
        self.mask = Mask(**values)

    def prepare(self, state: State, context: RoundContext) -> State:
        """Find the largest coordinates of the step that the global model has just made."""
        state = {**state, "round": context.server_round}
        if self.mask.select == "randomk":
            return state
        model = np.empty(context.layout.size)
        context.model.read(0, model.size, model)
        last = model - state["model"] if "model" in state else None
        return {**state, "model": model, "leading": self.mask.leading(last)}

    def support(self, state: State, context: RoundContext) -> NDArray[np.int64]:
        """Return the round's coordinates."""
        if "leading" not in state:
            return self.drawn(context.server_round, context.layout.size)
        seed = self._seed(self._first(context.server_round))
        return self.mask.support(state["leading"], context.layout.size, seed)

    @property
    def facts(self) -> Facts:
        """How many coordinates a round has."""
        return Facts(coordinates=lambda size: keep_count(size, self.mask.ratio))

    def drawn(self, server_round: int, size: int) -> NDArray[np.int64]:
        """Return a round's random coordinates of a model of `size`: anybody can work them out.

        A client that knows them can train these alone, and spend no noise on others.
        """
        none = np.empty(0, np.int64)
        return self.mask.support(none, size, self._seed(self._first(server_round)))

    def joins(self, state: State, origin: int) -> None:
        """Refuse updates on other coordinates."""
        if self._first(origin) != self._first(state["round"]):
            raise RejectedUpdate(
                "other-support",
                f"the coordinates of round {origin} are not those of round {state['round']}",
            )

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask for the restriction before clipping, and for the encoding at the end."""
        del state
        told = {
            "mask": self.mask.to_dict(),
            "seed": self._seed(self._first(context.server_round)),
            "rounding": self._seed(context.server_round),
        }
        return [
            (ClientPhase.SPARSIFY, PlanItem(MASK_STEP, told)),
            (ClientPhase.ENCODE, PlanItem(MASK_ENCODE_STEP)),
        ]

    def upload(self, size: int, clients: int) -> int:
        """Return the bytes of a record of `size` values."""
        return len(
            Scheme("all", 1.0, values=self.mask.values).encode(
                np.random.default_rng(0).normal(size=size), size, np.arange(size), 0
            )[0]
        )

    def address(
        self, contents: Mapping[int, RecordDict], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Send the coordinates that a client cannot draw from the seed."""
        if exchange.kind != "train" or "leading" not in state:
            return dict(contents), state
        leading = pack_leading(state["leading"], state["model"].size)
        return change_records(contents, lambda c: with_keys(c, {LEADING_KEY: leading})), state

    def decode(self, payload: ArrayRecord, context: RoundContext) -> Vector:
        """Read a record of exactly k values."""
        if (support := context.support) is None:
            raise QSFLError("shared_mask: the round has no support")
        values = np.empty(support.size)
        record = from_blob(payload, "record")
        decode_record(record, support.size, values_format=self.mask.values).read(
            0, support.size, values
        )
        return SparseVector(context.layout.size, support, values)

    def _first(self, server_round: int) -> int:
        """Return the first round of the epoch that a round belongs to."""
        return server_round - (server_round - 1) % self.epoch

    def _seed(self, server_round: int) -> int:
        return derive_seed(self.seed, "shared-mask", server_round)
