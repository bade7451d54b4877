"""What is differentiated, and what every engine needs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

Loss = Callable[[Any, Tensor], Tensor]
"""Takes the model's outputs for a batch and the targets, returns one number."""


class NotApplicable(Exception):
    """The engine has no way to treat the model."""


@dataclass(frozen=True)
class ClippedSum:
    """What a batch contributes.

    Parameters
    ----------
    gradients : list of Tensor
        For each trainable parameter the sum over the examples of their clipped gradients.
    norms : Tensor
        Norm of each example's whole gradient before clipping, shape (B,).
    """

    gradients: list[Tensor]
    norms: Tensor


@dataclass(frozen=True)
class Work:
    """A batch, and what to differentiate.

    Parameters
    ----------
    model : torch.nn.Module
        Treats each row of a batch for itself.
    loss : Loss
        Of a batch of one row.
    batch : Tensor, tuple or dict of Tensor
        The model's argument, or its arguments; the first axis counts rows.
    target : Tensor
        One per row.
    copies : int
        Consecutive rows that belong to one example; its gradient is the mean over them.
    """

    model: nn.Module
    loss: Loss
    batch: Any
    target: Tensor
    copies: int = 1

    @property
    def examples(self) -> int:
        """Number of examples, each of `copies` rows."""
        return len(self.target) // self.copies

    def part(self, start: int, stop: int) -> Work:
        """Return the work on some of the examples."""
        rows = slice(start * self.copies, stop * self.copies)
        batch = pytree.tree_map(lambda t: t[rows], self.batch)
        return Work(self.model, self.loss, batch, self.target[rows], self.copies)


def outputs_of(model: nn.Module, batch: Any) -> Any:
    """Call the model on a batch: one tensor, positional arguments, or named ones.

    What is no tensor in the outputs, such as the cache of a language model, becomes None.
    """
    if isinstance(batch, Mapping):
        outputs = model(**batch)
    else:
        outputs = model(*batch) if isinstance(batch, tuple) else model(batch)
    # What a language model remembers for the next token is nothing that can be taken row by row.
    return pytree.tree_map(lambda part: part if isinstance(part, Tensor) else None, outputs)


def losses_of(loss: Loss, outputs: Any, target: Tensor) -> Tensor:
    """Return the loss of each row, shape (B,)."""
    if loss is functional.cross_entropy and outputs.dim() == 2 and target.dim() == 1:
        return functional.cross_entropy(outputs, target, reduction="none")
    leaves, form = pytree.tree_flatten(outputs)
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]
    if any(leaves[place].dim() == 0 or len(leaves[place]) != len(target) for place in places):
        raise NotApplicable("an output has no row for each example")

    def single(rows: list[Tensor], label: Tensor) -> Tensor:
        alone = dict(zip(places, rows, strict=True))
        filled = [alone[k][None] if k in alone else None for k in range(len(leaves))]
        return loss(pytree.tree_unflatten(filled, form), label[None])

    try:
        found: Tensor = torch.func.vmap(single, randomness="different")(
            [leaves[place] for place in places], target
        )
    except RuntimeError:  # an operation of the loss that vmap does not know
        found = torch.stack(losses_one_by_one(loss, outputs, target))
    return found


def losses_one_by_one(loss: Loss, outputs: Any, target: Tensor) -> list[Tensor]:
    """Return the loss of each row, computed from that row's outputs alone."""

    def single(row: slice) -> Tensor:
        return loss(rows_of(outputs, row), target[row])

    return [single(slice(k, k + 1)) for k in range(len(target))]


def rows_of(outputs: Any, rows: slice) -> Any:
    """Return some rows of all outputs; those without rows stay as they are."""
    return pytree.tree_map(lambda t: t[rows] if t is not None and t.dim() else t, outputs)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, each once."""
    return [p for p in model.parameters() if p.requires_grad]


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put plain attributes back afterwards, such as weights that a hook computes from others."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, then in before:
            now.clear()
            now.update(then)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put buffers and plain attributes back afterwards."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with attributes_kept(model):
            yield
    finally:
        with torch.no_grad():
            for now, then in before:
                now.copy_(then)


_COLUMNS = 512


def square_norms(rows: Tensor) -> Tensor:
    """Return each row's sum of squares in float64; no run of more than 512 is added in float32."""
    flat = rows.reshape(len(rows), -1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    whole = flat.shape[1] // _COLUMNS * _COLUMNS
    if whole == 0:
        alone: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return alone.double().square_()
    runs: Tensor = torch.linalg.vector_norm(flat[:, :whole].reshape(len(flat), -1, _COLUMNS), dim=2)
    squares = runs.double().square_().sum(1)
    return squares if whole == flat.shape[1] else squares + square_norms(flat[:, whole:])


class Factors:
    """What each example is multiplied by: 0 if its gradient is not finite.

    Norms are right to about one part in a million, and the bound leaves room for it.

    Parameters
    ----------
    norms : Tensor
        Shape (B,), float64.
    clip_norm : float
        The bound C.
    """

    def __init__(self, norms: Tensor, clip_norm: float) -> None:
        finite = norms.isfinite()
        values = (clip_norm * (1 - 2**-21) / norms).clamp_(max=1.0)
        self._lost = None if bool(finite.all()) else ~finite
        self._values = values if self._lost is None else values.masked_fill_(self._lost, 0.0)
        self._single = self._values.float()

    def total(self, rows: Tensor) -> Tensor:
        """Return the sum of the rows, each times its factor."""
        flat = self.cleaned(rows.reshape(len(rows), -1))
        if flat.dtype is torch.float64:
            return (self._values @ flat).view(rows.shape[1:])
        return (self._single @ flat.float()).view(rows.shape[1:])

    def scaled(self, rows: Tensor) -> Tensor:
        """Return each row times its factor."""
        values = self._values if rows.dtype is torch.float64 else self._single
        return self.cleaned(rows) * values.view(-1, *[1] * (rows.dim() - 1))

    def cleaned(self, rows: Tensor) -> Tensor:
        """Return the rows, zeros in place of those with factor 0, which may hold anything."""
        if self._lost is None:
            return rows
        return rows.masked_fill(self._lost.view(-1, *[1] * (rows.dim() - 1)), 0.0)


def add_up(parts: Sequence[ClippedSum]) -> ClippedSum:
    """Return the sum of a batch from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    gradients = [
        torch.stack(same).sum(0) for same in zip(*(p.gradients for p in parts), strict=True)
    ]
    return ClippedSum(gradients, torch.cat([p.norms for p in parts]))
