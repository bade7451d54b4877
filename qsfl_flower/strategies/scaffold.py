"""SCAFFOLD on the server: control variates travel behind the model, through the same chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from qsfl_flower.numerics.roles import FROZEN, TRAINED
from qsfl_flower.plugins import Options, option
from qsfl_flower.rounds.checkpoint import Snapshot
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.stages import VectorStage
from qsfl_flower.strategies.options import StrategyOptions
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.wire import from_record, to_record

CONTROL = "control/"
"""Beginning of the names of control variates."""


@dataclass(frozen=True)
class _ControlOptions(Options):
    participation: float = option("Share of all clients that train in a round.", 1.0, gt=0, le=1)


class ControlVariates(VectorStage, _ControlOptions):
    r"""Move the server's control variate by the share of the clients that took part.

    .. math:: c \leftarrow c + \frac{|S|}{N} \sum_i w_i\,(c_i^+ - c_i)

    Parameters
    ----------
    participation : float
        The share :math:`|S| / N` of all clients that train in a round, in (0, 1].

    Examples
    --------
    >>> strategy = ScaffoldFedAvg(participation=0.1)  # puts this stage into its chain
    """

    name = "control_variates"
    phase = Phase.PRIVATIZE
    declares = frozenset({Trait.SENDS_CONTROLS})

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Scale the part of the control variates."""
        for name, view in context.layout.views(vector).items():
            if name.startswith(CONTROL):
                view *= self.participation
        return vector, state, {}


class ScaffoldFedAvg(StableFedAvg):
    """SCAFFOLD: FedAvg whose clients correct their steps by control variates.

    The model that travels has a control variate behind each floating-point array, in both
    directions: twice the bytes, which the traffic of the rounds shows. Everything that a chain does
    to updates it does to both halves together: secure sums hide both, compression with feedback
    delays both. Clipping bounds their common norm; where it takes something off, c moves by less
    than the clients' own control variates, so choose the bound above what honest clients send.
    Noise is for that bound and on the coordinates of both halves.

    Parameters
    ----------
    participation : float
        Share of all clients that train in a round, in (0, 1].
    **arguments
        As for `StableFedAvg`. Clients are weighted by their examples, in both halves.

    References
    ----------
    S. P. Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning",
    2020. arXiv:1910.06378.

    Notes
    -----
    Who sees what: as `StableFedAvg`; the server sees two differences of every client.

    Examples
    --------
    >>> strategy = ScaffoldFedAvg(participation=0.1, fraction_train=0.1)  # for `ScaffoldClient`
    """

    def __init__(self, *, participation: float = 1.0, **arguments: Unpack[StrategyOptions]) -> None:
        arguments["stages"] = [*arguments.get("stages", ()), ControlVariates(participation)]
        super().__init__(**arguments)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        resume: Snapshot | None = None,
    ) -> Result:
        """Run the federation; the model goes in and comes out without control variates."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            return None if evaluate_fn is None else evaluate_fn(server_round, _without(arrays))

        model = from_record(initial_arrays)
        if self.engine.roles is not None:
            # What is not trained has a control variate that stays zero.
            still = [n for n in model if self.engine.roles.get(n, TRAINED) != TRAINED]
            still = [CONTROL + n for n in still if model[n].dtype.kind == "f"]
            self.engine.roles = {**self.engine.roles, **dict.fromkeys(still, FROZEN)}
        result = super().start(
            grid,
            to_record(with_controls(model)),
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            None if evaluate_fn is None else evaluate,
            resume=resume,
        )
        result.arrays = _without(result.arrays)
        return result


def with_controls(model: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a model with a zero control variate for each of its floating-point arrays."""
    controls = {CONTROL + k: np.zeros_like(v) for k, v in model.items() if v.dtype.kind == "f"}
    return {**model, **controls}


def _without(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({k: v for k, v in arrays.items() if not k.startswith(CONTROL)})
