"""What a flagged update looks like, in the words of `mechanisms.robust.core.attacks`."""

from __future__ import annotations

import math

from qsfl_flower.mechanisms.detection.core.detector import Floats
from qsfl_flower.mechanisms.detection.core.features import NAMES

GAUSSIAN = math.sqrt(2 / math.pi)
"""Density of normal noise: its mean magnitude by its root mean square."""

FAR = 3.0
"""Robust deviations from which a density is unusual for the cohort."""


def kind_of(values: Floats, deviations: Floats) -> str:
    r"""Name the attack that an update's features are a fingerprint of.

    The first that fits of: ``zero`` (a tenth of the median norm or less), ``sparse`` (density below
    0.3, and unusual), ``sign-flip`` (cosine to the centre below -0.2), ``gaussian`` (cosine below
    0.2 in magnitude, and the density :math:`\sqrt{2 / \pi}` of normal noise), ``scaling`` (three
    times the median norm or more).

    Parameters
    ----------
    values, deviations : ndarray of float64, shape (len(NAMES),)
        The update's features, see `Table`, and their robust deviations from the cohort's medians.

    Returns
    -------
    str
        The name; empty if none fits. It is a guess for people who read logs, and decides nothing:
        honest updates on unusual data can look like any of these.
    """
    at = dict(zip(NAMES, values.tolist(), strict=True))
    unusual = deviations[NAMES.index("density")]
    if at["norm"] <= math.log(0.1):
        return "zero"
    if at["density"] < 0.3 and unusual < -FAR:
        return "sparse"
    if at["centre_cosine"] < -0.2:
        return "sign-flip"
    if abs(at["centre_cosine"]) < 0.2 and abs(at["density"] - GAUSSIAN) < 0.02:
        return "gaussian"
    return "scaling" if at["norm"] >= math.log(3.0) else ""
