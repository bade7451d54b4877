r"""Server optimizers: what the server does with the mean difference of a round.

The mean difference :math:`\Delta_t` plays the part of a negative gradient. Names, parameters,
defaults and formulas are those of Flower's own ``FedAvgM``, ``FedAdam`` and ``FedYogi``; here they
work in float64 on the flat vector, their state is a value that a checkpoint holds, and they come
after clipping, selection and noise in a chain. Integer arrays are not touched by them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.server_optimizers.options import (
    AdamOptions,
    MomentumOptions,
    YogiOptions,
)
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.stages import VectorStage


class ServerMomentum(VectorStage, MomentumOptions):
    r"""Momentum on the server.

    .. math:: m_t = \beta m_{t-1} + \Delta_t, \qquad x_{t+1} = x_t + \eta m_t

    Parameters
    ----------
    server_learning_rate : float
        The step :math:`\eta` > 0.
    server_momentum : float
        The factor :math:`\beta` in [0, 1).

    References
    ----------
    T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the effects of non-identical data distribution for
    federated visual classification", 2019. arXiv:1909.06335.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation()
    >>> outcome = federation.run([ServerMomentum(server_momentum=0.9)], rounds=2)
    >>> np.allclose(outcome.model, 2.9 * federation.updates.mean(axis=0), atol=1e-6)
    True
    """

    name = "fedavgm"
    phase = Phase.UPDATE

    def init(self, layout: Layout) -> State:
        """Start with no momentum."""
        return {"momentum": np.zeros(layout.size)}

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the step of this round."""
        momentum = self.server_momentum * state["momentum"] + vector
        return self.server_learning_rate * momentum, {"momentum": momentum}, {}


class _Adaptive(VectorStage, AdamOptions):
    """Common part of ServerAdam and ServerYogi: first and second moment, and the final division."""

    phase = Phase.UPDATE

    def init(self, layout: Layout) -> State:
        """Start with zero moments."""
        return {"m": np.zeros(layout.size), "v": np.zeros(layout.size)}

    def second_moment(
        self, v: NDArray[np.float64], squared: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the next second moment, given the squared differences of this round."""
        raise TypeError(f"{type(self).__name__} does not say how its second moment moves")

    def step_size(self, server_round: int) -> float:
        """Return the learning rate of a round."""
        del server_round
        return self.eta

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the step of this round."""
        m = self.beta_1 * state["m"] + (1 - self.beta_1) * vector
        v = self.second_moment(state["v"], vector * vector)
        step = self.step_size(context.server_round) * m / (np.sqrt(v) + self.tau)
        return step, {"m": m, "v": v}, {}


class ServerAdam(_Adaptive):
    r"""Adam on the server.

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) \Delta_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) \Delta_t^2, \quad
        x_{t+1} = x_t + \eta_t m_t / (\sqrt{v_t} + \tau)

    with Flower's bias correction
    :math:`\eta_t = \eta \sqrt{1-\beta_2^{t+1}} / (1-\beta_1^{t+1})`.

    Parameters
    ----------
    eta : float
        Server learning rate, > 0.
    beta_1, beta_2 : float
        Decay of the two moments, in [0, 1).
    tau : float
        Floor of the denominator, > 0: the degree of adaptability.

    References
    ----------
    S. Reddi et al., "Adaptive federated optimization", 2020. arXiv:2003.00295.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run([ServerAdam(eta=0.05)], rounds=2)
    >>> outcome.error is None
    True
    """

    name = "fedadam"

    def second_moment(
        self, v: NDArray[np.float64], squared: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Move the second moment by exponential averaging."""
        return self.beta_2 * v + (1 - self.beta_2) * squared

    def step_size(self, server_round: int) -> float:
        """Return the bias-corrected learning rate."""
        t = server_round + 1.0
        return float(self.eta * np.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t))


class ServerYogi(_Adaptive, YogiOptions):
    r"""Yogi on the server: like Adam, but the second moment moves by at most its increment.

    .. math:: v_t = v_{t-1} - (1-\beta_2) \Delta_t^2 \operatorname{sign}(v_{t-1} - \Delta_t^2)

    Parameters
    ----------
    eta : float
        Server learning rate, > 0.
    beta_1, beta_2 : float
        Decay of the two moments, in [0, 1).
    tau : float
        Floor of the denominator, > 0: the degree of adaptability.

    References
    ----------
    S. Reddi et al., "Adaptive federated optimization", 2020. arXiv:2003.00295.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run([ServerYogi(eta=0.05)], rounds=2)
    >>> outcome.error is None
    True
    """

    name = "fedyogi"

    def second_moment(
        self, v: NDArray[np.float64], squared: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Move the second moment towards the squared differences."""
        return v - (1 - self.beta_2) * squared * np.sign(v - squared)
