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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import DataError

if TYPE_CHECKING:
    from qsfl_flower.clients.data_sources import RawData

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "npz", "synthetic")
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
    y_train, y_test : ndarray of int64, shape (N,)
        Labels, 0..num_classes-1. Read-only.
    input_shape : tuple of int
        Shape of one example.
    num_classes : int
        Number of labels.
    class_names : tuple of str or None
        One name per label.
    source : str
        Where the numbers came from, for the log and the report.
    normalization : Normalization
        Published constants for the named sets; for ``npz`` computed from the pooled training
        examples, which the members of a real federation would have to agree on.
    """

    name: str
    x_train: NDArray[np.generic]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.generic]
    y_test: NDArray[np.int64]
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    source: str
    normalization: Normalization

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
        return Dataset(
            name=self.name,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_train[held_out],
            y_test=self.y_train[held_out],
            input_shape=self.input_shape,
            num_classes=self.num_classes,
            class_names=self.class_names,
            source=self.source,
            normalization=self.normalization,
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
) -> Dataset:
    """Load a data set by name; the result is shared by all callers of the process.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion-mnist", "cifar10", "npz", "synthetic"}
        ``digits`` comes with scikit-learn and needs no file. ``synthetic`` is generated noise
        around ten shapes, for tests only; it is never used unless asked for by name.
    root : Path, optional
        Folder with ``<name>.npz`` or torchvision's layout; see :func:`data_root`.
    file : Path, optional
        The archive, for ``npz`` only: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``
        and optionally ``class_names``.
    download : bool
        Let torchvision download a missing set into `root`.
    options : mapping, optional
        Of a data set of `SOURCES`; JSON values.

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
        return _load_own(name, json.dumps(dict(options or {}), sort_keys=True))
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"unknown data set {name!r}; allowed are {', '.join(DATASETS)}.{hint}")
    if (name == "npz") != (file is not None):
        raise DataError(
            "data set 'npz' needs the path of the archive (data.file)"
            if name == "npz"
            else f"a file ({file}) can only be given for data set 'npz', not for {name!r}"
        )
    path = None if file is None else Path(file).expanduser().absolute()
    return _load(name, data_root(root), path, download)


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
def _load(name: str, root: Path, file: Path | None, download: bool) -> Dataset:
    from qsfl_flower.clients import data_sources as sources

    if name == "digits":
        raw = sources.digits()
    elif name == "synthetic":
        raw = sources.synthetic()
    elif file is not None:
        raw = sources.npz(file)
    else:
        raw = sources.folder(name, root, download)
    return _dataset(name, raw)


@lru_cache(maxsize=4)
def _load_own(name: str, options: str) -> Dataset:
    from qsfl_flower.clients import data_sources as sources

    return _dataset(name, sources.own(name, SOURCES[name](**json.loads(options))))


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
    )
