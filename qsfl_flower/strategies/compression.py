"""The server's half of compression: stages, and a ready strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord

from qsfl_flower.compression import Scheme, decode_record, derive_seed
from qsfl_flower.errors import CompositionError
from qsfl_flower.numerics import Vector
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.strategies.stages import (
    ClientPhase,
    CombineStage,
    DecodeStage,
    RoundContext,
    Stage,
    State,
    Steps,
)
from qsfl_flower.wire import CHOOSE_STEP, COMPRESS_STEP, PlanItem, from_blob


class Compress(DecodeStage):
    """Clients send a few of their coordinates, in a few bits each.

    Parameters
    ----------
    scheme : Scheme
        What is sent of an update, and what happens to the rest.
    seed : int
        Of random coordinates and stochastic rounding, together with the round and the client.

    Notes
    -----
    Who sees what: the server sees which coordinates a client has chosen, and their values.
    """

    name = "compress"
    encoding = COMPRESS_STEP

    def __init__(self, scheme: Scheme | None = None, *, seed: int = 0) -> None:
        self.scheme = Scheme() if scheme is None else scheme
        self.seed = seed

    def check(self, stages: Sequence[Stage]) -> None:
        """Refuse hidden updates: every client has coordinates of its own."""
        for stage in stages:
            if isinstance(stage, CombineStage) and stage.hides:
                raise CompositionError(
                    f"stages: compress and {stage.name}: every client chooses coordinates of its "
                    "own, which cannot be added up unseen and would tell about its data; use "
                    "shared-mask, whose coordinates are public and the same for all"
                )

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

    def decode(self, payload: ArrayRecord, context: RoundContext) -> Vector:
        """Read a record of at most as many values as the round allows."""
        size = context.layout.size
        return decode_record(
            from_blob(payload, "record"),
            size,
            self.scheme.count(size, context.server_round),
            self.scheme.values,
        )


class CompressedFedAvg(StableFedAvg):
    """`StableFedAvg` with the stage `Compress`.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``.
    scheme : Scheme, optional
        By default the 1 % of largest magnitudes in 8 bits, with error feedback: half a percent of
        the bytes.
    stages : Sequence[Stage]
        Further stages.
    **options
        Further keyword arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: see `Compress`.
    """

    def __init__(
        self,
        *args: Any,
        scheme: Scheme | None = None,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        seed = options.get("seed") or 0
        super().__init__(*args, stages=[Compress(scheme, seed=seed), *stages], **options)
