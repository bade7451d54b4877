r"""Numerical composition of privacy losses, one event at a time.

The losses of independent releases add up as random variables, so their distributions convolve.
As Opacus' PRV accountant (tests compare them) this discretises each distribution so that its mean
is kept, which makes errors cancel; unlike it, it keeps the product of the Fourier transforms, so a
new event costs one transform instead of the whole history.

Releases without sampling need no discretisation: together they are one Gaussian.

References
----------
S. Gopi, Y. T. Lee, L. Wutschitz, "Numerical composition of differential privacy", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

from qsfl_flower.privacy.events import AnyEvent, PureEvent
from qsfl_flower.privacy.gaussian import check_delta, gaussian_epsilon
from qsfl_flower.privacy.rdp import ORDERS, epsilon_of, rdp_of

Floats = NDArray[np.float64]


class LossDistribution:
    """Distribution of the total privacy loss of many events on a grid.

    Parameters
    ----------
    events : iterable of Event or PureEvent
        What to compose, at least one. More may be added while their number stays within `room`.
    delta : float
        For which delta epsilon will be asked.
    room : int
        Releases that the grid is made for; at least as many as are composed.
    error : float
        Largest error of epsilon (a fifth of it relative to epsilon above 5), > 0; it is added to
        the result.

    Notes
    -----
    The width of the grid follows from the RDP bound of the events scaled to `room` releases, so
    that a loss outside it has a probability below delta / 1000. `Accountant` uses this up to an
    epsilon of 50; beyond, a bound says nothing anyway.
    """

    def __init__(
        self, events: Iterable[AnyEvent], delta: float, room: int, error: float = 0.005
    ) -> None:
        check_delta(delta)
        events = list(events)
        self._delta, self._lost, self._room = delta, delta / 1000, room
        rdp = sum((e.count * rdp_of(e) for e in events), np.zeros(ORDERS.size))
        rdp = rdp * (room / sum(e.count for e in events))
        self._error = error * max(1.0, epsilon_of(rdp, delta) / 5)
        self._rdp = np.zeros(ORDERS.size)
        self._releases = 0
        self._square = self._shift = 0.0
        self._spectrum: NDArray[np.complex128] | None = None
        half = self._half_width(rdp, events)
        self._step = self._error / math.sqrt(room * math.log(12 / self._lost) / 2)
        self._size = 2 * next_fast_len(math.ceil(half / self._step), real=True)
        for event in events:
            self.add(event)

    def fits(self, events: Sequence[AnyEvent]) -> bool:
        """Return whether the grid is fine and wide enough for these events too."""
        rdp = self._rdp + sum(e.count * rdp_of(e) for e in events)
        return (
            self._releases + sum(e.count for e in events) <= self._room
            and self._half_width(rdp, events) <= self._size // 2 * self._step
        )

    def _half_width(self, rdp: Floats, events: Sequence[AnyEvent]) -> float:
        single = (epsilon_of(rdp_of(e), self._lost / (8 * self._room)) for e in events)
        return 3 + max(epsilon_of(rdp, self._lost / 4), *single, 0.0)

    def add(self, event: AnyEvent) -> None:
        """Compose one more event."""
        self._releases += event.count
        self._rdp = self._rdp + event.count * rdp_of(event)
        if not isinstance(event, PureEvent) and event.sampling_rate == 1:
            self._square += event.count / event.noise_multiplier**2
            return
        mass = (
            self._pure(event.epsilon)
            if isinstance(event, PureEvent)
            else self._sampled(event.noise_multiplier, event.sampling_rate, event.count)
        )
        spectrum = rfft(np.roll(mass, -(self._size // 2))) ** event.count
        self._spectrum = spectrum if self._spectrum is None else self._spectrum * spectrum

    def epsilon(self) -> float:
        """Return an upper bound on epsilon: exact without sampling, else within twice `error`."""
        if self._spectrum is None:
            return gaussian_epsilon(math.sqrt(self._square), self._delta)
        spectrum, shift = self._spectrum, self._shift
        if self._square > 0:
            mu = math.sqrt(self._square)
            mass, mean = self._keeping_mean(ndtr((self._edges() - mu * mu / 2) / mu))
            spectrum, shift = spectrum * rfft(np.roll(mass, -(self._size // 2))), shift + mean
        mass = np.roll(irfft(spectrum, self._size), self._size // 2)
        losses = (np.arange(self._size) - self._size // 2) * self._step + shift
        # delta(eps) = sum over losses t > eps of p(t) (1 - e^(eps - t)), for every eps on the grid
        above = np.cumsum(mass[::-1])[::-1]
        weighed = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
        target = self._delta - self._lost
        deltas = above - np.exp(losses) * weighed
        first = int(np.argmax(deltas <= target))
        if deltas[first] > target or weighed[first] <= 0:
            return math.inf
        return max(0.0, math.log(max(above[first] - target, 1e-300) / weighed[first])) + self._error

    def _edges(self) -> Floats:
        """Return the borders of the grid's cells."""
        result: Floats = (np.arange(self._size + 1) - self._size // 2 - 0.5) * self._step
        return result

    def _sampled(self, sigma: float, rate: float, count: int) -> Floats:
        """Return the loss of the sampled Gaussian (Gopi et al., proposition B.1)."""
        edges = self._edges()
        inside = edges > math.log1p(-rate)
        z = np.log((np.expm1(edges[inside]) + rate) / rate)
        cdf = np.zeros(edges.size)
        cdf[inside] = rate * ndtr(z * sigma - 1 / (2 * sigma)) + (1 - rate) * ndtr(
            z * sigma + 1 / (2 * sigma)
        )
        mass, mean = self._keeping_mean(cdf)
        self._shift += count * mean
        return mass

    def _keeping_mean(self, cdf: Floats) -> tuple[Floats, float]:
        """Return the mass of each cell, and the shift that restores the mean."""
        mass = np.diff(cdf)
        share = cdf[-1] - cdf[0]
        mass = mass / share
        edges = self._edges()
        # Mean by parts; the trapezoidal rule is exact where the density vanishes at both ends.
        inner = (cdf - cdf[0]) / share
        mean = float(edges[-1] - np.trapezoid(inner, dx=self._step))
        centres = (np.arange(self._size) - self._size // 2) * self._step
        return mass, mean - float(mass @ centres)

    def _pure(self, epsilon: float) -> Floats:
        """Return the loss of randomised response, rounded up."""
        mass = np.zeros(self._size)
        centre = self._size // 2
        chance = 1 / (1 + math.exp(-epsilon))
        mass[centre + math.ceil(epsilon / self._step)] = chance
        mass[centre - math.floor(epsilon / self._step)] = 1 - chance
        return mass
