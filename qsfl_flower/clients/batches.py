"""What is done to a batch before the model sees it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsfl_flower.clients.data import Normalization


def scale_of(normalization: Normalization, dimensions: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation in a shape that fits a batch of so many dimensions."""
    shape = (1, -1) + (1,) * (dimensions - 2)
    return (
        torch.tensor(normalization.mean, dtype=torch.float32).reshape(shape),
        torch.tensor(normalization.std, dtype=torch.float32).reshape(shape),
    )


def least_batch(model: nn.Module) -> int:
    """Return how many examples a model needs at a time to train: 2 under batch norm, else 1."""
    norm = nn.modules.batchnorm._BatchNorm
    return 2 if any(isinstance(module, norm) for module in model.modules()) else 1


def batch_end(start: int, size: int, count: int, least: int) -> int:
    """Return where the batch that starts here ends; a remainder below `least` joins it.

    Parameters
    ----------
    start, size : int
        First example, 0 <= start < count, and examples of a batch, >= 1.
    count : int
        Examples in all.
    least : int
        See `least_batch`.
    """
    end = min(start + size, count)
    return count if count - end < least else end


def is_tokens(records: Tensor) -> bool:
    """Tell whether records are token ids: integers longer than the bytes of pictures."""
    return records.dtype in (torch.int16, torch.int32, torch.int64)


def inputs_of(model: nn.Module, records: Tensor, normalization: Normalization) -> Tensor:
    """Return what a model takes: standardized, in the precision of its parameters.

    Integers longer than bytes are token ids, which stay as they are.
    """
    if is_tokens(records):
        return records
    mean, std = scale_of(normalization, records.dim())
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    batch = records.to(torch.float32).sub_(mean).div_(std)
    return batch.to(kinds.pop()) if len(kinds) == 1 else batch


def augmented(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures shifted (edges filled with zeros), and mirrored if they have colours."""
    count, channels, height, width = pictures.shape
    room = max(1, min(height, width) // 8)
    padded = functional.pad(pictures, (room, room, room, room))
    top, left = torch.randint(0, 2 * room + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if channels == 3:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    example = torch.arange(count)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
