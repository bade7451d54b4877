"""One round of one client: the model that it starts from, and how its trainings are run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from qsfl_flower.clients.training import LocalTraining, TrainResult


class Declined(Exception):
    """A device does not train now.

    Parameters
    ----------
    reason, detail : str
        As of `qsfl_flower.clients.conditions.Verdict`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Session:
    """A round of a client that is always there and willing.

    A method of training makes one training or two of a round: perhaps one for what stays on the
    device, then the one whose result is sent. `MobileSession` runs them where devices pause.

    Parameters
    ----------
    parameters : list of ndarray
        The model that was sent.
    server_round : int
        The round, >= 1.
    proximal_mu : float
        FedProx's weight, >= 0.
    """

    micro_batch: int | None = None
    """Examples that fit the memory at a time; None: all."""

    kept: Mapping[str, NDArray[Any]] | None = None
    """What the training for the device itself gave; None while it is not finished."""

    def __init__(self, parameters: NDArrays, server_round: int, proximal_mu: float) -> None:
        self.base, self.server_round, self.proximal_mu = parameters, server_round, proximal_mu
        self._started = self.seconds()

    def run(self, training: LocalTraining) -> TrainResult:
        """Train to the end."""
        training.run()
        return training.result()

    def seconds(self) -> float:
        """Return the time on a clock that only runs forward (seconds)."""
        return time.perf_counter()

    def finish(self, arrays: NDArrays) -> NDArrays:
        """Return what to send instead of the trained arrays, where the model has moved on."""
        return arrays

    def told(self) -> dict[str, Scalar]:
        """Return metrics of the round."""
        return {"seconds": self.seconds() - self._started}
