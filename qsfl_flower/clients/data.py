"""Data sets by name: one small immutable value, whatever the source.

Pictures stay ``uint8`` in memory, shape ``(N, C, H, W)``; other features are ``float32``. Training
and evaluation scale one batch at a time with the data set's :class:`Normalization`.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import DataError

if TYPE_CHECKING:
    from qsfl_flower.clients.data_sources import RawData

DATASETS = (
    *("digits", "mnist", "fashion-mnist", "cifar10"),
    *("npz", "table", "images", "synthetic"),
)
"""Names that :func:`load_dataset` knows."""

SOURCES: dict[str, Callable[..., Mapping[str, Any]]] = {}
"""Data sets of plugins: called with their options, they return the arrays of an ``npz`` archive."""

DATA_DIR_VARIABLE = "QSFL_DATA_DIR"
"""Environment variable with the default data folder."""


@dataclass(frozen=True)
class Normalization:
    """Scale raw values channel by channel: ``(x - mean) / std``.

    Parameters
    ----------
    mean, std : tuple of float
        One value per channel (pictures) or per column (features), in the unit of the raw data
        (0..255 for most pictures). ``std`` is positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Format:
    """How files of the user's own are read.

    Parameters
    ----------
    task : str
        ``classes``; ``labels``, of which an example may have several; or ``values`` (regression).
    targets : tuple of str
        For ``table``: the columns that are predicted.
    id_column : str or None
        For ``table``: the column that says whose an example is.
    picture_size : int or None
        For ``images``: height and width to which pictures are scaled.
    """

    task: str = "classes"
    targets: tuple[str, ...] = ()
    id_column: str | None = None
    picture_size: int | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples for training and testing, with what is needed to use them.

    Parameters
    ----------
    name : str
        One of :data:`DATASETS`.
    x_train, x_test : ndarray
        ``uint8`` or ``float32``, shape ``(N, *input_shape)``; pictures are ``(N, C, H, W)``.
        Read-only.
    y_train, y_test : ndarray of int64, shape (N,), or of float32, shape (N, num_classes)
        Labels, 0..num_classes-1; for the other tasks numbers. Read-only.
    input_shape : tuple of int
        Shape of one example.
    num_classes : int
        Number of labels, or of the model's outputs.
    class_names : tuple of str or None
        One name per label.
    source : str
        Where the numbers came from, for the log and the report.
    normalization : Normalization
        Published constants for the named sets; for ``npz`` computed from the pooled training
        examples, which the members of a real federation would have to agree on.
    task : str
        See `Format`.
    owners : ndarray of int64, shape (N,), or None
        Whose each training example is, where the files tell.
    """

    name: str
    x_train: NDArray[np.generic]
    y_train: NDArray[Any]
    x_test: NDArray[np.generic]
    y_test: NDArray[Any]
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    source: str
    normalization: Normalization
    task: str = "classes"
    owners: NDArray[np.int64] | None = None

    def client_view(
        self, train: NDArray[np.int64], held_out: NDArray[np.int64] | Sequence[int] = ()
    ) -> Dataset:
        """Return one client's own data set: copies of rows of the training examples.

        Parameters
        ----------
        train, held_out : ndarray of int64
            Rows of ``x_train`` that the client trains on and tests on.

        Returns
        -------
        Dataset
            Same name, shape, labels and normalization; its test set is the held-out part.
        """
        train = np.asarray(train, dtype=np.int64)
        held_out = np.asarray(held_out, dtype=np.int64)
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_train[held_out],
            y_test=self.y_train[held_out],
            owners=None,
        )


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder in which data sets are looked for.

    Parameters
    ----------
    root : Path or str or None
        An explicit choice wins; then the environment variable ``QSFL_DATA_DIR``; then the
        platform's cache folder (``~/.cache/qsfl-flower`` on Linux).

    Returns
    -------
    Path
        Absolute, not necessarily existing.
    """
    chosen = root if root is not None else os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    home = Path.home()
    if sys.platform == "darwin":
        cache = home / "Library" / "Caches"
    elif os.name == "nt":
        cache = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return cache / "qsfl-flower"


def load_dataset(
    name: str,
    *,
    root: Path | None = None,
    file: Path | None = None,
    download: bool = False,
    options: Mapping[str, Any] | None = None,
    form: Format = Format(),
) -> Dataset:
    """Load a data set by name; the result is shared by all callers of the process.

    Parameters
    ----------
    name : str
        One of `DATASETS`. ``digits`` comes with scikit-learn and needs no file. ``synthetic`` is
        generated noise around ten shapes, for tests only; it is never used unless asked for by
        name.
    root : Path, optional
        Folder with ``<name>.npz`` or torchvision's layout; see :func:`data_root`. For ``images``
        the folder of the pictures.
    file : Path, optional
        For ``npz`` an archive of the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` and
        optionally ``class_names`` and ``id_train`` (whose each example is); for ``table`` a CSV or
        Parquet file.
    download : bool
        Let torchvision download a missing set into `root`.
    options : mapping, optional
        Of a data set of `SOURCES`; JSON values.
    form : Format
        How ``npz``, ``table``, ``images`` and plugins' data are read.

    Returns
    -------
    Dataset
        With read-only arrays.

    Raises
    ------
    DataError
        If the name is unknown, or the files are missing or damaged.
    """
    if name in SOURCES:
        return _load_own(name, json.dumps(dict(options or {}), sort_keys=True), form.task)
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"unknown data set {name!r}; allowed are {', '.join(DATASETS)}.{hint}")
    if (name in ("npz", "table")) != (file is not None):
        raise DataError(
            f"data set {name!r} needs the path of its file (data.file)"
            if file is None
            else f"a file ({file}) can only be given for data sets 'npz' and 'table', not {name!r}"
        )
    if name == "images" and root is None:
        raise DataError("data set 'images' needs the folder of its pictures (data.root)")
    path = None if file is None else Path(file).expanduser().absolute()
    return _load(name, data_root(root), path, download, form)


def load_writers(root: Path | None = None) -> NDArray[np.int64]:
    """Return who wrote each training example of MNIST, from ``mnist_writers.npz``.

    The file has an array ``writer_train``, one number for each row of ``mnist.npz``; QMNIST's
    labels tell them (Yadav, Bottou, "Cold case: the lost MNIST digits", 2019).

    Raises
    ------
    DataError
        If the file is missing or does not fit MNIST.
    """
    path = data_root(root) / "mnist_writers.npz"
    try:
        with np.load(path) as archive:
            writers = np.asarray(archive["writer_train"], dtype=np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"the writers of MNIST cannot be read from {path}: {error}") from error
    expected = len(load_dataset("mnist", root=root).y_train)
    if writers.shape != (expected,):
        raise DataError(f"{path}: {writers.shape} writers for {expected} examples of mnist")
    return writers


@lru_cache(maxsize=4)
def _load(name: str, root: Path, file: Path | None, download: bool, form: Format) -> Dataset:
    from qsfl_flower.clients import data_files
    from qsfl_flower.clients import data_sources as sources

    if name == "digits":
        raw = sources.digits()
    elif name == "synthetic":
        raw = sources.synthetic()
    elif name == "images":
        raw = data_files.images(root, form.picture_size)
    elif file is not None and name == "table":
        raw = data_files.table(file, form.targets, form.id_column, form.task)
    elif file is not None:
        raw = sources.npz(file, form.task)
    else:
        raw = sources.folder(name, root, download)
    return _dataset(name, raw)


@lru_cache(maxsize=4)
def _load_own(name: str, options: str, task: str) -> Dataset:
    from qsfl_flower.clients import data_sources as sources

    return _dataset(name, sources.own(name, SOURCES[name](**json.loads(options)), task))


def _dataset(name: str, raw: RawData) -> Dataset:
    from qsfl_flower.clients.data_sources import mean_and_std

    arrays = (raw.x_train, raw.y_train, raw.x_test, raw.y_test)
    for array in arrays:
        array.flags.writeable = False
    return Dataset(
        name=name,
        x_train=raw.x_train,
        y_train=raw.y_train,
        x_test=raw.x_test,
        y_test=raw.y_test,
        input_shape=tuple(raw.x_train.shape[1:]),
        num_classes=raw.num_classes,
        class_names=raw.class_names,
        source=raw.source,
        normalization=Normalization(*(raw.scale or mean_and_std(raw.x_train))),
        task=raw.task,
        owners=raw.owners,
    )
