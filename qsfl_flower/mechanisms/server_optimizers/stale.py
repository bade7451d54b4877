"""The server's step when updates are stale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.server_optimizers.options import StaleOptions
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.stages import VectorStage


class StaleStep(VectorStage, StaleOptions):
    r"""A learning rate and a momentum that know how stale the updates are.

    .. math::
        m_t = \max\left(0, \beta - \frac{\bar s_t}{1 + \bar s_t}\right) m_{t-1} + \Delta_t,
        \qquad x_{t+1} = x_t + \frac{\eta}{(1 + \bar s_t)^{r}} m_t

    with the mean staleness :math:`\bar s_t` of the updates in :math:`\Delta_t`. Stale updates act
    like a momentum of about :math:`\bar s / (1 + \bar s)` already, since they go on in the
    direction of some steps ago; the correction takes it off the explicit one, so that the total is
    about :math:`\beta`. Without staleness this is `ServerMomentum`.

    Parameters
    ----------
    server_learning_rate : float
        The step :math:`\eta` > 0.
    server_momentum : float
        The total momentum :math:`\beta` in [0, 1).
    scale_by_staleness : bool
        Divide the step by one plus the mean staleness (r = 1; else 0).

    References
    ----------
    I. Mitliagkas, C. Zhang, S. Hadjis, C. Re, "Asynchrony begets momentum, with an application to
    deep learning", 2016. arXiv:1605.09774.

    Examples
    --------
    >>> strategy = BufferedAsync(buffer_size=5, server_momentum=0.9)  # has this stage
    """

    name = "stale_step"
    phase = Phase.UPDATE

    def init(self, layout: Layout) -> State:
        """Start with no momentum."""
        return {"momentum": np.zeros(layout.size if self.server_momentum else 0)}

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the step of this round."""
        staleness = context.staleness
        rate = self.server_learning_rate
        if self.scale_by_staleness:
            rate /= 1 + staleness
        measured = {"rate": rate}
        if not self.server_momentum:
            return rate * vector, state, measured
        momentum = max(0.0, self.server_momentum - staleness / (1 + staleness))
        moved = momentum * state["momentum"] + vector
        return rate * moved, {"momentum": moved}, {**measured, "momentum": momentum}
