"""A ready strategy whose clients compress their updates."""

from __future__ import annotations

from typing import Unpack

from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.mechanisms.compression.server import Compress
from qsfl_flower.strategies.options import StrategyOptions, first
from qsfl_flower.strategies.stable import StableFedAvg


class CompressedFedAvg(StableFedAvg):
    """`StableFedAvg` with the stage `Compress`.

    Parameters
    ----------
    scheme : Scheme, optional
        By default the 1 % of largest magnitudes in 8 bits, with error feedback: half a percent of
        the bytes.
    **options
        Further arguments of `StableFedAvg`, ``stages`` among them.

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
        *,
        scheme: Scheme | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        seed = options.get("seed") or 0
        super().__init__(**first(options, Compress(scheme, seed=seed)))
