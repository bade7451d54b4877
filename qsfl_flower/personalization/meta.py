r"""Meta-gradients: how a start should move so that a few steps from it lead far.

With :math:`u_0 = w` and :math:`u_{k+1} = u_k - \alpha \nabla f(u_k; S)`, the aim is a small loss
:math:`F(w) = f(u_K(w); Q)` on other examples Q than those in S that are adapted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from qsfl_flower.errors import ConfigError

Batch = TypeVar("Batch")
Tensors = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor], Batch], Tensor]
"""A scalar. The gradient of a named tensor that it does not use is 0."""


def plain_gradient(loss: Loss[Batch], weights: Mapping[str, Tensor], batch: Batch) -> Tensors:
    r"""Return :math:`\nabla f(w)`."""
    leaves = {k: v.detach().requires_grad_() for k, v in weights.items()}
    return _gradient(loss, leaves, batch, create_graph=False)


def adapt(
    loss: Loss[Batch],
    weights: Mapping[str, Tensor],
    support: Batch,
    rate: float,
    steps: int,
    *,
    create_graph: bool = False,
) -> Tensors:
    r"""Take a few steps of gradient descent.

    Parameters
    ----------
    loss : Loss
        What to minimize.
    weights : Mapping[str, Tensor]
        The start w; not changed.
    support : Batch
        What to adapt to.
    rate : float
        Step size :math:`\alpha` > 0.
    steps : int
        Number of steps K >= 0.
    create_graph : bool
        Let the result be differentiable in `weights`.
    """
    now = dict(weights)
    for _ in range(steps):
        if not create_graph:
            now = {k: v.detach().requires_grad_() for k, v in now.items()}
        slope = _gradient(loss, now, support, create_graph)
        now = {k: v - rate * slope[k] for k, v in now.items()}
    return now if create_graph else {k: v.detach() for k, v in now.items()}


def meta_gradient(
    loss: Loss[Batch],
    weights: Mapping[str, Tensor],
    support: Batch,
    query: Batch,
    rate: float,
    steps: int,
    *,
    first_order: bool = False,
) -> tuple[Tensors, float]:
    r"""Return :math:`\nabla F(w)` and F(w).

    .. math:: \nabla F(w) = \prod_{k=0}^{K-1} (I - \alpha \nabla^2 f(u_k; S))\, \nabla f(u_K; Q)

    by differentiating through the steps. With `first_order` the product is left out, which costs
    no second derivatives and is not the gradient of F.

    Parameters
    ----------
    loss, weights, rate, steps
        As for `adapt`.
    support, query : Batch
        S and Q, which must not share examples.
    first_order : bool
        Leave the curvature out.

    References
    ----------
    C. Finn, P. Abbeel, S. Levine, "Model-agnostic meta-learning for fast adaptation of deep
    networks", 2017. arXiv:1703.03400.
    """
    leaves = {k: v.detach().requires_grad_() for k, v in weights.items()}
    adapted = adapt(loss, leaves, support, rate, steps, create_graph=not first_order)
    if first_order:
        adapted = leaves = {k: v.requires_grad_() for k, v in adapted.items()}
    value = loss(adapted, query)
    slopes = torch.autograd.grad(
        value, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, slopes, strict=True)), value.item()


def hessian_free_gradient(
    loss: Loss[Batch],
    weights: Mapping[str, Tensor],
    support: Batch,
    query: Batch,
    curvature: Batch,
    rate: float,
    *,
    delta: float = 1e-3,
) -> Tensors:
    r"""Return the meta-gradient of one step, with the curvature by a central difference.

    .. math:: g - \alpha \frac{\nabla f(w + \delta g; C) - \nabla f(w - \delta g; C)}{2 \delta},
        \qquad g = \nabla f(w - \alpha \nabla f(w; S); Q)

    Its error is :math:`O(\delta^2)`; it needs gradients only.

    Parameters
    ----------
    loss, weights, support, query, rate
        As for `meta_gradient`.
    curvature : Batch
        C, examples for the curvature.
    delta : float
        Length of the difference relative to g, > 0.

    References
    ----------
    A. Fallah, A. Mokhtari, A. Ozdaglar, "Personalized federated learning with theoretical
    guarantees: a model-agnostic meta-learning approach", 2020. arXiv:2002.07948 (Per-FedAvg,
    variants FO and HF).
    """
    if not delta > 0:
        raise ConfigError(f"delta is {delta!r}; it must be > 0")
    slope, _ = meta_gradient(loss, weights, support, query, rate, 1, first_order=True)
    ahead, behind = (
        plain_gradient(
            loss, {k: v + sign * delta * slope[k] for k, v in weights.items()}, curvature
        )
        for sign in (1, -1)
    )
    return {k: g - rate * (ahead[k] - behind[k]) / (2 * delta) for k, g in slope.items()}


def _gradient(
    loss: Loss[Batch], weights: Mapping[str, Tensor], batch: Batch, create_graph: bool
) -> Tensors:
    value = loss(weights, batch)
    slopes = torch.autograd.grad(
        value,
        list(weights.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(weights, slopes, strict=True))
