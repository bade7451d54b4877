"""Ready strategies whose server never sees an update: a committee, or the clients, open the sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.strategies.authentication import Authenticate
from qsfl_flower.strategies.bounds import Clip
from qsfl_flower.strategies.masked_sum import MaskedSum
from qsfl_flower.strategies.secure_sum import Committee, SecureKrum, SecureSum
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.strategies.stages import Stage


class SecureFedAvg(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate` and `SecureSum`.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``. Evaluation on the clients is off by default: their
        evaluation metrics would arrive one by one.
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    clip_norm : float
        Clients clip their differences to this L2 norm, > 0.
    committee : Committee, optional
        By default five members of whom three open a sum.
    sums : Mapping[str, Any], optional
        Further arguments of `SecureSum`.
    stages : Sequence[Stage]
        Further stages.
    **options
        Further keyword arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: see `SecureSum`.
    """

    def __init__(
        self,
        *args: Any,
        credentials: Credentials | Path | str,
        clip_norm: float = 8.0,
        committee: Committee | None = None,
        sums: Mapping[str, Any] | None = None,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        settings, options = _shared(args, options, sums)
        own = [Authenticate(credentials), SecureSum(clip_norm, committee, **settings)]
        super().__init__(*args, stages=[*own, *stages], **options)


class SecureMultiKrum(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate` and `SecureKrum`.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``.
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    num_malicious_nodes : int
        f: how many clients may send anything; a round needs ``2 f + 3`` clients.
    num_nodes_to_select : int, optional
        How many updates are averaged; by default n - f - 2.
    clip_norm, committee, sums, stages, **options
        As in `SecureFedAvg`.

    Notes
    -----
    Who sees what: see `SecureKrum`.
    """

    def __init__(
        self,
        *args: Any,
        credentials: Credentials | Path | str,
        num_malicious_nodes: int,
        num_nodes_to_select: int | None = None,
        clip_norm: float = 8.0,
        committee: Committee | None = None,
        sums: Mapping[str, Any] | None = None,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        settings, options = _shared(args, options, sums)
        krum = SecureKrum(
            clip_norm,
            num_malicious_nodes,
            committee,
            num_selected=num_nodes_to_select,
            **settings,
        )
        super().__init__(*args, stages=[Authenticate(credentials), krum, *stages], **options)


class SecAggFedAvg(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate`, `Clip` and `MaskedSum`: no committee.

    Parameters
    ----------
    *args, credentials, clip_norm, stages, **options
        As in `SecureFedAvg`.
    masks : Mapping[str, Any], optional
        Further arguments of `MaskedSum`.

    Notes
    -----
    Who sees what: see `MaskedSum`.
    """

    def __init__(
        self,
        *args: Any,
        credentials: Credentials | Path | str,
        clip_norm: float = 8.0,
        masks: Mapping[str, Any] | None = None,
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        settings, options = _shared(args, options, masks)
        gate = Authenticate(credentials)
        masked = MaskedSum(gate.credentials, **{"bound": clip_norm, **settings})
        super().__init__(*args, stages=[gate, Clip(clip_norm), masked, *stages], **options)


def _shared(
    args: Sequence[Any], options: Mapping[str, Any], more: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the stage, and those of the strategy without client evaluation."""
    default = {} if len(args) > 1 else {"fraction_evaluate": 0.0}
    weighted_by = options.get("weighted_by_key", args[5] if len(args) > 5 else "num-examples")
    return {"weighted_by": weighted_by, **(more or {})}, {**default, **options}
