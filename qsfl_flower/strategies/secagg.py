"""Ready strategy: federated averaging of updates that the server never sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.strategies.authentication import Authenticate
from qsfl_flower.strategies.masked_sum import MaskedSum
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.strategies.stages import Clip, Stage


class SecAggFedAvg(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate`, `Clip` and `MaskedSum`.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``. Evaluation on the clients is off by default: their
        evaluation metrics would arrive one by one.
    credentials : Credentials
        The server's keys and roster.
    clip_norm : float
        Clients clip their differences to this L2 norm, > 0.
    masks : Mapping[str, Any], optional
        Further arguments of `MaskedSum`.
    stages : Sequence[Stage]
        Further stages.
    **options
        Further keyword arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: see `MaskedSum`.
    """

    def __init__(
        self,
        *args: Any,
        credentials: Credentials,
        clip_norm: float = 8.0,
        masks: Mapping[str, Any] | None = None,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        if len(args) < 2:
            options.setdefault("fraction_evaluate", 0.0)
        weighted_by = options.get("weighted_by_key", args[5] if len(args) > 5 else "num-examples")
        settings = {"bound": clip_norm, "weighted_by": weighted_by, **(masks or {})}
        own = [Authenticate(credentials), Clip(clip_norm), MaskedSum(credentials, **settings)]
        super().__init__(*args, stages=[*own, *stages], **options)
