r"""Numerical composition of privacy losses, one event at a time.

The loss :math:`\log P(x) / Q(x)` of independent releases adds up as a random variable, so its
distribution is convolved. It is put on a grid by "connecting the dots": what lies between two
points is split such that its probability under P and under Q stays the same. The split mechanism
is at least as revealing as the true one at every epsilon, so whatever is computed is an upper
bound, and errors are of second order in the step. Products of Fourier transforms are kept, so an
event costs two transforms whatever the history.

Both directions are composed, the unit leaving and the unit joining, and the larger epsilon counts.
Releases without sampling need no grid: together they are one Gaussian.

References
----------
V. Doroshenko, B. Ghazi, P. Kamath, R. Kumar, P. Manurangsi, "Connect the dots: tighter discrete
approximations of privacy loss distributions", 2022. arXiv:2207.04380.
A. Koskela, J. Jälkö, A. Honkela, "Computing tight differential privacy guarantees using FFT", 2020.
arXiv:1906.03049.
Y. Zhu, J. Dong, Y.-X. Wang, "Optimal accounting of differential privacy via characteristic
function", 2022. arXiv:2106.08567.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

from qsfl_flower.privacy.events import AnyEvent, PureEvent
from qsfl_flower.privacy.gaussian import check_delta, gaussian_epsilon
from qsfl_flower.privacy.rdp import ORDERS, epsilon_of, least_epsilon, rdp_of

Floats = NDArray[np.float64]

LEAST_DELTA = 1e-10
"""Below it the rounding of the transforms could show."""

_LOST = 1e-4
"""Share of delta that may lie outside the grid."""

_FINE = 0.05
"""Step over the standard deviation of the total loss, times the root of the number of releases."""

_LEAST, _MOST = 1 << 11, 1 << 18
"""Number of points of a grid."""

_SEEN = 16
"""So many events of a plan are looked at."""


@dataclass(frozen=True)
class _Composed:
    """Total loss in one direction: Fourier transform, chance of an infinite loss, and a moment."""

    spectrum: NDArray[np.complex128]
    finite: float
    """Logarithm of the probability of a finite loss."""
    moment: float
    """Logarithm of the mean of exp(tilt * loss), which bounds what the grid wraps around."""

    def times(self, other: _Composed, count: int) -> _Composed:
        power = other.spectrum if count == 1 else other.spectrum**count
        return _Composed(
            self.spectrum * power,
            self.finite + count * other.finite,
            self.moment + count * other.moment,
        )


class LossDistribution:
    """Distribution of the total privacy loss of many events on a grid.

    Parameters
    ----------
    planned : sequence of Event or PureEvent
        What the grid is made for, at least one. What is added may differ as long as `fits` says so.
    delta : float
        Least delta for which epsilon will be asked, at least 1e-10.

    Notes
    -----
    The grid is wide enough for a loss that exceeds it with a probability of about delta / 10000, by
    the Renyi bound of what is planned; of a long plan some events stand for all. What does exceed
    it is bounded with a moment of the composed losses and taken out of delta. The step is a
    twentieth of the standard deviation of one of so many equal losses, which changes epsilon by
    less than 0.1 %; a grid has at most 2^18 points, after which steps get wider and epsilon
    larger, not wrong.
    """

    def __init__(self, planned: Sequence[AnyEvent], delta: float) -> None:
        check_delta(delta)
        room = sum(event.count for event in planned)
        self._delta, self._room = delta, room
        some = [*planned[:: -(-len(planned) // _SEEN)], planned[-1]]
        rdp = sum((e.count * rdp_of(e) for e in some), np.zeros(ORDERS.size))
        rdp = rdp * (room / sum(e.count for e in some))
        half, self._tilt = self._reach(rdp, some)
        half *= 1.05  # what was not looked at may cost a little more
        # Divergence over order is half the variance of the loss at order 1.
        spread = math.sqrt(max(2 * rdp[0] / ORDERS[0], 1e-300))
        size = 2 * half * math.sqrt(room) / (_FINE * spread)
        self._size = 2 * next_fast_len(math.ceil(min(max(size, _LEAST), _MOST) / 2), real=True)
        self._step = 2 * half / self._size
        # One point for every finite loss; the first is left out, so that the grid is symmetric.
        self._losses = (np.arange(self._size) - self._size // 2) * self._step
        self._known: dict[AnyEvent, tuple[_Composed, _Composed]] = {}
        self._rdp = np.zeros(ORDERS.size)
        self._releases, self._square = 0, 0.0
        self._total: tuple[_Composed, _Composed] | None = None

    def fits(self, events: Sequence[AnyEvent]) -> bool:
        """Return whether the grid is fine and wide enough for these events too."""
        rdp = self._rdp + sum(e.count * rdp_of(e) for e in events)
        return (
            self._releases + sum(e.count for e in events) <= self._room
            and self._reach(rdp, events)[0] <= self._size // 2 * self._step
        )

    def _reach(self, rdp: Floats, events: Sequence[AnyEvent]) -> tuple[float, float]:
        """Return how wide the grid has to be, and the order of the moment that shows it."""
        lost = _LOST * self._delta / 4
        single = (epsilon_of(rdp_of(e), lost / self._room) for e in events)
        whole, order = least_epsilon(rdp, lost)
        return max([whole, *single]) * 1.05, order - 1

    def add(self, event: AnyEvent) -> None:
        """Compose one more event."""
        self._releases += event.count
        self._rdp = self._rdp + event.count * rdp_of(event)
        if not isinstance(event, PureEvent) and event.sampling_rate == 1:
            self._square += event.count * (1 / event.noise_multiplier) ** 2
            return
        single = replace(event, count=1)
        if single not in self._known:
            if len(self._known) >= 4:  # each is as large as the grid
                self._known.clear()
            self._known[single] = self._both(*self._cells(single))
        found = self._known[single]
        one = _Composed(np.ones(1, dtype=np.complex128), 0.0, 0.0)
        before = self._total or (one, one)
        self._total = (
            before[0].times(found[0], event.count),
            before[1].times(found[1], event.count),
        )

    def epsilon(self, delta: float) -> float:
        """Return an upper bound on epsilon at a delta not below the one that the grid is for."""
        if self._total is None:
            return gaussian_epsilon(math.sqrt(self._square), delta)
        whole = self._total
        if self._square > 0:
            mu = math.sqrt(self._square)
            edges = self._losses[1:]
            under_p, under_q = (_between((edges + s * mu * mu / 2) / mu) for s in (-1, 1))
            gaussian = self._both(under_p, under_q)
            whole = whole[0].times(gaussian[0], 1), whole[1].times(gaussian[1], 1)
        return max(self._epsilon(direction, delta) for direction in whole)

    def _epsilon(self, composed: _Composed, delta: float) -> float:
        half = self._size // 2
        # Points 0 to size / 2 - 1 of the transform are losses from 0 on.
        mass = np.maximum(irfft(composed.spectrum, self._size)[:half], 0.0)
        losses = self._losses[half:]
        wrapped = math.exp(min(0.0, composed.moment - self._tilt * losses[-1]))
        target = delta - wrapped + math.expm1(composed.finite)
        # delta(eps) = sum over losses t > eps of p(t) (1 - e^(eps - t)), for every eps on the grid
        above = np.cumsum(mass[::-1])[::-1]
        weighed = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
        deltas = above - np.exp(losses) * weighed
        first = int(np.argmax(deltas <= target))
        if deltas[first] > target:
            return math.inf
        if first == 0 or weighed[first] <= 0:
            return float(losses[first])
        between = math.log(max(above[first] - target, 1e-300) / weighed[first])
        return float(min(max(between, losses[first - 1]), losses[first]))

    def _cells(self, event: AnyEvent) -> tuple[Floats, Floats]:
        """Return what lies below, between and above the points, under P and under Q."""
        edges = self._losses[1:]
        if isinstance(event, PureEvent):  # randomized response
            chances = np.array([1.0, math.exp(-event.epsilon)]) / (1 + math.exp(-event.epsilon))
            at = np.searchsorted(edges, [event.epsilon, -event.epsilon], "right")
            p, q = np.zeros(edges.size + 1), np.zeros(edges.size + 1)
            np.add.at(p, at, chances)
            np.add.at(q, at, chances[::-1])
            return p, q
        sigma, rate = min(event.noise_multiplier, 1e100), event.sampling_rate
        # The sample x at which log(1 - q + q exp((2 x - 1) / 2 sigma^2)) reaches each point.
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.log(np.maximum(np.expm1(edges) + rate, 0.0) / rate)
        x = sigma * sigma * ratio + 0.5
        without, with_unit = _between(x / sigma), _between((x - 1) / sigma)
        return (1 - rate) * without + rate * with_unit, without

    def _both(self, p: Floats, q: Floats) -> tuple[_Composed, _Composed]:
        """Return the loss of P against Q, and of Q against P."""
        return self._dots(p, q), self._dots(q[::-1], p[::-1])

    def _dots(self, p: Floats, q: Floats) -> _Composed:
        """Move what lies between points to the points, keeping both probabilities."""
        inner, losses = p[1:-1], self._losses[1:-1]
        with np.errstate(invalid="ignore", over="ignore"):
            upper = (inner - q[1:-1] * np.exp(losses)) / -math.expm1(-self._step)
        upper = np.clip(np.nan_to_num(upper), 0.0, inner)
        mass = np.zeros(self._size)
        mass[1:-1] += inner - upper
        mass[2:] += upper
        mass[1] += p[0]
        held = np.flatnonzero(mass)
        exponents = self._tilt * self._losses[held] + np.log(mass[held])
        moment = exponents.max() + math.log(np.exp(exponents - exponents.max()).sum())
        spectrum = rfft(np.roll(mass, -(self._size // 2)))
        return _Composed(spectrum, math.log1p(-p[-1]), moment)


def _between(x: Floats) -> Floats:
    """Return what a standard normal value has below, between and above increasing points."""
    low, high = ndtr(x), ndtr(-x)
    # Differences of the smaller tail: right to the last digit in both.
    inner = np.where(x[:-1] > 0, high[:-1] - high[1:], low[1:] - low[:-1])
    result: Floats = np.concatenate([low[:1], inner, high[-1:]])
    return result
