"""Which engine a model gets: the fastest that is right on made-up records."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.per_example import probe
from qsfl_flower.clients.per_example.functional import ByVmap, OneByOne, single_gradients
from qsfl_flower.clients.per_example.layers import ByLayer
from qsfl_flower.clients.per_example.work import (
    ClippedSum,
    Factors,
    Loss,
    NotApplicable,
    Work,
    add_up,
    buffers_kept,
    outputs_of,
    square_norms,
    trained,
)
from qsfl_flower.errors import ConfigError

Engine = ByLayer | ByVmap | OneByOne

MADE_UP = 6
"""Records that a choice needs."""

_ROOM = {torch.float64: 1e-7, torch.float32: 1e-4}
_HALF_ROOM = 5e-2
_FIRST_ROOM = 5e-2
"""Private records may sit on a kink, where rounding alone decides: only a wrong engine is found."""


class ClippedGradients:
    r"""Sums of clipped gradients for one model.

    .. math:: \sum_i g_i \min(1, C / \lVert g_i \rVert)

    where :math:`g_i` is the gradient of the loss of a batch that holds example i alone. An example
    whose gradient is not finite contributes nothing.

    Parameters
    ----------
    model : torch.nn.Module
        In the mode in which it is trained.
    batch, target : Tensor (`batch`: or a tuple or dict of them)
        `MADE_UP` records of the data's shape: never private ones, since the choice may become
        known.
    loss : callable
        Takes the outputs and the targets of a batch, and returns one number.
    at_once : int or None
        Examples that are in memory at a time, at most; >= 1.

    Raises
    ------
    ConfigError
        If the model mixes examples, remembers them, or cannot be differentiated, with the name of
        the layer.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        target: Tensor,
        *,
        loss: Loss = functional.cross_entropy,
        at_once: int | None = None,
    ) -> None:
        if at_once is not None and at_once < 1:
            raise ConfigError(f"at_once must be >= 1 or null, found {at_once!r}")
        self._work, self._at_once = Work(model, loss, batch, target), at_once
        self._choice = choose(self._work)
        self._asserted = False

    @property
    def engine(self) -> str:
        """Name of the engine that was chosen."""
        return self._choice.engine.name

    def sum(
        self,
        batch: Any,
        target: Tensor,
        clip_norm: float,
        *,
        copies: int = 1,
        at_once: int | None = None,
    ) -> ClippedSum:
        """Return the clipped sum of a batch, which may be empty.

        Parameters
        ----------
        batch, target : Tensor (`batch`: or a tuple or dict of them)
            The records.
        clip_norm : float
            The bound C, > 0.
        copies : int
            Consecutive rows that belong to one example, for example augmented ones; its gradient
            is the mean over them (De et al. 2022).
        at_once : int or None
            Where fewer examples fit than `at_once` of the class says; >= 1.

        Raises
        ------
        ConfigError
            If the first batch shows that the probe was wrong about the model.
        """
        work = replace(self._work, batch=batch, target=target, copies=copies)
        if not self._asserted and work.examples:
            _assert(self._choice, self._work, work.part(0, min(2, work.examples)), clip_norm)
            self._asserted = True
        together = min(n for n in (self._at_once, at_once, max(work.examples, 1)) if n)
        if 0 < work.examples <= together:
            parts = [self._choice.sum(work, clip_norm)]
        else:
            starts = range(0, work.examples, together)
            parts = [self._choice.sum(work.part(s, s + together), clip_norm) for s in starts]
        if self._choice.writes:  # once a step, empty batch or not, and by nothing that is private
            with torch.no_grad():
                outputs_of(work.model, self._work.batch)
        if parts:
            return add_up(parts)
        return ClippedSum(
            [torch.zeros_like(p) for p in trained(work.model)], torch.zeros(0).double()
        )


def clipped_gradient_sum(
    model: nn.Module,
    batch: Tensor,
    target: Tensor,
    clip_norm: float,
    *,
    loss: Loss = functional.cross_entropy,
) -> ClippedSum:
    """Return the clipped sum of one batch; `ClippedGradients` is the way for many batches.

    Parameters
    ----------
    model, batch, target, clip_norm, loss
        As for `ClippedGradients`; the batch has at least one example. The engine is chosen once
        for a model, on made-up records.
    """
    work = Work(model, loss, batch, target)
    form = tuple((t.shape[1:], t.dtype) for t in (batch, target))
    modes = tuple(module.training for module in model.modules())
    key = (loss, form, modes, tuple(p.requires_grad for p in model.parameters()))
    known = _known.setdefault(model, {})
    if key not in known:
        known[key] = choose(Work(model, loss, made_up(batch), made_up(target)))
    return known[key].sum(work, clip_norm)


@dataclass(frozen=True)
class Choice:
    """An engine, and whether buffers have to be put back after it."""

    engine: Engine
    writes: bool

    def sum(self, work: Work, clip_norm: float) -> ClippedSum:
        """Return the clipped sum of a batch that is not empty; the model stays as it is."""
        with buffers_kept(work.model) if self.writes else nullcontext():
            try:
                return self.engine.sum(work, clip_norm)
            except NotApplicable:  # a batch of another form than the made-up one
                return OneByOne().sum(work, clip_norm)


_known: WeakKeyDictionary[nn.Module, dict[object, Choice]] = WeakKeyDictionary()


def made_up(values: Any) -> Any:
    """Return `MADE_UP` rows like those of tensors, of which only shape and type are used.

    Floats are normal, bytes are of any value, other integers are 0, 1 and 2, which every
    vocabulary has, and labels 0 and 1. Of a dict, what has a name that ends with ``mask`` is 0 and
    1, and 1 in the first place of each row.

    Parameters
    ----------
    values : Tensor, tuple or dict of Tensor
        As a batch; it may have no row.
    """
    if isinstance(values, Mapping):
        return {name: _made_up_named(name, part) for name, part in values.items()}
    if isinstance(values, tuple):
        return tuple(made_up(part) for part in values)
    shape = (MADE_UP, *values.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if values.is_floating_point():
        return torch.randn(shape, generator=generator).to(values.dtype)
    top = {torch.uint8: 256, torch.bool: 2}.get(values.dtype, 2 if values.dim() == 1 else 3)
    return torch.randint(0, top, shape, generator=generator).to(values.dtype)


def _made_up_named(name: str, values: Tensor) -> Tensor:
    found: Tensor = made_up(values)
    if name.endswith("mask") and not found.is_floating_point():
        found = found.clamp(max=1)
        found[:, :1] = 1
    return found


def choose(whole: Work) -> Choice:
    """Probe a model on made-up records, and take the first engine that is right on them.

    Raises
    ------
    ConfigError
        As `ClippedGradients` says.
    """
    if whole.examples < MADE_UP:
        raise ConfigError(f"{MADE_UP} made-up records are needed, found {whole.examples}")
    half = MADE_UP // 2
    parts = whole.part(0, half), whole.part(half, MADE_UP)
    writes = probe.check(*parts)
    with probe.undisturbed(whole.model):
        exact = [_exact(parts[0])]
        for kind in (ByLayer, ByVmap):
            if (engine := _right(kind, parts[0], exact[0])) is not None:
                return Choice(engine, writes)
            # Rounding alone may decide at a kink: a right engine is right on the other records.
            exact[1:] = exact[1:] or [_exact(parts[1])]
            if (engine := _right(kind, parts[1], exact[1])) is not None:
                return Choice(engine, writes)
    return Choice(OneByOne(), writes)


def _right(kind: type[ByLayer | ByVmap], work: Work, exact: _Exact) -> Engine | None:
    engine, clip_norm = kind(), 0.7 * float(exact.norms.min()) or 1.0
    # An engine may fail in any way on a model that it does not know.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with probe.state_kept(work.model):
            found = engine.sum(work, clip_norm)
        if _alike(found.gradients, exact.sum(clip_norm), trained(work.model)):
            return engine
    return None


@dataclass(frozen=True)
class _Exact:
    gradients: list[list[Tensor]]
    norms: Tensor

    def sum(self, clip_norm: float) -> list[Tensor]:
        """Return the clipped sum."""
        factors = Factors(self.norms, clip_norm)
        return [factors.total(torch.stack(rows)) for rows in zip(*self.gradients, strict=True)]


def _exact(work: Work) -> _Exact:
    if not trained(work.model):
        raise ConfigError("the model has no parameter that is trained")
    try:
        gradients = list(single_gradients(work))
    except Exception as error:
        raise ConfigError(
            f"the model cannot be differentiated on one made-up record of the data's shape: {error}"
        ) from error
    squares = [torch.cat([square_norms(g[None]) for g in one]).sum() for one in gradients]
    norms = torch.stack(squares).sqrt()
    if not bool(norms.isfinite().all()):
        raise ConfigError("the model's gradients are not finite on made-up records")
    return _Exact(gradients, norms)


def _alike(found: list[Tensor], exact: list[Tensor], parameters: list[nn.Parameter]) -> bool:
    whole = _norm(exact)
    for ours, theirs, p in zip(found, exact, parameters, strict=True):
        room = _ROOM.get(p.dtype, _HALF_ROOM) * max(float(theirs.norm()), 0.01 * whole)
        if not float((ours - theirs).norm()) <= room:
            return False
    return True


def _norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def _assert(choice: Choice, known: Work, work: Work, clip_norm: float) -> None:
    with probe.undisturbed(work.model):
        found = choice.sum(work, clip_norm).gradients
        exact = Choice(OneByOne(), choice.writes).sum(work, clip_norm).gradients
        off = _norm([a - b for a, b in zip(found, exact, strict=True)])
        if not off <= _FIRST_ROOM * _norm(exact) + 1e-12:
            raise ConfigError(
                "gradients of single examples are other ones on the first batch than on made-up "
                "records: the model treats records differently according to what is in them"
            )
        probe.check_memory(known.part(0, 1), work.part(0, 1))
