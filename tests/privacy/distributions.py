"""Goodness of fit with a stated false-failure rate: 1e-6 for each comparison, seeds fixed."""

from __future__ import annotations

import numpy as np
from scipy import stats

ALPHA = 1e-6


def discrete_gaussian_pmf(scale: float, reach: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * scale**2))
    return x, weights / weights.sum()


def fits_pmf(samples: np.ndarray, x: np.ndarray, pmf: np.ndarray) -> bool:
    """Chi-square over all values expected at least 5 times; the rest is one bin, empty or not."""
    values, found = np.unique(samples, return_counts=True)
    counts = np.zeros(x.size, dtype=np.int64)
    inside = np.isin(values, x)
    counts[np.searchsorted(x, values[inside])] = found[inside]
    common = pmf * samples.size >= 5
    observed = np.append(counts[common], samples.size - counts[common].sum())
    expected = np.append(pmf[common], 1 - pmf[common].sum()) * samples.size
    kept = expected > 1e-9
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    return bool(stats.chi2.sf(statistic, max(kept.sum() - 1, 1)) > ALPHA)


def fits_normal(samples: np.ndarray, std: float) -> bool:
    """Variance by chi-square, shape by Kolmogorov-Smirnov, tails by a binomial count."""
    samples, n = samples.astype(float), samples.size
    square = (samples**2).sum() / std**2
    variance = min(stats.chi2.cdf(square, n), stats.chi2.sf(square, n)) > ALPHA / 2
    shape = stats.kstest(samples / std, "norm").pvalue > ALPHA
    far = int((np.abs(samples) > 3 * std).sum())
    rate = 2 * stats.norm.sf(3)
    tails = min(stats.binom.cdf(far, n, rate), stats.binom.sf(far - 1, n, rate)) > ALPHA / 2
    return bool(variance and shape and tails)
