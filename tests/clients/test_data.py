"""Data sets: values, validation, hostile archives, torchvision's layouts, clear errors."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as tv

from qsfl_flower.clients import data as data_module
from qsfl_flower.clients import data_sources
from qsfl_flower.clients.data import DATASETS, Normalization, data_root, load_dataset
from qsfl_flower.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def arrays(shape: tuple[int, ...] = (6, 5), **changes: Any) -> dict[str, np.ndarray]:
    """Return a small valid archive of two classes, with some arrays replaced."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "x_train": rng.random(shape).astype(np.float32),
        "y_train": np.arange(shape[0]) % 2,
        "x_test": rng.random(shape).astype(np.float32),
        "y_test": np.arange(shape[0]) % 2,
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def archive(folder: Path, name: str = "own.npz", **content: Any) -> Path:
    path = folder / name
    np.savez(path, **content)
    return path


def test_digits_are_complete_stratified_and_offline() -> None:
    data = load_dataset("digits")
    assert data.input_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.x_train.dtype == np.uint8
    assert data.x_train.max() == 16
    assert len(data.y_train) + len(data.y_test) == 1797
    # UCI's documented class counts of the test part, which scikit-learn bundles.
    counts = np.bincount(data.y_train) + np.bincount(data.y_test)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    shares = np.bincount(data.y_test) / counts
    assert np.all(np.abs(shares - 0.2) < 0.01)


def test_digits_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    ours, theirs = load_dataset("digits"), load_digits()
    pixels = np.concatenate([ours.x_train, ours.x_test]).reshape(1797, 64)
    labels = np.concatenate([ours.y_train, ours.y_test])
    table = np.column_stack([pixels, labels])
    expected = np.column_stack([theirs.data, theirs.target]).astype(np.int64)
    assert sorted(map(tuple, table.tolist())) == sorted(map(tuple, expected.tolist()))


def test_digits_without_the_bundled_file_come_from_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = data_sources.digits()
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    fallback = data_sources.digits()
    np.testing.assert_array_equal(fallback.x_train, expected.x_train)
    np.testing.assert_array_equal(fallback.y_test, expected.y_test)


def test_synthetic_data_says_loudly_that_it_is_synthetic() -> None:
    data = load_dataset("synthetic")
    assert data.source.startswith("SYNTHETIC")
    assert data.input_shape == (1, 28, 28)
    assert np.bincount(data.y_train).tolist() == [200] * 10
    again = data_sources.synthetic()
    np.testing.assert_array_equal(data.x_train, again.x_train)


def test_arrays_are_shared_and_read_only() -> None:
    data = load_dataset("digits")
    assert load_dataset("digits") is data
    with pytest.raises(ValueError, match="read-only"):
        data.x_train[0] = 0


def test_client_view_copies_the_rows_asked_for() -> None:
    data = load_dataset("digits")
    view = data.client_view(np.array([3, 1]), np.array([7]))
    np.testing.assert_array_equal(view.x_train, data.x_train[[3, 1]])
    np.testing.assert_array_equal(view.y_test, data.y_train[[7]])
    assert view.normalization == data.normalization
    view.x_train[0] = 0  # the client's own memory
    assert len(data.client_view(np.array([1])).y_test) == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5), (5,)),
        ((6, 9, 7), (1, 9, 7)),
        ((6, 9, 7, 3), (3, 9, 7)),
        ((6, 9, 7, 1), (1, 9, 7)),
        ((6, 3, 9, 7), (3, 9, 7)),
        ((6, 2, 3, 4, 5), (2, 3, 4, 5)),
    ],
)
def test_npz_becomes_channels_first(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    data = load_dataset("npz", file=archive(tmp_path, **arrays(shape)))
    assert data.input_shape == expected
    assert data.num_classes == 2
    assert data.x_train.dtype == np.float32
    assert data.x_train.flags["C_CONTIGUOUS"]


def test_channels_last_pictures_keep_their_pixels(tmp_path: Path) -> None:
    content = arrays((6, 9, 7, 3))
    data = load_dataset("npz", file=archive(tmp_path, **content))
    assert data.x_train[4, 2, 8, 6] == content["x_train"][4, 8, 6, 2]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("u1", "u1"), ("?", "u1"), ("f8", "f4"), ("f2", "f4"), ("i4", "f4"), (">f4", "f4")],
)
def test_npz_number_types(tmp_path: Path, dtype: str, expected: str) -> None:
    x = np.array([[0, 1], [1, 0]]).astype(dtype)
    content = {"x_train": x, "y_train": np.array([[0], [1]]), "x_test": x, "y_test": [1, 0]}
    data = load_dataset("npz", file=archive(tmp_path, **content))
    assert data.x_train.dtype == np.dtype(expected)
    assert data.x_train.tolist() == [[0, 1], [1, 0]]
    assert data.y_train.tolist() == [0, 1]


def test_npz_normalization_by_hand(tmp_path: Path) -> None:
    x = np.array([[0.0, 5.0], [2.0, 5.0]])
    content = {"x_train": x, "y_train": [0, 1], "x_test": x, "y_test": [0, 1]}
    data = load_dataset("npz", file=archive(tmp_path, **content))
    # Column 1: mean 1, deviation 1. Column 2 is constant: its deviation counts as 1.
    assert data.normalization == Normalization((1.0, 5.0), (1.0, 1.0))


def test_npz_class_names_decide_the_number_of_classes(tmp_path: Path) -> None:
    path = archive(tmp_path, **arrays(), class_names=np.array(["a", "b", "c"]))
    data = load_dataset("npz", file=path)
    assert data.class_names == ("a", "b", "c")
    assert data.num_classes == 3


BAD_ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (arrays(y_test=None), "lacks the arrays y_test"),
    "pickle": (arrays(x_train=np.array([{}, None], dtype=object)), "allow_pickle=False"),
    "pickled-names": (arrays(class_names=np.array(["a", None], dtype=object)), "allow_pickle"),
    "nan": (arrays(x_test=np.full((6, 5), np.nan, np.float32)), "x_test has NaN .* in 6 examples"),
    "infinite": (arrays(x_train=np.array([[1e300] * 5] * 6)), "x_train has NaN or infinite"),
    "complex": (arrays(x_train=np.zeros((6, 5), complex)), "plain numbers, found dtype complex128"),
    "text": (arrays(x_train=np.full((6, 5), "a")), "plain numbers, found dtype <U1"),
    "no-features": (arrays(x_train=np.zeros(6, np.float32)), r"found shape \(6,\)"),
    "empty": (arrays(x_train=np.zeros((0, 5), np.float32)), "non-empty"),
    "lengths": (arrays(y_train=np.zeros(5, int)), "y_train must hold 6 whole numbers"),
    "float-labels": (arrays(y_train=np.zeros(6)), "whole numbers, .* found float64"),
    "negative-label": (arrays(y_train=np.arange(6) % 2 - 1), r"found -1\.\.1"),
    "gap": (
        arrays(y_test=np.array([0, 1, 0, 5, 0, 1])),
        r"without gaps; if classes are missing, .* found 0\.\.5",
    ),
    "huge-label": (arrays(y_test=np.array([2**63 + 1] * 6, np.uint64)), "labels must be 0"),
    "too-few-names": (arrays(class_names=np.array(["a"])), r"\(1 class names\), found 0\.\.1"),
    "names-of-numbers": (arrays(class_names=np.arange(2)), "list of texts"),
    "shapes-differ": (arrays(x_test=np.zeros((6, 4), np.float32)), r"\(5,\), those of x_test \(4,"),
    "types-differ": (arrays(x_test=np.zeros((6, 5), np.uint8)), "x_test is uint8"),
    "channels": (arrays((6, 5, 7, 5)), "neither C = 1 nor C = 3"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    content, message = BAD_ARCHIVES[case]
    path = archive(tmp_path, **content)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("npz", file=path)
    assert str(path) in str(caught.value)


def test_damaged_archives_are_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    good = archive(tmp_path, **arrays((50, 40))).read_bytes()
    bomb = pickle.dumps(np.array(["would run code"], dtype=object))
    for number, damaged in enumerate(
        [b"", b"PK", bomb, b"\x93NUMPY\x01\x00", good[: len(good) // 2]]
    ):
        path = tmp_path / f"bad{number}.npz"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable npz archive"):
            load_dataset("npz", file=path)


def test_a_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    path = archive(tmp_path, **arrays((12, 20)))
    good = path.read_bytes()
    expected = data_sources.npz(path)
    refused = 0
    for position in range(0, len(good), 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
        try:
            found = data_sources.npz(path)
        except DataError:
            refused += 1
        else:  # a field of the container that nobody reads, such as the date of a member
            np.testing.assert_array_equal(found.x_train, expected.x_train)
            np.testing.assert_array_equal(found.y_test, expected.y_test)
    assert refused > len(good) / 5 / 2


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 5), }"
    header += b" " * (128 - 10 - 1 - len(header)) + b"\n"
    lie = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 40
    path = archive(tmp_path, **arrays(x_train=None))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x_train.npy", lie)
    with pytest.raises(DataError, match="not a readable npz archive"):
        load_dataset("npz", file=path)


def test_a_single_array_is_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load_dataset("npz", file=path)


def test_names_and_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"allowed are digits, mnist.* Did you mean 'cifar10'"):
        load_dataset("cifar-10")
    with pytest.raises(DataError, match=r"needs the path .*data\.file"):
        load_dataset("npz")
    with pytest.raises(DataError, match="only be given for data sets 'npz' and 'table'"):
        load_dataset("mnist", file=tmp_path / "x.npz")
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("npz", file=tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_missing_data_set_tells_where_it_was_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / f"{name}.npz"), "data.root", "QSFL_DATA_DIR", "data.download"):
        assert part in message


def test_the_root_is_the_argument_else_the_variable_else_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSFL_DATA_DIR", str(tmp_path / "variable"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "variable"
    monkeypatch.setenv("QSFL_DATA_DIR", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "qsfl-flower"


def idx(values: np.ndarray) -> bytes:
    """Return an array in the idx format (0, 0, type 8 = unsigned byte, dimensions, sizes)."""
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.astype(np.uint8).tobytes()
    )


def mnist_files(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", 30), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return files


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_torchvisions_idx_files_are_read(tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    files = mnist_files()
    for file, content in files.items():
        (tmp_path / folder / file).write_bytes(content)
    data = load_dataset(name, root=tmp_path)
    assert data.x_train.shape == (30, 1, 28, 28)
    assert data.x_test.shape == (20, 1, 28, 28)
    assert data.x_train.tobytes() == files["train-images-idx3-ubyte"][16:]
    assert data.y_test.tolist() == list(range(10)) * 2
    assert data.num_classes == 10
    assert str(tmp_path) in data.source


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(DataError, match=r"could not be read.*data\.download: true"):
        load_dataset("mnist", root=tmp_path)


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file, content in mnist_files().items():
        (folder / file).write_bytes(content[: len(content) - 5])
    with pytest.raises(DataError, match="could not be read"):
        load_dataset("mnist", root=tmp_path)


def cifar_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write CIFAR-10 in torchvision's layout, 20 pictures a batch; return the training pixels.

    Torchvision refuses batches whose checksum is not the original's before it unpickles them; the
    checksums of the crafted files take their place, the rest is torchvision's own code.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = []
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = rng.integers(0, 256, (20, 3072)).astype(np.uint8)
        content = pickle.dumps({"data": rows, "labels": [i % 10 for i in range(20)]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
        pixels.append(rows)
    meta = pickle.dumps({"label_names": ["?"] * 10})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[n, sums[n]] for n in sums if n != "test_batch"])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta_info = {**tv.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta_info)
    return np.concatenate(pixels[:5])


def test_torchvisions_cifar_batches_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = cifar_folder(tmp_path, monkeypatch)
    data = load_dataset("cifar10", root=tmp_path)
    assert data.x_train.shape == (100, 3, 32, 32)
    assert data.x_test.shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(data.x_train.reshape(100, -1), pixels)
    assert data.class_names is not None
    assert data.class_names[3] == "cat"


def test_altered_cifar_batches_are_refused_before_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar_folder(tmp_path, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match="could not be read"):
        load_dataset("cifar10", root=tmp_path)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on this machine; yields the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_download_goes_through_torchvision_and_leaves_a_readable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for name, content in mnist_files().items():
        packed = gzip.compress(content, mtime=0)
        (mirror / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(tv.MNIST, "resources", resources)
    root = tmp_path / "root"
    with served(mirror) as address:
        monkeypatch.setattr(tv.MNIST, "mirrors", [address])
        downloaded = load_dataset("mnist", root=root, download=True)
    assert {p.name for p in root.iterdir()} == {"MNIST"}  # no scratch folder is left
    local = load_dataset("mnist", root=root)
    np.testing.assert_array_equal(local.x_train, downloaded.x_train)
    data_module._load.cache_clear()  # the server is gone: nothing can be fetched again
    load_dataset("mnist", root=root, download=True)


def test_a_failed_download_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tv.MNIST, "mirrors", [(tmp_path / "nothing").as_uri() + "/"])
    with pytest.raises(DataError, match=r"could not be read.*Error downloading"):
        load_dataset("mnist", root=tmp_path / "root", download=True)


def test_a_known_set_must_have_its_shape(tmp_path: Path) -> None:
    archive(tmp_path, "mnist.npz", **arrays((6, 9, 7)))
    with pytest.raises(DataError, match=r"mnist has examples of shape \(1, 28, 28\)"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_files(name: str) -> None:
    if not (SHARED / f"{name}.npz").is_file():
        pytest.skip(f"{name}.npz is not in the folder shared/data beside the repository")
    data = load_dataset(name, root=SHARED)
    mean, std = data_sources.mean_and_std(data.x_train)
    # The published constants describe the original pixels; CIFAR-10's file is a JPEG copy.
    np.testing.assert_allclose(mean, data.normalization.mean, atol=255 * 0.003)
    np.testing.assert_allclose(std, data.normalization.std, atol=255 * 0.005)
    if name == "mnist":
        assert data.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(data.y_test).tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
        ]  # fmt: skip


def test_loading_digits_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qsfl_flower.clients.data import load_dataset; load_dataset('digits'); "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
    assert set(DATASETS) >= {"digits", "npz"}
