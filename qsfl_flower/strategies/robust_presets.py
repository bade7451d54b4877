"""Ready strategies: one robust rule each, with the constructor arguments of Flower's own.

All of them are `StableFedAvg` with the stage `Robust`, and take its arguments and further stages.
Against Flower's strategies of the same names: distances are measured on updates in float64, not on
models in float32; selected updates count alike, whatever sample counts they claim; replies with NaN
are rejected; equal scores are decided by the order of registration, not of arrival.

Who sees what: see `Robust`.
"""

from __future__ import annotations

from typing import Unpack

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust import core as robust
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.strategies.options import StrategyOptions, first
from qsfl_flower.strategies.stable import StableFedAvg


class RobustFedAvg(StableFedAvg):
    """Federated learning with a robust rule in place of the mean.

    Parameters
    ----------
    rule : Rule or str
        The rule, or its name.
    num_byzantine : int, optional
        How many updates of a round may lie, for a rule given by name.
    before : Preparation or str, optional
        How updates are mixed first.
    **options
        Further arguments of `StableFedAvg`.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=RobustFedAvg, rule="mda", num_byzantine=1)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(
        self,
        *,
        rule: robust.Rule | str = "multi_krum",
        num_byzantine: int | None = None,
        before: robust.Preparation | str | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        super().__init__(**first(options, Robust(rule, num_byzantine, before)))


class Krum(RobustFedAvg):
    """Krum: the one update closest to its neighbours; drop-in for Flower's ``Krum``.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=Krum, num_malicious_nodes=1)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(self, *, num_malicious_nodes: int = 0, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(rule=robust.Krum(num_malicious_nodes), **options)


class MultiKrum(RobustFedAvg):
    """The mean of the updates closest to their neighbours; drop-in for Flower's ``MultiKrum``.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=MultiKrum, num_malicious_nodes=1, num_nodes_to_select=3)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(
        self,
        *,
        num_malicious_nodes: int = 0,
        num_nodes_to_select: int | None = 1,
        **options: Unpack[StrategyOptions],
    ) -> None:
        rule = robust.MultiKrum(num_malicious_nodes, num_nodes_to_select)
        super().__init__(rule=rule, **options)


class Bulyan(RobustFedAvg):
    """Krum's choice, then a mean around the median; drop-in for Flower's ``Bulyan``.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=Bulyan, num_malicious_nodes=1)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(
        self,
        *,
        num_malicious_nodes: int = 0,
        selection_rule: None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        if selection_rule is not None:
            raise ConfigError("selection_rule is not supported: Bulyan's guarantee is Krum's")
        super().__init__(rule=robust.Bulyan(num_malicious_nodes), **options)


class FedMedian(RobustFedAvg):
    """The median of each coordinate; drop-in for Flower's ``FedMedian``.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=FedMedian)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(self, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(rule=robust.Median(), **options)


class FedTrimmedAvg(RobustFedAvg):
    """The mean without extremes at each end; drop-in for Flower's ``FedTrimmedAvg``.

    Parameters
    ----------
    **options
        As for `RobustFedAvg`.
    beta : float
        Share of the updates to leave out at each end, in [0, 0.5), rounded down: the default 0.2
        leaves out none of fewer than five, as Flower's does, and a warning is logged.
    num_byzantine : int, optional
        How many to leave out at each end instead; a round with at most twice as many updates leaves
        the model unchanged.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=FedTrimmedAvg, beta=0.2)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(
        self,
        *,
        beta: float = 0.2,
        num_byzantine: int | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        share = beta if num_byzantine is None else None
        super().__init__(rule=robust.TrimmedMean(num_byzantine, share), **options)


class GeometricMedian(RobustFedAvg):
    """The point with the smallest sum of distances to the updates.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=GeometricMedian)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(self, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(rule=robust.GeometricMedian(), **options)


class CenteredClipping(RobustFedAvg):
    """The global model moved by updates whose pull is bounded.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=CenteredClipping, radius=0.5)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(self, *, radius: float | None = None, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(rule=robust.CenteredClipping(radius=radius), **options)


class NormBounded(RobustFedAvg):
    """The mean of updates scaled down to a bound, by default the round's median norm.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run(kind=NormBounded, bound=0.5)
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    def __init__(self, *, bound: float | None = None, **options: Unpack[StrategyOptions]) -> None:
        super().__init__(rule=robust.NormBoundedMean(bound=bound), **options)
