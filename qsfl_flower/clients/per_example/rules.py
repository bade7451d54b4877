"""How each kind of layer contributes: our own rules where they are faster, Opacus' for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.per_example.contributions import Contribution, Lookup, Outer, Rows
from qsfl_flower.clients.per_example.work import NotApplicable


class Batch:
    """What rules share: the number of examples, and memory that is kept from step to step.

    The system zeroes every new page, which takes longer than the arithmetic of a small model.
    """

    examples = 1

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._taken = 0

    def begin(self, examples: int) -> None:
        """Give all memory back."""
        self.examples, self._taken = examples, 0

    def memory(self, like: Tensor, *shape: int) -> Tensor:
        """Return a tensor that holds anything, for this step alone."""
        size = math.prod(shape)
        if size > _LARGE:
            return like.new_empty(shape)
        if self._taken == len(self._kept):
            self._kept.append(like.new_empty(size))
        kept = self._kept[self._taken]
        if kept.numel() < size or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._kept[self._taken] = like.new_empty(size)
        self._taken += 1
        return kept[:size].view(shape)


_LARGE = 1 << 22
"""Numbers, 16 MiB: more is not kept."""

Rule = Callable[[Any, Tensor, Tensor, Batch], dict[Tensor, Contribution]]
"""Takes a layer, its input, the gradient of its output, and the batch."""


def rule_of(layer: nn.Module) -> Rule:
    """Return the rule for a kind of layer; subclasses may compute something else.

    Raises
    ------
    NotApplicable
        If there is none, or the layer computes its weights from other parameters.
    """
    own = {name for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
    rule = _RULES.get(type(layer))
    if rule is not None:
        if own <= {"weight", "bias"}:
            return rule
    elif (sampler := _opacus_rules().get(type(layer))) is not None:
        return _by_opacus(sampler)
    raise NotApplicable(f"no rule for {type(layer).__name__} with {', '.join(sorted(own))}")


def _opacus_rules() -> dict[type[nn.Module], Any]:
    """Load Opacus only for models that need it: it takes over a second."""
    from opacus.grad_sample import GradSampleModule

    return GradSampleModule.GRAD_SAMPLERS  # type: ignore[no-any-return]


def _by_opacus(sampler: Any) -> Rule:
    def rule(
        layer: nn.Module, entered: Tensor, gradient: Tensor, batch: Batch
    ) -> dict[Tensor, Contribution]:
        found = sampler(layer, [_wide(entered)], _wide(gradient))
        return {p: Rows(_added(rows, batch.examples)) for p, rows in found.items()}

    return rule


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """Split the first axis: rows of one example follow each other."""
    if len(rows) % examples:
        raise NotApplicable(f"{len(rows)} rows are no multiple of {examples} examples")
    return rows.reshape(examples, -1, *rows.shape[1:])


def _added(rows: Tensor, examples: int) -> Tensor:
    """Add up the rows of each example."""
    return rows if len(rows) == examples else _by_example(rows, examples).sum(1)


def _wide(values: Tensor) -> Tensor:
    """Return half-precision values in float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _dense(
    layer: nn.Linear, entered: Tensor, gradient: Tensor, batch: Batch
) -> dict[Tensor, Contribution]:
    examples = batch.examples
    a = _by_example(_wide(entered), examples).reshape(examples, -1, entered.shape[-1])
    g = _by_example(_wide(gradient), examples).reshape(examples, -1, gradient.shape[-1])
    found: dict[Tensor, Contribution] = {}
    if layer.weight.requires_grad:
        outer = Outer(a, g, layer.weight.shape)
        positions = a.shape[1]
        cheap = positions == 1 or Outer.pays(positions, a.shape[2], g.shape[2])
        found[layer.weight] = outer if cheap else Rows(outer.rows())
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = Rows(g.sum(1) if g.shape[1] > 1 else g[:, 0])
    return found


_TOGETHER = 8
"""Pictures whose patches are in memory at a time; more would leave the cache."""


def _convolution(
    layer: nn.Conv2d, entered: Tensor, gradient: Tensor, batch: Batch
) -> dict[Tensor, Contribution]:
    found: dict[Tensor, Contribution] = {}
    gradient, examples = _wide(gradient), batch.examples
    if layer.weight.requires_grad:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        edges = layer._reversed_padding_repeated_twice
        entered = _wide(entered)
        padded = functional.pad(entered, edges, mode) if any(edges) else entered
        inputs, outputs = layer.weight[0].numel(), layer.out_channels
        positions = gradient[0, 0].numel()
        if layer.groups != 1 or layer.dilation != (1, 1):
            found[layer.weight] = Rows(_added(_grouped(layer, padded, gradient), examples))
        elif len(gradient) == examples and Outer.pays(positions, inputs, outputs):
            patches = functional.unfold(padded, layer.kernel_size, stride=layer.stride)
            found[layer.weight] = Outer(patches.mT, gradient.flatten(2).mT, layer.weight.shape)
        else:
            weight, order = _in_parts(layer, padded, gradient, batch)
            found[layer.weight] = Rows(_added(weight, examples), order)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = Rows(_added(gradient.sum((2, 3)), examples))
    return found


def _grouped(layer: nn.Conv2d, padded: Tensor, gradient: Tensor) -> Tensor:
    patches = functional.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)
    left = gradient.reshape(len(gradient), layer.groups, -1, patches.shape[2])
    right = patches.view(len(patches), layer.groups, -1, patches.shape[2])
    return (left @ right.mT).view(len(left), *layer.weight.shape)


def _in_parts(
    layer: nn.Conv2d, padded: Tensor, gradient: Tensor, batch: Batch
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Multiply with patches a few pictures at a time; return the axes' order too.

    Patches are copied in runs of `channels` or `wide` numbers: whichever is longer.
    """
    (down, right), count, channels = layer.stride, len(gradient), padded.shape[1]
    high, wide = layer.kernel_size
    last = channels >= wide
    if last:
        padded = padded.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        patches = padded.unfold(1, high, down).unfold(2, wide, right).permute(0, 1, 2, 4, 5, 3)
    else:
        patches = padded.contiguous().unfold(2, high, down).unfold(3, wide, right)
        patches = patches.permute(0, 1, 4, 5, 2, 3)
    size = channels * high * wide
    weight = batch.memory(gradient, count, gradient.shape[1], size)
    buffer = batch.memory(gradient, min(count, _TOGETHER), *patches.shape[1:])
    for start in range(0, count, _TOGETHER):
        stop = min(start + _TOGETHER, count)
        part = buffer[: stop - start].copy_(patches[start:stop])
        flat = part.view(len(part), -1, size) if last else part.view(len(part), size, -1).mT
        torch.bmm(gradient[start:stop].flatten(2), flat, out=weight[start:stop])
    if last:
        return weight.view(count, -1, high, wide, channels), (0, 3, 1, 2)
    return weight.view(count, -1, channels, high, wide), None


def _norm(
    layer: Any, entered: Tensor, gradient: Tensor, batch: Batch
) -> dict[Tensor, Contribution]:
    entered, gradient = _wide(entered), _wide(gradient)
    shape = getattr(layer, "normalized_shape", None)
    if shape is None:
        normal = functional.group_norm(entered, layer.num_groups, eps=layer.eps)
        before, after = 1, gradient.dim() - 2
    elif isinstance(layer, nn.RMSNorm):
        normal = functional.rms_norm(entered, shape, eps=layer.eps)
        before, after = gradient.dim() - len(shape), 0
    else:
        normal = functional.layer_norm(entered, shape, eps=layer.eps)
        before, after = gradient.dim() - len(shape), 0

    def summed(values: Tensor) -> Contribution:
        axes = (*range(1, before), *range(values.dim() - after, values.dim()))
        rows = values.sum(axes) if axes else values
        return Rows(_added(rows, batch.examples))

    found: dict[Tensor, Contribution] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = summed(gradient * normal)
    bias = getattr(layer, "bias", None)
    if bias is not None and bias.requires_grad:
        found[bias] = summed(gradient)
    return found


def _embedding(
    layer: nn.Embedding, entered: Tensor, gradient: Tensor, batch: Batch
) -> dict[Tensor, Contribution]:
    g, examples = _wide(gradient), batch.examples
    if layer.padding_idx is not None:
        g = torch.where((entered == layer.padding_idx)[..., None], 0.0, g)
    index = _by_example(entered, examples).reshape(examples, -1)
    g = _by_example(g, examples).reshape(examples, -1, layer.embedding_dim)
    return {layer.weight: Lookup(layer, index, g)}


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _dense,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _norm,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
    nn.Embedding: _embedding,
}
