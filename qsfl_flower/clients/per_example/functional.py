"""Engines without rules: ``torch.func.vmap``, and one example after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qsfl_flower.clients.per_example.work import (
    ClippedSum,
    Factors,
    Work,
    add_up,
    attributes_kept,
    buffers_kept,
    losses_one_by_one,
    outputs_of,
    square_norms,
    trained,
)

_NUMBERS = 1 << 26
"""Gradients of single examples that are in memory at a time hold at most so many numbers."""


class OneByOne:
    """Ordinary autograd on each example alone: slow, and right by definition."""

    name = "one by one"

    def sum(self, work: Work, clip_norm: float) -> ClippedSum:
        """Return the clipped sum of a batch."""
        norms, totals = (
            [],
            [
                torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32))
                for p in trained(work.model)
            ],
        )
        for gradients in single_gradients(work):
            squares = torch.stack([square_norms(g[None]) for g in gradients])
            norms.append(squares.sum(0).sqrt())
            factor = Factors(norms[-1], clip_norm)
            for total, gradient in zip(totals, gradients, strict=True):
                total += factor.total(gradient[None])
        return ClippedSum(totals, torch.cat(norms))


def single_gradients(work: Work) -> Iterator[list[Tensor]]:
    """Return the gradient of one example after the other, each from the same state of the model.

    It goes by ``backward``, since reentrant checkpoints know no other way.
    """
    parameters = trained(work.model)
    before = [p.grad for p in parameters]
    try:
        for example in range(work.examples):
            for p in parameters:
                p.grad = None
            with torch.enable_grad(), buffers_kept(work.model):
                _loss(work.part(example, example + 1)).backward()  # type: ignore[no-untyped-call]
            yield [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def _loss(one: Work) -> Tensor:
    outputs = outputs_of(one.model, one.batch)
    if one.copies == 1:
        return one.loss(outputs, one.target)
    return torch.stack(losses_one_by_one(one.loss, outputs, one.target)).mean()


class ByVmap:
    """``torch.func``: all examples at once, by a rule for every operation."""

    name = "torch.func"

    def sum(self, work: Work, clip_norm: float) -> ClippedSum:
        """Return the clipped sum of a batch."""
        together = max(1, _NUMBERS // sum(p.numel() for p in trained(work.model)))
        parts = [work.part(s, s + together) for s in range(0, work.examples, together)]
        with warnings.catch_warnings():  # an operation that vmap takes apart
            warnings.filterwarnings("ignore", "There is a performance drop")
            return add_up([self._part(part, clip_norm) for part in parts])

    def _part(self, work: Work, clip_norm: float) -> ClippedSum:
        parameters = trained(work.model)

        def loss(chosen: list[Tensor], rows: Any, target: Tensor) -> Tensor:
            with _in_place_of(work.model, dict(zip(parameters, chosen, strict=True))):
                return _loss(Work(work.model, work.loss, rows, target, work.copies))

        rows, target = pytree.tree_map(
            lambda t: t.view(-1, work.copies, *t.shape[1:]), (work.batch, work.target)
        )
        each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")
        with attributes_kept(work.model):
            gradients = each([p.detach() for p in parameters], rows, target)
        norms = torch.stack([square_norms(g) for g in gradients]).sum(0).sqrt()
        factors = Factors(norms, clip_norm)
        return ClippedSum([factors.total(g) for g in gradients], norms)


@contextmanager
def _in_place_of(model: nn.Module, chosen: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters, wherever the model has them.

    `torch.func.functional_call` leaves tensors of its own in a layer that is used twice.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module in model.modules():
            own = module._parameters
            new = {name: chosen[p] for name, p in own.items() if p in chosen}
            if new:
                changed.append((own, dict(own)))
                own.update(new)  # type: ignore[arg-type]
            if isinstance(module, nn.RNNBase):
                names = module._flat_weights_names
                changed.append((vars(module), {"_flat_weights": module._flat_weights}))
                vars(module)["_flat_weights"] = [own[name] for name in names]
        yield
    finally:
        for now, then in changed:
            now.update(then)
