r"""Error feedback: what was not sent is kept on the client and added to its next difference.

.. math:: p = \Delta + e, \qquad e' = p - s

for the difference :math:`\Delta` of a round, the residual e from the last one, and what the server
reads, s. The subtraction is exact, so that :math:`s + e' = p` holds in every coordinate and bit:

- a coordinate that is not sent is kept as it is;
- of a coordinate that is sent, the residual is `taken - sent` of `encode_values`, whose difference
  float64 holds without rounding.

The addition of e is exact as well as long as p needs at most 53 bits, which differences of float32
numbers of usual spread do not exceed; and in all cases p is what float64 makes of the sum.

References
----------
S. Stich, J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with memory", 2018. arXiv:1809.07599.
Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, "Deep gradient compression: reducing the communication
bandwidth for distributed training", 2018. arXiv:1712.01887 (momentum correction and factor
masking).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.compression.core.select import Indices
from qsfl_flower.mechanisms.compression.core.values import Floats


@dataclass(frozen=True, eq=False, repr=False)
class Memory:
    """What a client keeps between rounds: 8 bytes per parameter, 16 with momentum correction.

    Parameters
    ----------
    residual : ndarray of float64, shape (d,)
        What was not sent yet.
    velocity : ndarray of float64, shape (d,), optional
        The momentum; None without momentum correction.
    """

    residual: Floats
    velocity: Floats | None = None

    @classmethod
    def empty(cls, size: int, momentum: float = 0.0) -> Memory:
        """Return the memory before the first round."""
        return cls(np.zeros(size), np.zeros(size) if momentum else None)

    def correct(self, delta: Floats, momentum: float = 0.0) -> Memory:
        r"""Add a round's difference; the new residual is the input of the round's compression.

        With momentum m and velocity u: :math:`u' = m u + \Delta`, :math:`p = e + u'`.
        """
        if delta.shape != self.residual.shape:
            raise ConfigError(
                f"a difference of {delta.size} coordinates does not fit the residual of "
                f"{self.residual.size}: the model has changed since the last round"
            )
        if not momentum:
            return Memory(self.residual + delta)
        before = np.zeros_like(delta) if self.velocity is None else self.velocity
        velocity = momentum * before + delta
        return Memory(self.residual + velocity, velocity)

    def after(self, indices: Indices, taken: Floats, sent: NDArray[Any]) -> Memory:
        """Return the memory when coordinates of the input were taken and read as `sent`.

        What clipping took off between choosing and encoding is neither sent nor kept: a client's
        influence is bounded on purpose.
        """
        residual = self.residual.copy()
        residual[indices] = taken - sent
        if self.velocity is None:
            return Memory(residual)
        velocity = self.velocity.copy()
        velocity[indices] = 0.0
        return Memory(residual, velocity)

    def __repr__(self) -> str:
        """Tell the size only: a residual is private to its client."""
        return f"Memory({self.residual.size} coordinates)"
