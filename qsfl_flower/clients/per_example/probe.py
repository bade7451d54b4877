"""Does a model mix the records of a batch, or remember them? Made-up ones show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qsfl_flower.clients.per_example.work import Work, attributes_kept, outputs_of, rows_of
from qsfl_flower.errors import ConfigError

_ROOM = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Relative differences that rounding may make between a batch and a record alone."""


_RANDOM = ("bernoulli", "uniform", "normal", "rand", "exponential", "geometric", "log_normal")


class NoChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draw the same number everywhere, so that dropout does not hide what is looked for."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare a process the second that loading torch's compiler takes."""
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        """Let all operations pass but random ones, whose results are filled with ones."""
        found = operation(*arguments, **(named or {}))
        chance = operation.__name__.startswith(_RANDOM) and isinstance(found, Tensor)
        return found.fill_(1) if chance else found


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put back all that a forward pass may have written."""
    state = [(t, t.detach().clone()) for t in _state(model).values()]
    try:
        with attributes_kept(model):
            yield
    finally:
        with torch.no_grad():
            for now, then in state:
                now.copy_(then)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave no trace in the model, and none in torch's random numbers; have no chance inside."""
    chance = NoChance()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]), chance, state_kept(model):
        yield


def check(work: Work, other: Work) -> bool:
    """Refuse a model whose rows depend on each other, or that remembers what they hold.

    Parameters
    ----------
    work, other : Work
        The model with two different batches of made-up records of the same shape.

    Returns
    -------
    bool
        Whether a forward pass writes anything (that does not depend on the records).

    Raises
    ------
    ConfigError
        With the layer's name.
    """
    model = work.model
    lazy = [n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ConfigError(
            f"parameter {lazy[0]!r} has no shape yet; call the model once before private training"
        )
    with torch.no_grad(), undisturbed(model):
        _remembering(work, other)
        _mixing(work, other)
        return check_memory(work, other, work.part(0, 1))


def _mixing(work: Work, other: Work) -> None:
    rows = len(work.target)
    with state_kept(work.model):
        whole, calls = _traced(work)
    for row in range(rows):
        changed = pytree.tree_map(_with_row(row), work.batch, other.batch)
        with state_kept(work.model):
            moved, others = _traced(Work(work.model, work.loss, changed, work.target))
        rest = [i for i in range(rows) if i != row]
        if _differ(whole, moved, rest):
            name = _first_difference(calls, others, rest, rows)
            raise ConfigError(
                f"{_called(work.model, name)} mixes the examples of a batch, so no bound on one "
                "example's influence exists; use what treats each example for itself, such as "
                "group norm in place of batch norm"
            )
    for row in range(rows):
        with state_kept(work.model):
            alone, _ = _traced(work.part(row, row + 1))
        wanted = rows_of(whole, slice(row, row + 1))
        if _differ(wanted, alone, [0]):
            raise ConfigError(
                f"{_called(work.model, '')} gives an example another output in a batch than alone, "
                "so no bound on one example's influence exists"
            )


def _with_row(row: int) -> Callable[[Tensor, Tensor], Tensor]:
    def replaced(batch: Tensor, source: Tensor) -> Tensor:
        batch = batch.clone()
        batch[row] = source[row]
        return batch

    return replaced


def check_memory(*works: Work) -> bool:
    """Refuse a model that writes something else for each batch; return whether it writes at all."""
    model = works[0].model
    before = {name: t.detach().clone() for name, t in _state(model).items()}
    parameters = dict(model.named_parameters())
    simple, written = _simple(model), []
    changes = False
    for one in works:
        with torch.no_grad(), state_kept(model):
            outputs_of(model, one.batch)
            now = _state(model)
            written.append({n: t.clone() for n, t in now.items() if not _same(t, before[n])})
            changes = changes or _simple(model) != simple
    for name in {n for one in written for n in one}:
        values = [one[name] for one in written if name in one]
        alike = len(values) == len(written) and all(_same(v, values[0]) for v in values)
        if not alike or name in parameters:
            raise ConfigError(
                f"{_called(model, name.rpartition('.')[0])} writes what it has seen of the records "
                f"into {name!r}, which leaves the client without noise; use a layer without "
                "running statistics (track_running_stats=False)"
            )
    return changes or bool(written[0])


def _remembering(work: Work, other: Work) -> None:
    model = work.model
    before = {name: t.detach().clone() for name, t in _state(model).items()}
    with state_kept(model):
        first, _ = _traced(work)
        _traced(other)
        for name, tensor in _state(model).items():
            tensor.copy_(before[name])
        if _differ(first, _traced(work)[0], range(len(work.target))):
            raise ConfigError(
                f"{_called(model, '')} remembers something of the records from one batch to the "
                "next, which noise does not cover"
            )


def _simple(model: nn.Module) -> list[object]:
    """Return the numbers and words among a model's attributes, such as counters."""
    return [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, bool | int | float | str)
    ]


def _traced(work: Work) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """Return the outputs, and what every module took and gave, inner modules first."""
    calls: list[tuple[str, Any, Any]] = []
    running: list[str] = []
    names = {module: name for name, module in work.model.named_modules()}

    def begin(module: nn.Module, inputs: Any) -> None:
        running.append(names[module])

    def end(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        running.remove(names[module])
        calls.append((names[module], (inputs, named), output))

    handles = [m.register_forward_pre_hook(begin) for m in names]
    handles += [m.register_forward_hook(end, with_kwargs=True, always_call=False) for m in names]
    try:
        return outputs_of(work.model, work.batch), calls
    except Exception as error:
        name = running[-1] if running else ""
        raise ConfigError(
            f"{_called(work.model, name)} fails on {len(work.target)} made-up record(s) of the "
            f"data's shape: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(
    before: list[tuple[str, Any, Any]],
    after: list[tuple[str, Any, Any]],
    rest: list[int],
    rows: int,
) -> str:
    """Return the module that the untouched rows entered alike, and left differently."""
    for (name, entered, left), (_, entered_after, left_after) in zip(before, after, strict=False):
        tensors = [t for t in pytree.tree_leaves(entered) if isinstance(t, Tensor) and t.dim()]
        if any(len(t) != rows for t in tensors):
            continue
        if _differ(left, left_after, rest) and not _differ(entered, entered_after, rest):
            return name
    return ""


def _differ(first: Any, second: Any, rows: Any) -> bool:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    for a, b in pairs:
        if not isinstance(a, Tensor) or a.dim() == 0:
            continue
        if a.shape != b.shape or len(a) <= max(rows):
            return True
        a, b = a[list(rows)].detach(), b[list(rows)].detach()
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return True
            continue
        room = _ROOM.get(a.dtype, 1e-3) * float(a.abs().max()) if a.numel() else 0.0
        if not _same(a, b) and not bool(((a - b).abs() <= room).all()):
            return True
    return False


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _called(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    where = f"layer {name!r}" if name else "the model"
    return f"{where} ({type(module).__name__})"
