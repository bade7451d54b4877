"""Sums, and Multi-Krum, over updates that only a committee of clients together could open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.secure_sum import SECURE_KRUM, SECURE_SUM
from qsfl_flower.mechanisms.secure_sum.attempt import Abandoned
from qsfl_flower.mechanisms.secure_sum.options import (
    Committee,
    SecureKrumOptions,
    SecureSumOptions,
)
from qsfl_flower.mechanisms.secure_sum.stage import CommitteeStage
from qsfl_flower.rounds.update import Weighting
from qsfl_flower.secure.field import Elements
from qsfl_flower.secure.krum import check_size, scores, select
from qsfl_flower.secure.sizes import fewest_clients

__all__ = ["Committee", "SecureKrum", "SecureSum"]


@dataclass(frozen=True, eq=False, repr=False)
class SecureSum(CommitteeStage, SecureSumOptions):
    r"""Combine updates that are shared among a committee of clients, t of which open their sum.

    .. math:: \Delta = \sum_i w_i \Delta_i \Big/ \sum_i w_i, \qquad
              w_i = \min(n_i / n_{\max}, 1)

    Each client shares its clipped update, weight and metrics in fixed point among m members of a
    committee (Shamir, threshold t), sealed to their roster keys. The members check the shares
    together, then release one sum. The sum is exact in fixed point; whoever deals shares that do
    not fit, or answers with garbage, is named.

    Parameters
    ----------
    clip_norm : float
        Largest L2 norm of an update, > 0; the clients clip to it.
    committee : Committee
        Sizes and limits.
    bound : float, optional
        Largest magnitude of a coordinate; by default `clip_norm`. Noise needs more.
    bits : int
        Fractional bits, 2^-24 by default.
    max_examples : int
        No client counts for more examples than this, >= 1.
    metrics : Sequence[str]
        Metrics that are averaged under the same protection; all others stay on the devices.
    weighted_by : str
        Name of the metric that counts the examples.
    weighted : bool
        Weigh by examples; if False all clients count alike.
    enforce_norm : bool
        Have the committee open every client's squared norm, and drop clients beyond `clip_norm`.
        The server then learns every norm, and the committee needs ``m >= 2 t - 1``.
    clock : Callable[[], float]
        Unix time in seconds.

    Notes
    -----
    In an asynchronous strategy a buffer holds shares of several versions, under the same committee;
    the sum is :math:`\sum_i q_i w_i \Delta_i / (q_0 \sum_i w_i)` times the share of the buffer that
    is full, with the public weight q of an update's staleness. Shares that an earlier committee
    holds are rejected (``other-committee``).

    Who sees what: the server learns the sum over the clients that took part, of updates, weights
    and metrics, and with `enforce_norm` each norm. Members learn nothing. t - 1 members together
    with the server learn no more than the server; t learn everything. A client can still add any
    vector that is clipped; or, without `enforce_norm`, any that keeps the sum within its range and
    the mean within `clip_norm`. Weights are claims, also where they are hidden. Buffers of floats
    are part of the sum, outside of the clip norm: all clients count alike there, and one can move
    them far. With `enforce_norm`, where no client may, they stay on each device (role ``local``).

    References
    ----------
    A. Shamir, "How to share a secret", 1979. doi:10.1145/359168.359176 (docs/secure-aggregation.md
    describes the protocol).

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation, learned
    >>> federation = LocalFederation(clients=5, size=32)
    >>> view = federation.watch()  # what the server sees
    >>> outcome = federation.run([SecureSum(1.0, Committee(3, 2), clock=federation.grid_time)])
    >>> learned(federation.updates, view.bytes_up())
    []
    """

    name = SECURE_SUM.name
    declares = SECURE_SUM.traits

    _: KW_ONLY
    weighted_by: str = "num-examples"
    clock: Callable[[], float] = unix_time


@dataclass(frozen=True, eq=False, repr=False)
class SecureKrum(CommitteeStage, SecureKrumOptions):
    r"""Multi-Krum over hidden updates: the server learns how far apart they are, and one mean.

    The committee opens the squared distances between the clients' encoded updates, exactly; the
    server selects the n - f - 2 updates (or `num_selected`) with the smallest Krum scores, and the
    committee releases the sum of these alone. The selection equals that of plaintext Multi-Krum on
    the encoded updates, bit for bit.

    Parameters
    ----------
    clip_norm : float
        As in `SecureSum`.
    num_byzantine : int
        f: how many of the clients may be anything, >= 0. A round needs ``2 f + 3`` clients.
    committee : Committee
        By default 5 members with threshold 3; ``m - (2 t - 1)`` of them may vanish.
    num_selected : int, optional
        How many updates are averaged.
    bits, max_examples, metrics, weighted_by, enforce_norm, clock
        As in `SecureSum`. Selected clients count alike; the metrics are weighted by examples.

    Notes
    -----
    In an asynchronous strategy the distances are those of the unweighted updates; those selected
    count with the weights of their staleness, over the number selected of a full buffer.

    Who sees what: as in `SecureSum`, and the server learns all pairwise distances, which determine
    the updates up to rotation, reflection and translation, and who is selected. Buffers of floats
    stay on each device (role ``local``): no distance is to be told about them, and the rule would
    not cover them otherwise.

    References
    ----------
    P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries:
    Byzantine tolerant gradient descent", 2017. arXiv:1703.02757.
    J. So, B. Guler, A. S. Avestimehr, "Byzantine-resilient secure federated learning", 2021.
    arXiv:2007.11115.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation(clients=7)
    >>> krum = SecureKrum(1.0, 1, Committee(3, 2), clock=federation.grid_time)
    >>> outcome = federation.run([krum])
    >>> outcome.rounds[-1].accepted  # n - f - 2
    4
    """

    name = SECURE_KRUM.name
    distances = True
    bound = None
    weighted = False
    declares = SECURE_KRUM.traits

    _: KW_ONLY
    weighted_by: str = "num-examples"
    clock: Callable[[], float] = unix_time

    def _fewest(self) -> int:
        sizes, selected = self.committee, self.num_selected
        return fewest_clients(sizes.members, sizes.min_clients, self.num_byzantine, selected)

    def _smaller(self) -> str:
        return f"{super()._smaller()}, or tolerate fewer Byzantine clients (num_byzantine)"

    def check_buffer(self, weighting: Weighting) -> None:
        """Refuse buffers of fewer than ``2 f + 3`` updates."""
        try:
            check_size(weighting.buffer_size or 0, self.num_byzantine)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: buffer_size: {error}") from None
        super().check_buffer(weighting)

    def counted(self, size: int) -> int:
        """Return how many of a full buffer are selected."""
        return self.num_selected or size - self.num_byzantine - 2

    def _liars(self) -> list[str]:
        return [
            *super()._liars(),
            f"Multi-Krum on exact distances selects updates near to one another: it withstands "
            f"{self.num_byzantine} attackers among at least {2 * self.num_byzantine + 3} clients",
        ]

    def choose(self, distances: Elements, count: int) -> tuple[int, ...]:
        """Return the positions of the clients with the smallest Krum scores."""
        try:
            check_size(count, self.num_byzantine)
        except ConfigError as error:
            raise Abandoned(str(error)) from None
        wanted = self.num_selected or count - self.num_byzantine - 2
        return select(scores(distances, count, self.num_byzantine), wanted)
