"""Ready strategies whose server never sees an update: a committee, or the clients, open the sum."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.mechanisms.bounds.server import Clip
from qsfl_flower.mechanisms.masked_sum.server import MaskedSum
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureKrum, SecureSum
from qsfl_flower.moved import renamed
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.strategies.options import StrategyOptions, first, without_evaluation
from qsfl_flower.strategies.stable import StableFedAvg


class SecureFedAvg(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate` and `SecureSum`.

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    clip_norm : float
        Clients clip their differences to this L2 norm, > 0.
    committee : Committee, optional
        By default five members of whom three open a sum.
    metrics : Sequence[str], optional
        Names of the clients' metrics that are averaged unseen; by default those of `SecureSum`.
    sums : Mapping[str, Any], optional
        Further arguments of `SecureSum`.
    **options
        Further arguments of `StableFedAvg`, ``stages`` among them. Evaluation
        on the clients is off by default: their metrics would arrive one by one.

    Notes
    -----
    Who sees what: see `SecureSum`.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = SecureFedAvg(credentials=keys, clip_norm=5.0, committee=Committee(5, 3))
    """

    def __init__(
        self,
        *,
        credentials: Credentials | Path | str,
        clip_norm: float = 8.0,
        committee: Committee | None = None,
        metrics: Sequence[str] | None = None,
        sums: Mapping[str, Any] | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        settings = _settings(options, sum_settings(SecureSum, "sums", sums, metrics))
        hidden = SecureSum(clip_norm, committee or Committee(), **settings)
        super().__init__(**first(without_evaluation(options), Authenticate(credentials), hidden))


class SecureMultiKrum(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate` and `SecureKrum`.

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    num_byzantine : int
        f: how many clients may send anything; a round needs ``2 f + 3`` clients.
    num_selected : int, optional
        How many updates are averaged; by default n - f - 2.
    clip_norm, committee, metrics, sums, **options
        As in `SecureFedAvg`, with the arguments of `SecureKrum`.

    Notes
    -----
    Who sees what: see `SecureKrum`.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = SecureMultiKrum(credentials=keys, num_byzantine=2, clip_norm=5.0)
    """

    @renamed(num_malicious_nodes="num_byzantine", num_nodes_to_select="num_selected")
    def __init__(
        self,
        *,
        credentials: Credentials | Path | str,
        num_byzantine: int,
        num_selected: int | None = None,
        clip_norm: float = 8.0,
        committee: Committee | None = None,
        metrics: Sequence[str] | None = None,
        sums: Mapping[str, Any] | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        settings = _settings(options, sum_settings(SecureKrum, "sums", sums, metrics))
        krum = SecureKrum(
            clip_norm,
            num_byzantine,
            committee or Committee(),
            **{"num_selected": num_selected, **settings},
        )
        super().__init__(**first(without_evaluation(options), Authenticate(credentials), krum))


class SecAggFedAvg(StableFedAvg):
    """`StableFedAvg` with the stages `Authenticate`, `Clip` and `MaskedSum`: no committee.

    Parameters
    ----------
    credentials, clip_norm, metrics, **options
        As in `SecureFedAvg`.
    masks : Mapping[str, Any], optional
        Further arguments of `MaskedSum`.

    Notes
    -----
    Who sees what: see `MaskedSum`.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> keys = LocalFederation(clients=8).credentials  # or the path of the server's key folder
    >>> strategy = SecAggFedAvg(credentials=keys, clip_norm=5.0, masks={"min_clients": 5})
    """

    def __init__(
        self,
        *,
        credentials: Credentials | Path | str,
        clip_norm: float = 8.0,
        metrics: Sequence[str] | None = None,
        masks: Mapping[str, Any] | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        if "sums" in options:
            raise ConfigError("sums: SecAggFedAvg takes the arguments of MaskedSum as masks=")
        settings = _settings(options, sum_settings(MaskedSum, "masks", masks, metrics))
        gate = Authenticate(credentials)
        masked = MaskedSum(gate.credentials, **{"bound": clip_norm, **settings})
        super().__init__(**first(without_evaluation(options), gate, Clip(clip_norm), masked))


def sum_settings(
    stage: type[Stage],
    where: str,
    given: Mapping[str, Any] | None,
    metrics: Sequence[str] | None,
) -> dict[str, Any]:
    """Return what the user gives for a stage that sums.

    Parameters
    ----------
    stage : type[Stage]
        The stage; its keyword-only arguments may be given.
    where : str
        Name of the argument that holds `given`.
    given : Mapping[str, Any], optional
        What the user gives for the stage.
    metrics : Sequence[str], optional
        What the user gives as ``metrics=``.

    Raises
    ------
    ConfigError
        If the stage does not take an argument, or metrics are given twice or as one string.
    """
    own = dict(given or {})
    parameters = inspect.signature(stage).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in own:
        if name not in allowed:
            raise ConfigError(
                f"{where}: {name!r} is not among what it may hold, {', '.join(allowed)}; give "
                "other arguments to the strategy itself"
            )
    if metrics is not None:
        if "metrics" in own:
            raise ConfigError(f"metrics are given twice, as metrics= and in {where}=; give one")
        own["metrics"] = metrics
    if isinstance(own.get("metrics"), str):
        raise ConfigError(f"metrics is {own['metrics']!r}; it must be a sequence of names")
    return own


def _settings(options: StrategyOptions, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the stage that sums: it weighs as the strategy does."""
    return {"weighted_by": options.get("weighted_by_key", "num-examples"), **own}
