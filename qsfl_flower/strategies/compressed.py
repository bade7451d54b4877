"""A ready strategy whose clients compress their updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.mechanisms.compression.server import Compress
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.strategies.stable import StableFedAvg


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

    Examples
    --------
    >>> from qsfl_flower.mechanisms.compression.core import Scheme
    >>> strategy = CompressedFedAvg(fraction_train=0.5, scheme=Scheme(ratio=0.01, values="int8"))
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
