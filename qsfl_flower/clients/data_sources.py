"""Where the examples come from: scikit-learn's digits, npz archives, torchvision's files.

Every function here returns validated arrays; whoever asks for a file that is not there learns where
it was looked for and what to do.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import DataError, MissingData

Scale = tuple[tuple[float, ...], tuple[float, ...]]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class RawData:
    """Validated arrays before they become a data set; ``scale`` is None if it must be computed."""

    x_train: NDArray[np.generic]
    y_train: NDArray[Any]
    x_test: NDArray[np.generic]
    y_test: NDArray[Any]
    num_classes: int
    class_names: tuple[str, ...] | None
    source: str
    scale: Scale | None
    task: str = "classes"
    owners: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Known:
    """What is known of a named data set: torchvision's class and path, labels, channel scale."""

    torchvision_class: str
    torchvision_path: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def scale(self) -> Scale:
        return tuple(255 * m for m in self.mean), tuple(255 * s for s in self.std)


_DIGIT_NAMES = tuple("0123456789")
_KNOWN = {
    "mnist": _Known("MNIST", "MNIST/raw", _DIGIT_NAMES, (1, 28, 28), (0.1307,), (0.3081,)),
    "fashion-mnist": _Known(
        "FashionMNIST",
        "FashionMNIST/raw",
        (
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        (1, 28, 28),
        (0.2860,),
        (0.3530,),
    ),
    "cifar10": _Known(
        "CIFAR10",
        "cifar-10-batches-py",
        (
            "airplane", "automobile", "bird", "cat", "deer",
            "dog", "frog", "horse", "ship", "truck",
        ),
        (3, 32, 32),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
}  # fmt: skip


def digits() -> RawData:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels (values 0..16).

    Every fifth example of each class is for testing: stratified, and the same for ever.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data set 'digits' comes with scikit-learn, which is not installed")
    # The file is read directly: importing sklearn.datasets costs every process about 1.5 s and
    # 140 MB, more than training on the digits does.
    table_path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table_path.is_file():
        table = np.loadtxt(table_path, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels, labels = bunch.data.astype(np.uint8), bunch.target
    x = np.ascontiguousarray(pixels.reshape(-1, 1, 8, 8))
    y = labels.astype(np.int64)
    test = every_fifth(y)
    return RawData(
        x[~test], y[~test], x[test], y[test], 10, _DIGIT_NAMES, "scikit-learn digits", None
    )


def every_fifth(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which examples are for testing: stratified, and the same for ever."""
    order = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows] = np.arange(len(rows))
    test: NDArray[np.bool_] = order % 5 == 4
    return test


def synthetic(num_train: int = 2000, num_test: int = 500) -> RawData:
    """Return generated 1 x 28 x 28 pictures: ten fixed random shapes under noise. Tests only."""
    rng = np.random.default_rng(20250131)
    shapes = rng.integers(0, 2, size=(10, 1, 7, 7)).repeat(4, axis=2).repeat(4, axis=3) * 160
    y = np.arange(num_train + num_test, dtype=np.int64) % 10
    noise = rng.normal(40.0, 40.0, size=(len(y), 1, 28, 28))
    x = np.clip(shapes[y] + noise, 0, 255).astype(np.uint8)
    return RawData(
        x[:num_train], y[:num_train], x[num_train:], y[num_train:], 10, None,
        "SYNTHETIC examples, generated: results say nothing about real data", None,
    )  # fmt: skip


def npz(file: Path, task: str = "classes") -> RawData:
    """Return the examples of an npz archive of the user's own."""
    if not file.is_file():
        raise DataError(f"data file {file} does not exist (data.file)")
    arrays = _read_npz(file)
    names = arrays.get("class_names")
    class_names = None if names is None else _class_names(names, file)
    return validated(arrays, file, class_names, None, task)


def own(name: str, arrays: Mapping[str, Any], task: str) -> RawData:
    """Return the examples that a plugin's data set has given, checked as an archive's are."""
    place = f"data set {name!r}"
    if not isinstance(arrays, Mapping) or not set(_ARRAYS) <= set(arrays):
        raise DataError(f"{place} must return a mapping with the arrays {', '.join(_ARRAYS)}")
    arrays = {key: np.array(value) for key, value in arrays.items()}
    names = arrays.pop("class_names", None)
    names = None if names is None else _class_names(names, Path(place))
    return validated(arrays, Path(place), names, None, task)


def folder(name: str, root: Path, download: bool) -> RawData:
    """Return a known data set from `root`: ``<name>.npz``, else torchvision's files."""
    known = _KNOWN[name]
    archive = root / f"{name}.npz"
    if archive.is_file():
        raw = validated(_read_npz(archive), archive, known.class_names, known.scale)
        if raw.x_train.shape[1:] != known.input_shape:
            raise DataError(
                f"{archive}: {name} has examples of shape {known.input_shape}, "
                f"found {raw.x_train.shape[1:]}"
            )
        return raw
    place = root / known.torchvision_path
    if not place.is_dir() and not download:
        raise MissingData(
            f"data set {name!r} not found; looked for {archive} and {place}{os.sep}. "
            f"Set data.root or the environment variable QSFL_DATA_DIR to the folder that holds "
            f"one of them, or set data.download: true to download it to {root}"
        )
    return _from_torchvision(name, known, root, download)


def _from_torchvision(name: str, known: _Known, root: Path, download: bool) -> RawData:
    from torchvision import datasets as tv

    constructor = getattr(tv, known.torchvision_class)
    try:
        if download:
            _download(constructor, root)
        parts = [constructor(root=root, train=train, download=False) for train in (True, False)]
        arrays: dict[str, NDArray[Any]] = {}
        for part, data in zip(("train", "test"), parts, strict=True):
            arrays[f"x_{part}"] = np.asarray(data.data)
            arrays[f"y_{part}"] = np.asarray(data.targets)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        todo = "" if download else " Set data.download: true to download it again, or"
        raise DataError(
            f"data set {name!r} could not be read from {root / known.torchvision_path}: {error}."
            f"{todo} put {name}.npz into {root}"
        ) from error
    return validated(arrays, root / known.torchvision_path, known.class_names, known.scale)


def _download(constructor: Any, root: Path) -> None:
    """Download into a temporary folder first, so that no other process meets half a file."""
    try:
        constructor(root=root, train=True, download=False)
        return
    except RuntimeError:
        root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
        constructor(root=scratch, train=True, download=True)
        for path in sorted(Path(scratch).rglob("*")):
            target = root / path.relative_to(scratch)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            elif path.suffix not in (".gz", ".tar"):
                path.replace(target)


def _read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """Read an archive without ever unpickling anything."""
    try:
        with file.open("rb") as handle:
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{file} is a single array, not an npz archive")
            missing = [key for key in _ARRAYS if key not in archive.files]
            if missing:
                raise DataError(
                    f"{file} lacks the arrays {', '.join(missing)}; "
                    f"it holds {', '.join(archive.files) or 'nothing'}"
                )
            more = [key for key in ("class_names", "id_train") if key in archive.files]
            return {key: archive[key] for key in (*_ARRAYS, *more)}
    except DataError:
        raise
    except Exception as error:  # damaged bytes make zip, numpy and codecs raise a dozen kinds
        raise DataError(
            f"{file} is not a readable npz archive of plain arrays "
            f"({type(error).__name__}: {error})"
        ) from error


def validated(
    arrays: Mapping[str, NDArray[Any]],
    place: Path,
    class_names: tuple[str, ...] | None,
    scale: Scale | None,
    task: str = "classes",
) -> RawData:
    """Return arrays as examples of one shape and type, with targets that fit the task.

    Raises
    ------
    DataError
        If they are not.
    """
    x_train, x_test = (_examples(arrays[key], key, place) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{place}: examples of x_train have shape {x_train.shape[1:]}, "
            f"those of x_test {x_test.shape[1:]}"
        )
    if x_train.dtype != x_test.dtype:
        raise DataError(f"{place}: x_train is {x_train.dtype}, x_test is {x_test.dtype}")
    read = _labels if task == "classes" else partial(_numbers, task=task)
    y_train = read(arrays["y_train"], "y_train", len(x_train), place)
    y_test = read(arrays["y_test"], "y_test", len(x_test), place)
    source, owners = f"file {place}", _owners(arrays.get("id_train"), len(x_train), place)
    if task != "classes":
        if y_train.shape[1] != y_test.shape[1]:
            raise DataError(
                f"{place}: examples of y_train have {y_train.shape[1]} {task}, those of y_test "
                f"{y_test.shape[1]}"
            )
        return RawData(
            x_train, y_train, x_test, y_test, y_train.shape[1], None, source, scale, task, owners
        )
    found = np.unique(np.concatenate([y_train, y_test]))
    num_classes = len(found) if class_names is None else len(class_names)
    if found[0] < 0 or found[-1] >= num_classes:
        raise DataError(
            f"{place}: labels must be 0..{num_classes - 1} "
            + (
                "without gaps; if classes are missing, list all of them in class_names"
                if class_names is None
                else f"({num_classes} class names)"
            )
            + f", found {found[0]}..{found[-1]}"
        )
    return RawData(
        x_train, y_train, x_test, y_test, num_classes, class_names, source, scale, task, owners
    )


def _examples(x: NDArray[Any], key: str, place: Path) -> NDArray[np.generic]:
    """Return examples as uint8 or float32 with channels first."""
    if x.ndim < 2 or 0 in x.shape:
        raise DataError(
            f"{place}: {key} must be a non-empty array of examples with at least one "
            f"feature each, found shape {x.shape}"
        )
    if x.dtype.kind not in "buif":
        raise DataError(f"{place}: {key} must hold plain numbers, found dtype {x.dtype}")
    if x.dtype.kind == "b":
        x = x.astype(np.uint8)
    elif x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        bad = len(x) - int(np.isfinite(x).reshape(len(x), -1).all(axis=1).sum())
        if bad:
            raise DataError(f"{place}: {key} has NaN or infinite values in {bad} examples")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        first, last = x.shape[1], x.shape[3]  # pictures have fewer channels than rows or columns
        if last not in (1, 3) and first == last:
            raise DataError(
                f"{place}: {key} has shape {x.shape}; pictures are (N, H, W), (N, H, W, C) or "
                f"(N, C, H, W), and here neither C = 1 nor C = 3 nor the smaller of two numbers "
                "says which"
            )
        if last in (1, 3) or last < first:
            x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x)


def _labels(y: NDArray[Any], key: str, count: int, place: Path) -> NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iu" or y.shape != (count,):
        raise DataError(
            f"{place}: {key} must hold {count} whole numbers, one per example, "
            f"found {y.dtype} of shape {y.shape}"
        )
    # A copy, so that nobody else can change it; uint64 beyond the range turns negative and is
    # refused with the other labels out of range.
    return y.astype(np.int64)


def _numbers(y: NDArray[Any], key: str, count: int, place: Path, task: str) -> NDArray[np.float32]:
    """Return the targets of a regression, or of several labels: shape (N, k)."""
    y = y[:, None] if y.ndim == 1 else y
    if y.dtype.kind not in "buif" or y.ndim != 2 or len(y) != count or not y.size:
        raise DataError(
            f"{place}: {key} must hold numbers of shape ({count}, k), found {y.dtype} of shape "
            f"{y.shape}"
        )
    with np.errstate(over="ignore"):
        y = y.astype(np.float32)
    if not np.isfinite(y).all():
        raise DataError(f"{place}: {key} has NaN or infinite values")
    if task == "labels" and not np.isin(y, (0, 1)).all():
        raise DataError(f"{place}: {key} must hold 0 and 1 for task 'labels'")
    return y


def _owners(ids: NDArray[Any] | None, count: int, place: Path) -> NDArray[np.int64] | None:
    """Return whose each training example is, counted from 0."""
    if ids is None:
        return None
    if ids.shape != (count,) or ids.dtype.kind not in "iuU":
        raise DataError(
            f"{place}: id_train must name whose each of {count} examples is, in whole numbers or "
            f"texts, found {ids.dtype} of shape {ids.shape}"
        )
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _class_names(names: NDArray[Any], place: Path) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U" or not 0 < len(names) <= 100_000:
        raise DataError(
            f"{place}: class_names must be a list of texts, found {names.dtype} {names.shape}"
        )
    return tuple(cast("list[str]", names.tolist()))


def mean_and_std(x: NDArray[np.generic]) -> Scale:
    """Return mean and standard deviation of each channel (axis 1), in float64.

    A constant channel gets the standard deviation 1.
    """
    mean, std = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].astype(np.float64)
        mean.append(float(values.mean()))
        std.append(float(values.std()) or 1.0)
    return tuple(mean), tuple(std)
