"""Who owns which examples: flwr-datasets' partitioners, as lists of row numbers.

Importing flwr-datasets (pandas, pyarrow) takes about two seconds and 200 MB, so it happens on the
first call only, and a process computes each partition once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = NDArray[np.int64]

# Dirichlet draws are rejected until the smallest client is large enough; flwr-datasets gives up
# after 11 draws, which fails too often for many clients, so we go on with derived seeds.
_DIRICHLET_SEEDS = 20


@dataclass(frozen=True)
class Iid:
    """Equal parts drawn at random (sizes differ by at most one)."""


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: the share of each label that a client gets is drawn from Dirichlet(alpha).

    Parameters
    ----------
    alpha : float
        Concentration, > 0: small values give clients of few labels, large ones equal shares.
    min_size : int
        Smallest number of examples a client may get, >= 1; draws with a smaller client are
        repeated.

    References
    ----------
    T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the effects of non-identical data distribution for
    federated visual classification", 2019. arXiv:1909.06335.
    """

    alpha: float
    min_size: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"Dirichlet alpha must be a finite number > 0, found {self.alpha!r}")
        if self.min_size < 1:
            raise ConfigError(f"Dirichlet min_size must be >= 1, found {self.min_size!r}")


@dataclass(frozen=True)
class Shards:
    """Label skew: examples sorted by label, cut into equal shards, each client gets some.

    Up to (number of shards - 1) examples that do not fill a shard are left out, more if there are
    hardly more examples than shards.

    Parameters
    ----------
    shards_per_client : int
        >= 1; with 2, most clients know two labels.

    References
    ----------
    H. B. McMahan et al., "Communication-efficient learning of deep networks from decentralized
    data", 2017. arXiv:1602.05629.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        if self.shards_per_client < 1:
            raise ConfigError(f"shards_per_client must be >= 1, found {self.shards_per_client!r}")


Partition = Iid | Dirichlet | Shards


def partition(
    labels: NDArray[np.integer[Any]], num_partitions: int, scheme: Partition, seed: int
) -> list[Indices]:
    """Divide examples among clients.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        Label of every example.
    num_partitions : int
        Number of clients, >= 1.
    scheme : Iid or Dirichlet or Shards
        How to divide.
    seed : int
        Same labels, scheme and seed give the same partition.

    Returns
    -------
    list of ndarray of int64
        Row numbers of each client: disjoint, none empty, sorted. Together they cover all rows,
        except for the remainder that `Shards` leaves out.

    Raises
    ------
    DataError
        If there are too few examples for so many clients.
    """
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if num_partitions < 1:
        raise ConfigError(f"the number of clients must be >= 1, found {num_partitions!r}")
    _check_enough(len(labels), num_partitions, scheme)
    parts = _partition(labels.tobytes(), num_partitions, scheme, seed)
    return [part.copy() for part in parts]


@lru_cache(maxsize=8)
def _partition(
    labels: bytes, num_partitions: int, scheme: Partition, seed: int
) -> tuple[Indices, ...]:
    # Row order in files often follows the label or the writer; flwr-datasets takes rows as they
    # come (its IID parts are contiguous blocks), so they are shuffled first.
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels) // 8)
    shuffled = np.frombuffer(labels, dtype=np.int64)[rows]
    if isinstance(scheme, Dirichlet):
        return _dirichlet(rows, shuffled, num_partitions, scheme, rng)
    from flwr_datasets.partitioner import IidPartitioner, ShardPartitioner

    if isinstance(scheme, Shards):
        partitioner = ShardPartitioner(
            num_partitions=num_partitions,
            partition_by="label",
            num_shards_per_partition=scheme.shards_per_client,
            shuffle=False,
            seed=seed,
        )
    else:
        partitioner = IidPartitioner(num_partitions=num_partitions)
    return _apply(partitioner, rows, shuffled, num_partitions)


def _dirichlet(
    rows: Indices,
    labels: Indices,
    num_partitions: int,
    scheme: Dirichlet,
    rng: np.random.Generator,
) -> tuple[Indices, ...]:
    from flwr_datasets.partitioner import DirichletPartitioner

    for _ in range(_DIRICHLET_SEEDS):
        partitioner = DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by="label",
            alpha=float(scheme.alpha),
            min_partition_size=scheme.min_size,
            self_balancing=False,
            shuffle=False,
            seed=int(rng.integers(2**63)),
        )
        try:
            return _apply(partitioner, rows, labels, num_partitions)
        except ValueError:
            continue
    raise DataError(
        f"no Dirichlet({scheme.alpha}) draw gave each of {num_partitions} clients at least "
        f"{scheme.min_size} of the {len(rows)} examples; raise alpha, lower min_size, or take "
        "fewer clients"
    )


def _apply(
    partitioner: Partitioner, rows: Indices, labels: Indices, num_partitions: int
) -> tuple[Indices, ...]:
    from datasets import Dataset, disable_progress_bars

    class Table(Dataset):  # type: ignore[misc]
        """Has its labels at hand; flwr-datasets would read the column value by value."""

        def __getitem__(self, key: Any) -> Any:
            return labels if key == "label" else super().__getitem__(key)

    disable_progress_bars()
    table = Table.from_dict({"label": labels, "row": rows}).with_format("arrow")
    partitioner.dataset = table
    parts: list[Indices] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning per rejected Dirichlet draw
        for client in range(num_partitions):
            part = partitioner.load_partition(client)[:]
            parts.append(np.sort(part.column("row").to_numpy()))
    return tuple(parts)


def _check_enough(num_examples: int, num_partitions: int, scheme: Partition) -> None:
    per_client = 1
    if isinstance(scheme, Dirichlet):
        per_client = scheme.min_size
    elif isinstance(scheme, Shards):
        per_client = scheme.shards_per_client
    if num_examples < num_partitions * per_client:
        raise DataError(
            f"{num_examples} examples are too few for {num_partitions} clients with at least "
            f"{per_client} each ({scheme}); take fewer clients or more data"
        )


def by_writer(writers: NDArray[np.integer[Any]], num_partitions: int, seed: int) -> list[Indices]:
    """Divide examples by who made them: the natural partition.

    Parameters
    ----------
    writers : ndarray of int, shape (n,)
        Who made each example.
    num_partitions : int
        Number of clients, at most one for each writer; if there are fewer, each gets several whole
        writers, up to one more than another.
    seed : int
        Of the order of the writers.

    Returns
    -------
    list of ndarray of int64
        Row numbers of each client, as `partition`.

    Raises
    ------
    DataError
        If there are more clients than writers.
    """
    names = np.unique(writers)
    if not 1 <= num_partitions <= len(names):
        raise DataError(
            f"{len(names)} writers (ids) cannot be divided among {num_partitions} clients; take at "
            "least 1 and at most as many as there are writers"
        )
    order = np.random.default_rng(seed).permutation(names)
    client_of = {writer: i % num_partitions for i, writer in enumerate(order.tolist())}
    owners = np.array([client_of[w] for w in writers.tolist()])
    return [np.flatnonzero(owners == client) for client in range(num_partitions)]


def split(
    indices: Indices, test_fraction: float, seed: int | Sequence[int]
) -> tuple[Indices, Indices]:
    """Divide one client's examples into a training and a held-out part.

    Parameters
    ----------
    indices : ndarray of int64, shape (n,)
        Row numbers of the client.
    test_fraction : float
        0 <= fraction < 1; the held-out part has round(n * fraction) examples, and at least one
        example is left for training.
    seed : int or sequence of int
        Pass ``(seed, client)`` to give every client its own choice.

    Returns
    -------
    train, held_out : ndarray of int64
        Sorted row numbers.
    """
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction must be >= 0 and < 1, found {test_fraction!r}")
    count = min(round(len(indices) * test_fraction), max(len(indices) - 1, 0))
    shuffled = np.random.default_rng(seed).permutation(indices)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def label_counts(
    labels: NDArray[np.integer[Any]], parts: Sequence[Indices], num_classes: int
) -> NDArray[np.int64]:
    """Count the labels of every client.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        Label of every example, 0..num_classes-1.
    parts : sequence of ndarray of int64
        Row numbers of each client.
    num_classes : int
        Number of labels.

    Returns
    -------
    ndarray of int64, shape (len(parts), num_classes)
        Examples of each label at each client.
    """
    return np.array(
        [np.bincount(labels[part], minlength=num_classes) for part in parts], dtype=np.int64
    ).reshape(len(parts), num_classes)
