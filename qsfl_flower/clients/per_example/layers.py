"""The fast engine: one forward and one backward pass, and a rule for each kind of layer.

Every layer's input a and the gradient g of its output give each example's gradient, its norm and,
once the factors are known, the weighted sum. The gradient of an output is taken where it leaves
the layer, so that later changes in place do not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from qsfl_flower.clients.per_example.contributions import Contribution, Rows
from qsfl_flower.clients.per_example.rules import Batch, Rule, rule_of
from qsfl_flower.clients.per_example.work import (
    ClippedSum,
    Factors,
    NotApplicable,
    Work,
    attributes_kept,
    losses_of,
    outputs_of,
    trained,
)


@dataclass(frozen=True)
class _Call:
    """One use of a layer."""

    layer: nn.Module
    rule: Rule
    entered: Tensor
    version: int
    left: GradientEdge


class ByLayer:
    """Rules for layers; see the module."""

    name = "by layer"

    def __init__(self) -> None:
        self._pattern: list[float] | None = None
        self._batch = Batch()

    def sum(self, work: Work, clip_norm: float) -> ClippedSum:
        """Return the clipped sum of a batch.

        Raises
        ------
        NotApplicable
            If a layer has no rule, or is not used as its rule expects.
        """
        with _watched(work.model) as calls, torch.enable_grad(), attributes_kept(work.model):
            outputs = outputs_of(work.model, work.batch)
            total = losses_of(work.loss, outputs, work.target).sum() / work.copies
            seen = list(calls)  # a checkpoint calls its layers again on the way back
            edges = [call.left for call in seen]
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                total, edges, allow_unused=True
            )
        pattern = [len(call.entered) / work.examples for call in seen]
        self._pattern = self._pattern or pattern
        if pattern != self._pattern:  # rows are sent to layers according to what is in them
            raise NotApplicable("a layer is called with another number of rows each time")
        self._batch.begin(work.examples)
        uses: dict[Tensor, list[Contribution]] = defaultdict(list)
        for call, gradient in zip(seen, gradients, strict=True):
            if gradient is None:
                continue
            if call.entered._version != call.version:
                raise NotApplicable("an input was changed in place")
            found = call.rule(call.layer, call.entered, gradient, self._batch)
            for parameter, contribution in found.items():
                uses[parameter].append(contribution)
        return _combined(trained(work.model), uses, work.examples, clip_norm)


def _combined(
    parameters: list[nn.Parameter],
    uses: dict[Tensor, list[Contribution]],
    examples: int,
    clip_norm: float,
) -> ClippedSum:
    whole = {
        p: own[0] if len(own) == 1 else Rows(torch.stack([c.rows() for c in own]).sum(0))
        for p, own in uses.items()
        if p.requires_grad
    }
    squares = [contribution.squares() for contribution in whole.values()]
    norms = torch.stack(squares).sum(0).sqrt() if squares else torch.zeros(examples).double()
    factors = Factors(norms, clip_norm)
    gradients = [
        whole[p].weighted(factors).view_as(p) if p in whole else torch.zeros_like(p)
        for p in parameters
    ]
    return ClippedSum(gradients, norms)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[_Call]]:
    """Record the uses of all layers with parameters of their own."""
    calls: list[_Call] = []

    def hook(layer: nn.Module, inputs: tuple[Any, ...], named: Any, output: Any) -> Any:
        if named or len(inputs) != 1 or not isinstance(output, Tensor):
            raise NotApplicable(f"{type(layer).__name__} takes more than one tensor")
        if not output.requires_grad:
            return output
        if output._is_view():  # what changes it in place would change the whole behind it
            output = output.clone()
        entered = inputs[0]
        edge = get_gradient_edge(output)
        calls.append(_Call(layer, rules[layer], entered.detach(), entered._version, edge))
        return output

    rules = {
        layer: rule_of(layer)
        for layer in model.modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    }
    handles = [layer.register_forward_hook(hook, prepend=True, with_kwargs=True) for layer in rules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
