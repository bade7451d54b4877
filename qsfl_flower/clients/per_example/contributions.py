r"""What one use of a parameter adds to each example's gradient, in the form that is cheapest.

Of a dense layer's gradient :math:`\sum_t g_t a_t^T` over the positions t of an example, the norm
and the weighted sum follow from a and g alone ("ghost norm"), without a matrix per example.

References
----------
I. Goodfellow, "Efficient per-example gradient computations", 2015. arXiv:1510.01799.
X. Li, F. Tramer, P. Liang, T. Hashimoto, "Large language models can be strong differentially
private learners", 2022. arXiv:2110.05679.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qsfl_flower.clients.per_example.work import Factors, square_norms


class Contribution(Protocol):
    """Gradients of single examples, shape (B, *parameter), perhaps not formed."""

    def squares(self) -> Tensor:
        """Return each example's sum of squares, float64, shape (B,)."""

    def weighted(self, factors: Factors) -> Tensor:
        """Return the sum over the examples, each times its factor."""

    def rows(self) -> Tensor:
        """Return the gradients themselves."""


@dataclass(frozen=True)
class Rows:
    """Gradients that have been formed.

    Parameters
    ----------
    gradients : Tensor
        Shape (B, *axes of the parameter).
    order : tuple of int or None
        The parameter's axes among those, if they are in another order.
    """

    gradients: Tensor
    order: tuple[int, ...] | None = None

    def squares(self) -> Tensor:
        """Sum over all axes but the first; long rows axis by axis, which is more exact."""
        return square_norms(self.gradients)

    def weighted(self, factors: Factors) -> Tensor:
        """Combine the rows."""
        total = factors.total(self.gradients)
        return total if self.order is None else total.permute(self.order)

    def rows(self) -> Tensor:
        """Return them."""
        if self.order is None:
            return self.gradients
        return self.gradients.permute(0, *(1 + axis for axis in self.order))


_PER_NUMBER = 24
"""Multiplications that take as long as writing and reading one number of a gradient."""
_CANCELLED = 1e-3
"""Below this share of its bound a square norm from Gram matrices has lost too many digits."""


@dataclass(frozen=True)
class Outer:
    """A sum of outer products over positions: weights of dense layers and convolutions.

    Parameters
    ----------
    entered, gradient : Tensor
        Shapes (B, positions, inputs) and (B, positions, outputs).
    shape : torch.Size
        Of the parameter; it holds outputs times inputs numbers.
    """

    entered: Tensor
    gradient: Tensor
    shape: torch.Size

    @staticmethod
    def pays(positions: int, inputs: int, outputs: int) -> bool:
        """Tell whether Gram matrices are cheaper than the gradients of single examples."""
        return positions**2 * (inputs + outputs) < _PER_NUMBER * inputs * outputs

    def squares(self) -> Tensor:
        """Multiply Gram matrices; examples in which positions cancel are computed directly."""
        a, g = self.entered, self.gradient
        if a.shape[1] == 1:
            return square_norms(a) * square_norms(g)
        found = ((a @ a.mT) * (g @ g.mT)).sum((1, 2), dtype=torch.float64)
        sizes = torch.linalg.vector_norm(a, dim=2) * torch.linalg.vector_norm(g, dim=2)
        cancelled = found < _CANCELLED * sizes.double().sum(1).square()
        if bool(cancelled.any()):
            found[cancelled] = square_norms(g[cancelled].mT @ a[cancelled])
        return found

    def weighted(self, factors: Factors) -> Tensor:
        """Multiply once for all examples."""
        left, right = factors.scaled(self.gradient), factors.cleaned(self.entered)
        return (left.flatten(0, 1).T @ right.flatten(0, 1)).view(self.shape)

    def rows(self) -> Tensor:
        """Multiply for each example."""
        return (self.gradient.mT @ self.entered).view(-1, *self.shape)


@dataclass(frozen=True)
class Lookup:
    """Rows of a table: an embedding.

    Parameters
    ----------
    layer : torch.nn.Embedding
        The table.
    index, gradient : Tensor
        Shapes (B, positions) and (B, positions, width); zero where nothing is trained.
    """

    layer: nn.Embedding
    index: Tensor
    gradient: Tensor

    def squares(self) -> Tensor:
        """Add up what goes to the same row of the table (Opacus' ghost norm)."""
        from opacus.grad_sample.embedding_norm_sample import compute_embedding_norm_sample

        norms = compute_embedding_norm_sample(self.layer, [self.index], self.gradient)
        return norms[self.layer.weight].double().square()  # type: ignore[no-any-return]

    def weighted(self, factors: Factors) -> Tensor:
        """Add up over all examples."""
        scaled = factors.scaled(self.gradient)
        total = scaled.new_zeros(self.layer.weight.shape)
        return total.index_add_(0, self.index.flatten(), scaled.flatten(0, 1))

    def rows(self) -> Tensor:
        """Return a table for each example, by Opacus' rule."""
        from opacus.grad_sample.embedding import compute_embedding_grad_sample

        rows = compute_embedding_grad_sample(self.layer, [self.index], self.gradient)
        return rows[self.layer.weight]  # type: ignore[no-any-return]
