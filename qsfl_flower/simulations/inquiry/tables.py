"""The tables of the simulated clients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.clients.tables import checked, read_table
from qsfl_flower.errors import DataError

BUILT_IN = ("breast_cancer", "diabetes", "iris", "wine")
"""Data sets that come with scikit-learn; `target` is the class, as a text, or what is predicted."""

Columns = dict[str, NDArray[Any]]


def table_of(
    tables: tuple[str, ...], clients: int, client: int, needs: Mapping[str, type]
) -> Columns:
    """Return the columns of one client.

    Parameters
    ----------
    tables : tuple of str
        A file for each client, or one file or data set whose rows are dealt in turn.
    clients, client : int
        How many there are, and which.
    needs : mapping
        See `qsfl_flower.clients.tables.read_table`.

    Raises
    ------
    DataError
        If the table cannot be read, or leaves a client without a row.
    """
    if len(tables) > 1:
        return read_table(Path(tables[client]).expanduser(), needs)
    (name,) = tables
    if name in BUILT_IN:
        whole = checked(_built_in(name), needs, f"data set {name!r}")
    else:
        whole = read_table(Path(name).expanduser(), needs)
    rows = len(next(iter(whole.values())))
    if rows < clients:
        raise DataError(f"table {name} has {rows} rows for {clients} clients")
    return {column: values[client::clients] for column, values in whole.items()}


@lru_cache(maxsize=1)
def _built_in(name: str) -> Columns:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    columns: Columns = dict(zip(bunch.feature_names, bunch.data.T, strict=True))
    names = getattr(bunch, "target_names", None)
    columns["target"] = bunch.target if names is None else np.asarray(names)[bunch.target]
    return columns
