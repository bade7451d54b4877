"""The part of a model that is trained: what travels where most of it is frozen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qsfl_flower.clients.models import put_arrays, roles_of
from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.roles import BUFFER, TRAINED, usual_role

log = logging.getLogger("qsfl_flower")

Arrays = dict[str, NDArray[Any]]


def trained_arrays(
    model: nn.Module | Mapping[str, NDArray[Any]], roles: Mapping[str, str] | None = None
) -> Arrays:
    """Return copies of the arrays that clients train, or count: all that has to travel.

    Parameters
    ----------
    model : torch.nn.Module or mapping of name to ndarray
        Of a module its parameters with gradient, and its buffers. Of a model of peft its adapters,
        by the names of ``get_peft_model_state_dict``, and whatever else is trained; no buffers.
    roles : Mapping[str, str], optional
        Roles by name, as `roles_of` gives them; for a mapping of arrays, of which nothing is known.

    Raises
    ------
    ConfigError
        If nothing is trained, or in a precision that no array of numpy has.

    Notes
    -----
    Who sees what: what is frozen stays where it is. A table of embeddings that is trained whole
    tells which tokens the texts hold, and is long: a warning says so.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> frozen = model[0].requires_grad_(False)
    >>> list(trained_arrays(model))
    ['1.weight', '1.bias']
    >>> import numpy as np
    >>> list(trained_arrays({"a": np.zeros(2), "b": np.zeros(2)}, {"a": "frozen"}))
    ['b']
    """
    if isinstance(model, nn.Module):
        _warn_of_tables(model)
        return copies(trained_tensors(model))
    found = {
        name: np.array(array)
        for name, array in model.items()
        if (roles or {}).get(name, usual_role(array.dtype.name)) in (TRAINED, BUFFER)
    }
    return _some(found)


def set_trained_arrays(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Load what `trained_arrays` returned; everything else of the model stays as it is.

    Raises
    ------
    ConfigError
        If an array is missing, unknown, or of another shape or dtype.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    >>> frozen = model[0].requires_grad_(False)
    >>> import numpy as np
    >>> set_trained_arrays(model, {"1.weight": np.zeros((1, 2), np.float32)})
    """
    put_arrays(trained_tensors(model), arrays)


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's own tensors that are trained or counted, by the names that travel."""
    state = model.state_dict(keep_vars=True)
    if not hasattr(model, "peft_config"):
        roles = roles_of(model)
        return _some(
            {
                name: value
                for name, value in state.items()
                if roles.get(name, TRAINED) in (TRAINED, BUFFER)
            }
        )
    from peft import get_peft_model_state_dict

    # False: the frozen table beside adapters of embeddings would travel otherwise.
    short = get_peft_model_state_dict(model, save_embedding_layers=False)
    names = {value.data_ptr(): name for name, value in short.items()}
    return _some(
        {
            names.get(value.data_ptr(), name): value
            for name, value in model.named_parameters()
            if value.requires_grad
        }
    )


def copies(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Return tensors as arrays.

    Raises
    ------
    ConfigError
        If one has a precision that no array of numpy has.
    """
    for name, value in tensors.items():
        if value.dtype is torch.bfloat16:
            raise ConfigError(
                f"array {name!r} is bfloat16, which no array can hold: train it in float32 "
                "(peft does so by default: autocast_adapter_dtype=True); the base may be bfloat16"
            )
    return {name: value.numpy(force=True).copy() for name, value in tensors.items()}


def _some(found: dict[str, Any]) -> dict[str, Any]:
    if not found:
        raise ConfigError("none of the model's arrays is trained; there is nothing to send")
    return found


def _warn_of_tables(model: nn.Module) -> None:
    for place, layer in model.named_modules():
        table = getattr(layer, "weight", None)
        if isinstance(layer, nn.Embedding) and table is not None and table.requires_grad:
            log.warning(
                "the embeddings %r are trained whole: %d rows travel each round (%.1f MB), and "
                "those that move tell which tokens a client's texts hold; freeze them, or give "
                "adapters to other layers",
                place, len(table), table.numel() * table.element_size() / 1e6,
            )  # fmt: skip
