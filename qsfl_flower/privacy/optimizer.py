r"""Choose clip norm, rounds, cohort and noise schedule for a budget, from what is public.

A proxy run without privacy (on public data, or a run that was released) tells how long updates are,
how far clients agree, and what each round gains. Under noise a round is worth the share

.. math:: e_r = \frac{s_r^2}{s_r^2 + v_r + d (z_r C / n)^2}

of a round without, where s is the norm of the mean of the clipped updates, v the variance of a mean
over n clients, and the last term the noise of the mean: the best step along a noisy direction
gains that much (in a quadratic model). The plan is chosen whose rounds are worth most.

What it does not know: clipping turns the mean away from clients with long updates, and private
clients may differ from the proxy. Runs on the private data that try several plans cost privacy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.schedule import NoiseSchedule

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIOS = (0.7, 0.5)
"""Noise of the last round over that of the first, besides 1."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """What a run without privacy has shown.

    Parameters
    ----------
    norms : sequence of sequence of float
        For each round the L2 norms of the clients' updates, at least one and all > 0.
    agreement : sequence of float
        For each round the norm of their mean over the mean of their norms, in (0, 1].
    scores : sequence of float
        After each round what is to be as large as possible (accuracy).
    """

    norms: Sequence[Sequence[float]]
    agreement: Sequence[float]
    scores: Sequence[float]

    def __post_init__(self) -> None:
        rounds = {len(self.norms), len(self.agreement), len(self.scores)}
        good = all(len(n) and min(n) > 0 for n in self.norms)
        good &= all(0 < a <= 1 + 1e-9 for a in self.agreement)
        if len(rounds) != 1 or not self.norms or not good:
            raise ConfigError(
                "a proxy run needs, for the same rounds, norms > 0, agreements in (0, 1] and scores"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the plan has to keep within.

    Parameters
    ----------
    clients : int
        Clients of the federation, >= 1.
    parameters : int
        Of the model, d >= 1.
    epsilon, delta : float
        Budget of the whole run.
    rounds : int
        Most rounds, >= 1.
    sampling_rate : float
        Largest share of the clients that can take part in a round, in (0, 1].
    """

    clients: int
    parameters: int
    epsilon: float
    delta: float
    rounds: int
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        counts = min(self.clients, self.parameters, self.rounds) >= 1
        if not (counts and 0 < self.sampling_rate <= 1):
            raise ConfigError(
                "limits need clients, parameters and rounds >= 1 and a sampling_rate in (0, 1], "
                f"found {self}"
            )


@dataclass(frozen=True)
class Choice:
    """A plan, and why it was chosen.

    Parameters
    ----------
    clip_norm, sampling_rate : float
        For `Clip` and `CentralDP`.
    schedule : NoiseSchedule
        Noise multiplier of every round.
    score : float
        What the proxy reached after as many rounds as the plan's are worth.
    worth : float
        Rounds without noise that the plan is worth.
    because : tuple of str
        The explanation, one sentence each.
    """

    clip_norm: float
    sampling_rate: float
    schedule: NoiseSchedule
    score: float
    worth: float
    because: tuple[str, ...] = ()


def choose(proxy: Proxy, limits: Limits) -> Choice:
    """Return the plan whose noisy rounds are worth most.

    Parameters
    ----------
    proxy : Proxy
        From public data or released results.
    limits : Limits
        Budget and constraints.

    Raises
    ------
    ConfigError
        If no noise reaches the budget.
    """
    lengths = np.concatenate([np.asarray(n) for n in proxy.norms])
    clips = np.quantile(lengths, QUANTILES)
    # Calibration is what takes time: other shapes of the noise are tried for the best plan alone.
    plans = [
        _plan(proxy, limits, clip, rate, _schedule(limits, rate, rounds, 1.0))
        for rate in _rates(limits)
        for rounds in _counts(min(limits.rounds, len(proxy.norms)))
        for clip in clips
    ]
    flat = max(plans, key=lambda plan: plan.worth)
    rate, rounds = flat.sampling_rate, flat.schedule.rounds
    for ratio in RATIOS if rounds > 1 else ():
        schedule = _schedule(limits, rate, rounds, ratio)
        plans += [_plan(proxy, limits, clip, rate, schedule) for clip in clips]
    best = max(plans, key=lambda plan: plan.worth)
    return Choice(
        best.clip_norm,
        best.sampling_rate,
        best.schedule,
        best.score,
        best.worth,
        _because(proxy, limits, best, plans),
    )


def _plan(
    proxy: Proxy, limits: Limits, clip: float, rate: float, schedule: NoiseSchedule
) -> Choice:
    worth = float(np.sum(_worth(proxy, limits, clip, rate, schedule)))
    rounds = np.arange(len(proxy.scores) + 1)
    score = float(np.interp(worth, rounds, [proxy.scores[0], *proxy.scores]))
    return Choice(float(clip), rate, schedule, score, worth)


def _worth(
    proxy: Proxy, limits: Limits, clip: float, rate: float, schedule: NoiseSchedule
) -> NDArray[np.float64]:
    """Return for each round how much of a round without noise it is worth."""
    cohort = rate * limits.clients
    found = []
    for at, (norms, agreement) in enumerate(
        zip(proxy.norms[: schedule.rounds], proxy.agreement, strict=False), start=1
    ):
        clipped = np.minimum(norms, clip)
        signal = (agreement * clipped.mean()) ** 2
        spread = max(0.0, float((clipped**2).mean()) - signal) / cohort
        noise = limits.parameters * (schedule.at(at) * clip / cohort) ** 2
        found.append(signal / (signal + spread + noise))
    return np.array(found)


@lru_cache(maxsize=256)
def _schedule(limits: Limits, rate: float, rounds: int, ratio: float) -> NoiseSchedule:
    return NoiseSchedule.within(
        limits.epsilon, limits.delta, rounds, sampling_rate=rate, last_over_first=ratio
    )


def _rates(limits: Limits) -> list[float]:
    least = min(limits.sampling_rate, max(1 / limits.clients, limits.sampling_rate / 100))
    return sorted({float(q) for q in np.geomspace(least, limits.sampling_rate, 4)})


def _counts(most: int) -> list[int]:
    return sorted({round(float(c)) for c in np.geomspace(1, most, 6)})


def _because(
    proxy: Proxy, limits: Limits, best: Choice, plans: Sequence[Choice]
) -> tuple[str, ...]:
    rounds = best.schedule.rounds
    every = np.concatenate([np.asarray(n) for n in proxy.norms])
    share = float((every > best.clip_norm).mean())
    cohort = best.sampling_rate * limits.clients
    noise = best.schedule.at(rounds) * math.sqrt(limits.parameters) / cohort

    def without(what: str, same: Sequence[Choice]) -> str:
        other = max(same, key=lambda plan: plan.worth)
        return f"{what}: {other.worth:.3g} rounds' worth instead of {best.worth:.3g}"

    told = [
        f"{rounds} rounds with {cohort:g} of {limits.clients} clients each are worth "
        f"{best.worth:.3g} rounds without noise, after which the proxy had {best.score:.4g}",
        f"clip norm {best.clip_norm:.4g}: {share:.0%} of the proxy's updates are longer; a larger "
        "one makes the noise grow faster than the signal, a smaller one the reverse",
        f"noise multiplier {best.schedule.at(1):.4g} in the first round, "
        f"{best.schedule.at(rounds):.4g} in the last, whose noise is {noise:.3g} clip norms long",
    ]
    whole = [p for p in plans if p.sampling_rate == limits.sampling_rate]
    if best.sampling_rate < limits.sampling_rate and whole:
        told.append(without("the largest cohort costs more noise than it averages out", whole))
    longest = max(p.schedule.rounds for p in plans)
    if rounds < longest:
        told.append(
            without(
                f"{longest} rounds spread the budget too thin",
                [p for p in plans if p.schedule.rounds == longest],
            )
        )
    if best.worth < 1:
        told.append(
            "less than one round's worth: the model learns next to nothing; allow a larger "
            "epsilon, fewer parameters, or protect records instead of clients"
        )
    return tuple(told)
