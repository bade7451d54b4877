"""Attacks that a client works out from its own update alone."""

from __future__ import annotations

import numpy as np

from qsfl_flower.mechanisms.robust.attacks import (
    GaussianOptions,
    ReplayOptions,
    ScalingOptions,
    SignFlipOptions,
    SparseOptions,
    ZeroOptions,
)
from qsfl_flower.mechanisms.robust.core.attacks.base import Attack, Floats, View


class SignFlip(Attack, SignFlipOptions):
    r"""Send :math:`-s \Delta`: undo the training of others.

    Parameters
    ----------
    scale : float
        The factor s, > 0.
    """

    name = "sign-flip"

    def craft(self, view: View) -> Floats:
        """Return the negated update."""
        return -self.scale * view.own


class Scaling(Attack, ScalingOptions):
    r"""Send :math:`s \Delta`: take the mean over.

    Parameters
    ----------
    factor : float
        The factor s, not 0; 10, 100 and 1000 are usual.
    """

    name = "scaling"

    def craft(self, view: View) -> Floats:
        """Return the update enlarged."""
        return self.factor * view.own


class Gaussian(Attack, GaussianOptions):
    r"""Send noise :math:`\mathcal N(0, \sigma^2 I)` with :math:`\sigma = r \|\Delta\| / \sqrt d`.

    Parameters
    ----------
    norm_ratio : float
        Expected norm r of the noise as a multiple of the honest update's, > 0.
    """

    name = "gaussian"

    def craft(self, view: View) -> Floats:
        """Return noise."""
        size = view.own.size
        sigma = self.norm_ratio * float(np.linalg.norm(view.own)) / max(1.0, size**0.5)
        noise: Floats = sigma * view.rng.standard_normal(size)
        return noise


class Zero(Attack, ZeroOptions):
    """Send nothing but zeros: slow the others down, or ride for free."""

    name = "zero"

    def craft(self, view: View) -> Floats:
        """Return zeros."""
        return np.zeros_like(view.own)


class Replay(Attack, ReplayOptions):
    """Send the first update again and again, amplified: poison from a model long gone.

    In the first round there is nothing to repeat, and the client is honest.

    Parameters
    ----------
    scale : float
        Factor on the old update, > 0.
    """

    name = "replay"

    def craft(self, view: View) -> Floats:
        """Return the old update."""
        return view.own if view.first is None else self.scale * view.first


class Sparse(Attack, SparseOptions):
    """Turn round and amplify the largest coordinates and send nothing else.

    With `scale` 1 the norm stays below that of the honest update: a bound on the norm does not
    see it, and compression that keeps the largest coordinates keeps all of it.

    Parameters
    ----------
    share : float
        Share of the coordinates that are sent, 0 < share <= 1; at least one is.
    scale : float
        Factor on these, > 0; they change sign besides.
    """

    name = "sparse"

    def craft(self, view: View) -> Floats:
        """Return the poison; equal magnitudes are taken from the front."""
        count = max(1, round(self.share * view.own.size))
        chosen = np.argsort(-np.abs(view.own), kind="stable")[:count]
        poison = np.zeros_like(view.own)
        poison[chosen] = -self.scale * view.own[chosen]
        return poison
