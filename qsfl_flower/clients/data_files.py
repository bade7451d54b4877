"""Tables (CSV, Parquet) and folders of pictures, as validated arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.clients.data_sources import RawData, every_fifth, validated
from qsfl_flower.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_WORDS = 1000
"""Different texts of a column, each of which becomes a feature."""


def table(file: Path, targets: Sequence[str], id_column: str | None, task: str) -> RawData:
    """Return the examples of a table: numbers as they are, a feature for each text of a column.

    Every fifth row, counted for each class, is for testing.

    Parameters
    ----------
    file : Path
        A ``.csv`` file with names in its first line, or a ``.parquet`` file.
    targets : sequence of str
        Columns that are predicted; one for classes.
    id_column : str or None
        Says whose a row is; no feature.
    task : str
        ``classes``, ``labels`` or ``values``.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or has values that are missing.
    """
    frame = _read(file)
    named = [*targets, *([id_column] if id_column else [])]
    if missing := [name for name in named if name not in frame]:
        raise DataError(
            f"{file} has no column {missing[0]!r}; it has {', '.join(map(repr, frame))}"[:1000]
        )
    for name, column in frame.items():
        if count := int(column.isna().sum()):
            raise DataError(
                f"{file}: column {name!r} has no value in {count} of {len(frame)} rows; fill them "
                "in, or leave the rows or the column out"
            )
    features = [_numbers(file, frame[name]) for name in frame if name not in named]
    if not features or len(frame) < 2:
        raise DataError(f"{file} has {len(frame)} rows and no feature beside {', '.join(named)}")
    x = np.concatenate(features, axis=1)
    names = None
    if task == "classes":
        found, y = np.unique(frame[targets[0]].astype(str).to_numpy(dtype=str), return_inverse=True)
        names = tuple(found.tolist())
    else:
        y = np.stack([_target(file, frame[name]) for name in targets], axis=1)
    owners = None if id_column is None else np.unique(frame[id_column], return_inverse=True)[1]
    test = every_fifth(y if names else np.zeros(len(x), int))
    arrays: dict[str, NDArray[Any]] = {
        "x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test],
    }  # fmt: skip
    if owners is not None:
        arrays["id_train"] = owners[~test]
    return validated(arrays, file, names, None, task)


def images(root: Path, size: int | None) -> RawData:
    """Return the pictures of a folder in torchvision's layout: a folder for each class.

    With ``train`` and ``test`` in it, each of these is such a folder; else every fifth picture of a
    class is for testing.

    Parameters
    ----------
    root : Path
        The folder.
    size : int or None
        Height and width to which pictures are scaled; None: they must have one size.

    Raises
    ------
    DataError
        If there is no such folder, or a picture cannot be read.
    """
    parts = {name: root / name for name in ("train", "test")}
    if all(path.is_dir() for path in parts.values()):
        (x, y, classes), (x_test, y_test, others) = (_pictures(p, size) for p in parts.values())
        if others != classes:
            raise DataError(f"{root}: train has the classes {classes}, test has {others}"[:1000])
    else:
        x, y, classes = _pictures(root, size)
        test = every_fifth(y)
        x, y, x_test, y_test = x[~test], y[~test], x[test], y[test]
    arrays: dict[str, NDArray[Any]] = {
        "x_train": x,
        "y_train": y,
        "x_test": x_test,
        "y_test": y_test,
    }
    return validated(arrays, root, tuple(classes), None)


def _read(file: Path) -> DataFrame:
    import pandas as pd

    readers: dict[str, Callable[[Path], DataFrame]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
    }
    if (read := readers.get(file.suffix.lower())) is None:
        raise DataError(f"{file} is neither a .csv nor a .parquet file (data.file)")
    if not file.is_file():
        raise DataError(f"data file {file} does not exist (data.file)")
    try:
        return read(file)
    except Exception as error:  # damaged bytes make the parsers raise a dozen kinds
        raise DataError(f"{file} cannot be read: {type(error).__name__}: {error}") from error


def _numbers(file: Path, column: Series) -> NDArray[np.float32]:
    """Return a column as features: one, or one for each text."""
    if column.dtype.kind in "buif":
        return column.to_numpy(dtype=np.float32)[:, None]
    words, which = np.unique(column.astype(str).to_numpy(dtype=str), return_inverse=True)
    if len(words) > _MOST_WORDS:
        raise DataError(
            f"{file}: column {column.name!r} has {len(words)} different texts, at most "
            f"{_MOST_WORDS} become features; leave it out, or name it as data.id_column"
        )
    return np.eye(len(words), dtype=np.float32)[which]


def _target(file: Path, column: Series) -> NDArray[np.float32]:
    if column.dtype.kind not in "buif":
        raise DataError(f"{file}: target {column.name!r} must hold numbers, found {column.dtype}")
    return column.to_numpy(dtype=np.float32)


def _pictures(
    root: Path, size: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    from PIL import Image

    classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = (p for p in sorted((root / name).rglob("*")) if p.suffix.lower() in _PICTURES)
        for file in files:
            try:
                with Image.open(file) as opened:
                    picture = opened.convert("RGB")
            except Exception as error:  # damaged and outsized pictures make PIL raise a dozen kinds
                raise DataError(f"{file} cannot be read: {error} (data.root)") from error
            found.append(np.asarray(picture if size is None else picture.resize((size, size))))
            labels.append(label)
    empty = [name for label, name in enumerate(classes) if label not in {*labels}]
    if empty or not classes:
        which = f"no picture of {empty[0]!r}" if empty else "no folder of a class"
        raise DataError(f"{root} has {which}; pictures end in {', '.join(_PICTURES)} (data.root)")
    shapes = {picture.shape for picture in found}
    if len(shapes) > 1:
        some = ", ".join(f"{h} x {w}" for h, w, _ in sorted(shapes)[:3])
        raise DataError(f"{root}: pictures have several sizes ({some}); set data.picture_size")
    return np.stack(found), np.array(labels), classes
