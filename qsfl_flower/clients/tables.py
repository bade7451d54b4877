"""Columns of a table of the client's own: CSV, Parquet, or npz."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import DataError

KINDS = (".csv", ".parquet", ".npz")
Column = NDArray[Any]


def read_table(file: Path, needs: Mapping[str, type]) -> dict[str, Column]:
    """Return some columns of a file.

    Parameters
    ----------
    file : Path
        A ``.csv`` file in UTF-8 with names in its first line, a ``.parquet`` file, or an ``.npz``
        archive of arrays of one dimension.
    needs : mapping
        Names of the columns, and whether they hold numbers (``float``) or texts (``str``).

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, has no rows, or a value is missing or not a
        number: with the file, the column, the first such row, and what is allowed.
    """
    reader = {".csv": _csv, ".parquet": _parquet, ".npz": _npz}.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"table {file}: its name must end in {', '.join(KINDS)}")
    if not file.is_file():
        raise DataError(f"table {file} does not exist")
    return checked(reader(file, tuple(needs)), needs, f"table {file}")


def checked(columns: Mapping[str, Any], needs: Mapping[str, type], place: str) -> dict[str, Column]:
    """Return columns as float64 or texts, all of one length and complete.

    Raises
    ------
    DataError
        As for `read_table`.
    """
    _check_names(needs, list(columns), place)
    read = {
        name: (_numbers if kind is float else _texts)(np.asarray(columns[name]), name, place)
        for name, kind in needs.items()
    }
    lengths = {name: len(values) for name, values in read.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"{place}: the columns differ in length: {told}"[:1000])
    if not next(iter(lengths.values()), 0):
        raise DataError(f"{place} has no rows; at least one is needed")
    return read


def _check_names(names: Mapping[str, type] | tuple[str, ...], there: list[str], place: str) -> None:
    if missing := [name for name in names if name not in there]:
        known = ", ".join(repr(str(name)) for name in there) or "none"
        raise DataError(f"{place} has no column {missing[0]!r}; it has {known}"[:1000])


def _csv(file: Path, names: tuple[str, ...]) -> dict[str, Column]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            header = next(rows, [])
            _check_names(names, header, f"table {file}")
            for name in names:
                if header.count(name) > 1:
                    raise DataError(f"table {file} has {header.count(name)} columns {name!r}")
            places = [header.index(name) for name in names]
            found: list[list[str]] = [[] for _ in names]
            for row in rows:
                if not row:
                    continue  # an empty line
                if len(row) != len(header):
                    raise DataError(
                        f"table {file}: line {rows.line_num} has {len(row)} values, the first line "
                        f"names {len(header)} columns"
                    )
                for values, place in zip(found, places, strict=True):
                    values.append(row[place])
    except UnicodeDecodeError as error:
        raise DataError(
            f"table {file} is not UTF-8 text: byte 0x{error.object[error.start]:02x}; save it as "
            "UTF-8"
        ) from None
    except (OSError, csv.Error) as error:
        raise DataError(f"table {file} cannot be read: {error}") from None
    return {name: np.array(values, object) for name, values in zip(names, found, strict=True)}


def _parquet(file: Path, names: tuple[str, ...]) -> dict[str, Column]:
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise DataError(f"table {file}: Parquet needs the package pyarrow: {error}") from None
    except Exception as error:  # damaged bytes make the parsers raise a dozen kinds
        raise DataError(f"table {file} cannot be read: {type(error).__name__}: {error}") from error
    _check_names(names, [str(name) for name in frame], f"table {file}")
    return {name: frame[name].to_numpy() for name in names}


def _npz(file: Path, names: tuple[str, ...]) -> dict[str, Column]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            _check_names(names, list(archive.files), f"table {file}")
            return {name: archive[name] for name in names}
    except DataError:
        raise
    except Exception as error:  # damaged bytes make zip, numpy and codecs raise a dozen kinds
        raise DataError(
            f"table {file} is not a readable npz archive of plain arrays: "
            f"{type(error).__name__}: {error}"
        ) from error


def _numbers(values: Column, name: str, place: str) -> NDArray[np.float64]:
    values = _one_dimension(values, name, place)
    if values.dtype.kind in "buif":
        numbers = values.astype(np.float64)
    else:
        numbers = np.array([_number(value) for value in values.tolist()], np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        first = values[bad[0]]
        missing = first is None or first == "" or first != first  # NaN
        what = "no value" if missing else f"{str(first)!r:.40}"
        raise DataError(
            f"{place}: column {name!r} must hold finite numbers; row {bad[0] + 1} has {what} "
            f"({bad.size} such rows of {len(values)}): fill them in, or leave these rows out"
        )
    return numbers


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _texts(values: Column, name: str, place: str) -> Column:
    values = _one_dimension(values, name, place)
    texts = values.tolist()
    for row, value in enumerate(texts):
        if value is None or value == "" or value != value:  # NaN
            raise DataError(
                f"{place}: column {name!r} must hold texts; row {row + 1} has no value: fill it "
                "in, or leave the row out"
            )
    return np.array([str(value) for value in texts], dtype=str)


def _one_dimension(values: Column, name: str, place: str) -> Column:
    if values.ndim != 1:
        raise DataError(
            f"{place}: column {name!r} has shape {values.shape}; it must have one dimension"
        )
    return values
