r"""The sum of clipped gradients of single examples, without a gradient per example in memory twice.

One forward and one backward pass give every layer's input a and the gradient g of its output. From
these follow each example's gradient norm and, once the factors are known, the weighted sum:
a dense layer's gradient :math:`g a^T` has the norm :math:`|g| |a|`, a convolution is a dense layer
on the unfolded pictures. Models with other layers go through ``torch.func.vmap``, which is slower.

References
----------
I. Goodfellow, "Efficient per-example gradient computations", 2015.
M. Abadi et al., "Deep learning with differential privacy", 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.errors import ConfigError


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


def clipped_gradient_sum(
    model: nn.Module, batch: Tensor, target: Tensor, clip_norm: float
) -> ClippedSum:
    r"""Return :math:`\sum_i g_i \min(1, C / \lVert g_i \rVert)`.

    :math:`g_i` is the gradient of example i's cross-entropy over all trainable parameters together.
    An example whose gradient is not finite contributes nothing.

    Parameters
    ----------
    model : torch.nn.Module
        Maps a float32 batch to logits, each example for itself: no batch norm.
    batch, target : Tensor
        At least one example, and labels.
    clip_norm : float
        The bound C, > 0.

    Raises
    ------
    ConfigError
        If the model mixes examples.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"layer {name!r} is a batch norm, which mixes the examples of a batch, so no bound "
                "on one example's influence exists; use group norm"
            )
    layers = _layers(model)
    if layers is not None:
        passes = _backward(model, layers, batch, target)
        if passes is not None:
            return _from_layers(passes, clip_norm)
    return _by_vmap(model, batch, target, clip_norm)


@dataclass
class _Pass:
    """A layer's input, output and the gradient of its output; the first axis is the example."""

    layer: nn.Module
    rule: Callable[[_Pass], list[Tensor]]
    entered: Tensor = field(default_factory=lambda: torch.empty(0))
    left: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: int = 0


def _layers(model: nn.Module) -> list[_Pass] | None:
    """Return the layers with parameters, or None if some kind is not known here."""
    passes = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        rule = _RULES.get(type(module))
        if rule is None or not all(p.requires_grad for p in own):
            return None
        if isinstance(module, nn.Conv2d) and (
            module.groups != 1
            or module.dilation != (1, 1)
            or isinstance(module.padding, str)
            or module.padding_mode != "zeros"
        ):
            return None
        passes.append(_Pass(module, rule))
    return passes


def _backward(
    model: nn.Module, passes: list[_Pass], batch: Tensor, target: Tensor
) -> list[_Pass] | None:
    """Fill in the passes, or return None if a layer is used in a way its rule does not know."""

    def hook(one: _Pass) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def remember(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()
            one.entered, one.left, one.calls = inputs[0].detach(), output, one.calls + 1
            return output

        return remember

    handles = [one.layer.register_forward_hook(hook(one)) for one in passes]
    try:
        with _frozen(model), torch.enable_grad():
            logits = model(batch)
            loss = functional.cross_entropy(logits, target, reduction="sum")
            if any(one.calls != 1 or one.left.shape[0] != len(batch) for one in passes):
                return None
            if any(isinstance(one.layer, nn.Linear) and one.entered.dim() != 2 for one in passes):
                return None
            gradients = torch.autograd.grad(loss, [one.left for one in passes])
    finally:
        for handle in handles:
            handle.remove()
    for one, gradient in zip(passes, gradients, strict=True):
        one.gradient = gradient
    return passes


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Spare autograd the parameters' own gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _from_layers(passes: list[_Pass], clip_norm: float) -> ClippedSum:
    squares = torch.zeros(len(passes[0].entered), dtype=torch.float64)
    parts: list[list[Tensor]] = []
    for one in passes:
        if isinstance(one.layer, nn.Linear):
            size = one.entered.square().sum(1, dtype=torch.float64) + (one.layer.bias is not None)
            squares += size * one.gradient.square().sum(1, dtype=torch.float64)
            parts.append([])
        else:
            parts.append(one.rule(one))
            for part in parts[-1]:
                squares += part.square().sum(tuple(range(1, part.dim())), dtype=torch.float64)
    norms = squares.sqrt()
    factors = _factors(norms, clip_norm)
    gradients: list[Tensor] = []
    for one, own in zip(passes, parts, strict=True):
        if isinstance(one.layer, nn.Linear):
            scaled = _scaled(one.gradient, factors)
            gradients.append(scaled.T @ torch.nan_to_num(one.entered, 0.0, 0.0, 0.0))
            if one.layer.bias is not None:
                gradients.append(scaled.sum(0))
        else:
            gradients += [_scaled(part, factors).sum(0) for part in own]
    return ClippedSum(gradients, norms)


def _factors(norms: Tensor, clip_norm: float) -> Tensor:
    factors = (clip_norm / norms).clamp(max=1.0)
    return torch.where(norms.isfinite(), factors, 0.0)


def _scaled(rows: Tensor, factors: Tensor) -> Tensor:
    """Multiply every row by its factor; rows with factor 0 may hold anything."""
    column = factors.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
    if bool((factors == 0).any()):
        rows = torch.where(column > 0, rows, 0.0)
    return rows * column


_TOGETHER = 16
"""Examples whose patches are in memory at a time; more would leave the cache."""


def _convolution(one: _Pass) -> list[Tensor]:
    layer: Any = one.layer
    outer, count = one.gradient, len(one.gradient)
    (rows, columns), (down, right) = layer.padding, layer.stride
    entered = functional.pad(one.entered, (columns, columns, rows, rows))
    channels, (high, wide) = entered.shape[1], layer.kernel_size
    # Patches are copied in runs of `channels` or `wide` numbers: whichever is longer.
    last = channels >= wide
    if last:
        entered = entered.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        patches = entered.unfold(1, high, down).unfold(2, wide, right).permute(0, 1, 2, 4, 5, 3)
    else:
        patches = entered.contiguous().unfold(2, high, down).unfold(3, wide, right)
        patches = patches.permute(0, 1, 4, 5, 2, 3)
    size = channels * high * wide
    weight = outer.new_empty(count, outer.shape[1], size)
    buffer = outer.new_empty(min(count, _TOGETHER), *patches.shape[1:])
    for start in range(0, count, _TOGETHER):
        part = buffer[: min(_TOGETHER, count - start)].copy_(patches[start : start + _TOGETHER])
        flat = part.view(len(part), -1, size) if last else part.view(len(part), size, -1).mT
        torch.bmm(
            outer[start : start + _TOGETHER].flatten(2), flat, out=weight[start : start + _TOGETHER]
        )
    if last:
        shaped = weight.view(count, -1, high, wide, channels).permute(0, 1, 4, 2, 3)
    else:
        shaped = weight.view(count, -1, channels, high, wide)
    return [shaped] if layer.bias is None else [shaped, outer.sum((2, 3))]


def _group_norm(one: _Pass) -> list[Tensor]:
    layer: Any = one.layer
    normal = functional.group_norm(one.entered, layer.num_groups, eps=layer.eps)
    gradient = one.gradient.flatten(2) if one.gradient.dim() > 2 else one.gradient[..., None]
    return [
        (gradient * normal.view_as(one.gradient).reshape(gradient.shape)).sum(2),
        gradient.sum(2),
    ]


def _dense(one: _Pass) -> list[Tensor]:
    return []  # `_from_layers` never forms the gradients of single examples of a dense layer


_RULES: dict[type[nn.Module], Callable[[_Pass], list[Tensor]]] = {
    nn.Linear: _dense,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
}


def _by_vmap(model: nn.Module, batch: Tensor, target: Tensor, clip_norm: float) -> ClippedSum:
    model = copy.deepcopy(model)  # functional_call leaves tensors of its own in a layer used twice
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    trained = {name: parameters[name] for name in names}
    rest = {
        **{n: p for n, p in parameters.items() if n not in trained},
        **dict(model.named_buffers()),
    }

    def loss(chosen: dict[str, Tensor], example: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**chosen, **rest}, (example[None],))
        return functional.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
    rows = [gradient.flatten(1) for gradient in each(trained, batch, target).values()]
    norms = torch.stack([row.square().sum(1, dtype=torch.float64) for row in rows]).sum(0).sqrt()
    factors = _factors(norms, clip_norm)
    sums = [_scaled(row, factors).sum(0) for row in rows]
    return ClippedSum([s.view_as(trained[n]) for n, s in zip(names, sums, strict=True)], norms)
