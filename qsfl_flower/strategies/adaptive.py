"""Drop-in counterparts of Flower's strategies with an optimizer on the server."""

from __future__ import annotations

from typing import Unpack

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.server_optimizers.server import ServerAdam, ServerMomentum, ServerYogi
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.strategies.options import StrategyOptions, first
from qsfl_flower.strategies.stable import StableFedAvg


class FedAvgM(StableFedAvg):
    """`StableFedAvg` with the stage `ServerMomentum`, for Flower's ``FedAvgM``.

    Parameters
    ----------
    server_learning_rate : float
        Step of the server along the averaged update, > 0.
    server_momentum : float
        Share of the last step that is kept, in [0, 1).
    **options
        Arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: as `StableFedAvg`.

    Examples
    --------
    >>> strategy = FedAvgM(fraction_train=0.5, server_momentum=0.9)
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(**_with(options, ServerMomentum(server_learning_rate, server_momentum)))


class FedAdam(StableFedAvg):
    """`StableFedAvg` with the stage `ServerAdam`, for Flower's ``FedAdam``.

    Parameters
    ----------
    eta : float
        Learning rate of the server, > 0.
    beta_1, beta_2 : float
        Decay of the two moments, in [0, 1).
    tau : float
        Floor of the denominator, > 0.
    **options
        Arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: as `StableFedAvg`.

    Examples
    --------
    >>> strategy = FedAdam(fraction_train=0.5, eta=0.05)
    """

    def __init__(
        self,
        *,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(**_with(options, ServerAdam(eta, beta_1, beta_2, tau)))


class FedYogi(StableFedAvg):
    """`StableFedAvg` with the stage `ServerYogi`, for Flower's ``FedYogi``.

    Parameters
    ----------
    eta : float
        Learning rate of the server, > 0.
    beta_1, beta_2 : float
        Decay of the two moments, in [0, 1).
    tau : float
        Floor of the denominator, > 0.
    **options
        Arguments of `StableFedAvg`.

    Notes
    -----
    Who sees what: as `StableFedAvg`.

    Examples
    --------
    >>> strategy = FedYogi(fraction_train=0.5, eta=0.03)
    """

    def __init__(
        self,
        *,
        eta: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(**_with(options, ServerYogi(eta, beta_1, beta_2, tau)))


def _with(options: StrategyOptions, optimizer: Stage) -> StrategyOptions:
    """Return the options with a server optimizer; the clients' step size is no option."""
    if "eta_l" in options:
        raise ConfigError("eta_l is the clients' step size, which the app sets; leave it out")
    return first(options, optimizer)
