"""Personal models: what a device learns on top of, or beside, the common model.

Functions of named tensors and a loss; torch is used for its derivatives, Flower for nothing.
"""

from __future__ import annotations

from qsfl_flower.personalization.meta import (
    adapt,
    hessian_free_gradient,
    meta_gradient,
    plain_gradient,
)
from qsfl_flower.personalization.settings import METHODS, Personalization
from qsfl_flower.personalization.split import few_shots, support_and_query

__all__ = [
    "METHODS",
    "Personalization",
    "adapt",
    "few_shots",
    "hessian_free_gradient",
    "meta_gradient",
    "plain_gradient",
    "support_and_query",
]
