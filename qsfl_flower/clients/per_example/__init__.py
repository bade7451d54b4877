"""Sums of clipped gradients of single examples: the heart of DP-SGD.

Three engines compute them: by layer (`layers`, with the rules of Opacus), by ``torch.func.vmap``,
and one example after the other. A model gets the fastest one that agrees with the last on made-up
records (`choice`); a model that mixes examples or remembers them is refused (`probe`).
"""

from qsfl_flower.clients.per_example.choice import (
    ClippedGradients,
    clipped_gradient_sum,
    made_up,
)
from qsfl_flower.clients.per_example.work import ClippedSum, Loss

__all__ = ["ClippedGradients", "ClippedSum", "Loss", "clipped_gradient_sum", "made_up"]
