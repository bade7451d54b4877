r"""Who masks with whom: the graph of a pairwise-mask sum, and how sure it is.

Two answers to one question. The *complete* graph needs no assumption about how it was drawn and
holds against a server that lies. The *sparse* graph of Bell et al. is a ring in random order in
which everybody is joined to the k/2 nearest on both sides; it costs k masks instead of n - 1, but
holds only against a server that draws it honestly and tells everybody the same survivors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsfl_flower.errors import ConfigError

PRIVACY_BITS = 40
"""A sparse graph fails to protect somebody with a probability of at most 2^-40."""

RECOVERY_BITS = 30
"""A sum over a sparse graph cannot be unmasked with a probability of at most 2^-30."""

MAX_CLIENTS = 4096


@dataclass(frozen=True)
class Graph:
    """A graph over n clients, and how many shares open a secret.

    Parameters
    ----------
    clients : int
        n, in [2, 4096].
    degree : int
        k: n - 1 for the complete graph, or an even number in [2, n - 2].
    threshold : int
        t, in [1, k]: of the k shares of a secret, held by the neighbours, t open it.
    """

    clients: int
    degree: int
    threshold: int

    def __post_init__(self) -> None:
        n, k, t = self.clients, self.degree, self.threshold
        if not 2 <= n <= MAX_CLIENTS:
            raise ConfigError(f"masks: {n} clients; allowed are 2 to {MAX_CLIENTS}")
        if k != n - 1 and (k % 2 or not 2 <= k < n - 1):
            raise ConfigError(
                f"masks: degree {k} with {n} clients; allowed are {n - 1} and even numbers below"
            )
        if not 1 <= t <= k:
            raise ConfigError(f"masks: threshold {t} with {k} neighbours; allowed are 1 to {k}")

    @property
    def complete(self) -> bool:
        """Whether everybody is joined to everybody."""
        return self.degree == self.clients - 1

    def neighbours(self, place: int) -> tuple[int, ...]:
        """Return the places on the ring that are joined to `place`, in ascending order."""
        n = self.clients
        if self.complete:
            return tuple(other for other in range(n) if other != place)
        half = self.degree // 2
        return tuple(sorted((place + step) % n for step in (*range(-half, 0), *range(1, half + 1))))

    def check(self, colluding: float, lost: int = 0) -> None:
        r"""Raise unless honest clients are protected.

        With :math:`c = \lfloor \gamma n \rfloor` clients that help the server: a complete graph
        needs :math:`2t > n - 1 + c`, so that of two different lists of survivors at most one finds
        t supporters. A sparse one needs that with probability :math:`1 - 2^{-40}` nobody has t
        colluding neighbours and that the honest clients who are left are connected.

        Parameters
        ----------
        colluding : float
            :math:`\gamma`, in [0, 1).
        lost : int
            Clients that dropped out.

        Raises
        ------
        ConfigError
            With what is not met.
        """
        n, c = self.clients, math.floor(colluding * self.clients)
        if self.complete:
            if 2 * self.threshold <= n - 1 + c:
                raise ConfigError(
                    f"masks: threshold {self.threshold} is too low for {n} clients of which {c} "
                    f"may help the server; it must be at least {(n - 1 + c) // 2 + 1}"
                )
            return
        exposed = math.log2(n) + log2_tail(n - 1, c, self.degree, self.threshold)
        parted = log2_gap(n, c + lost, self.degree // 2)
        if max(exposed, parted) > -PRIVACY_BITS:
            raise ConfigError(
                f"masks: degree {self.degree} and threshold {self.threshold} leave a risk of "
                f"2^{max(exposed, parted):.0f} with {n} clients, {c} colluding and {lost} lost; "
                f"allowed is 2^-{PRIVACY_BITS}"
            )


def complete_graph(clients: int, colluding: float) -> Graph:
    """Return the complete graph with the lowest threshold that a lying server cannot get round."""
    c = math.floor(colluding * clients)
    try:
        return Graph(clients, clients - 1, (clients - 1 + c) // 2 + 1)
    except ConfigError:
        raise ConfigError(
            f"masks: {clients} clients of which {c} may help the server cannot protect each other"
        ) from None


def sparse_graph(clients: int, colluding: float, dropouts: float) -> Graph:
    r"""Return the graph of the smallest degree that is safe, or the complete one.

    Parameters
    ----------
    clients : int
        n.
    colluding, dropouts : float
        Largest shares :math:`\gamma` and :math:`\delta` of clients that help the server, and that
        drop out after the shares were dealt; together below 1.

    Notes
    -----
    With hypergeometric H(marked, drawn) among the n - 1 others, k and t are the smallest with

    .. math::
        n P[H(\gamma n, k) \ge t] \le 2^{-40}, \quad
        n \prod_{i<k/2} \frac{(\gamma + \delta) n - i}{n - i} \le 2^{-40}, \quad
        n P[H(\delta n, k) > k - t] \le 2^{-30}.

    The first: nobody's secrets fall to colluding neighbours. The second: a ring falls apart only
    where k/2 neighbours in a row are colluding or lost (one such place is counted, two would be
    needed). The third: enough holders of everybody's shares remain.

    References
    ----------
    J. H. Bell, K. Bonawitz, A. Gascon, T. Lepoint, M. Raykova, "Secure single-server aggregation
    with (poly)logarithmic overhead", 2020. doi:10.1145/3372297.3417885.
    """
    c, lost = math.floor(colluding * clients), math.floor(dropouts * clients)
    for degree in range(2, clients - 1, 2):
        if log2_gap(clients, c + lost, degree // 2) > -PRIVACY_BITS:
            continue
        for threshold in range(1, degree + 1):
            held = log2_tail(clients - 1, c, degree, threshold)
            if math.log2(clients) + held > -PRIVACY_BITS:
                continue
            failed = log2_tail(clients - 1, lost, degree, degree - threshold + 1)
            if math.log2(clients) + failed <= -RECOVERY_BITS:
                return Graph(clients, degree, threshold)
            break
    return complete_graph(clients, colluding)


def log2_tail(others: int, marked: int, drawn: int, at_least: int) -> float:
    """Return log2 of the chance that `drawn` of `others` hold at least `at_least` marked ones."""
    bad = sum(
        math.comb(marked, x) * math.comb(others - marked, drawn - x)
        for x in range(max(at_least, 0), min(marked, drawn) + 1)
    )
    return math.log2(bad) - math.log2(math.comb(others, drawn)) if bad else -math.inf


def log2_gap(clients: int, gone: int, length: int) -> float:
    """Return log2 of a bound on the chance of `length` gone clients in a row on a random ring."""
    if length > gone:
        return -math.inf
    row = math.fsum(math.log2((gone - i) / (clients - i)) for i in range(length))
    return math.log2(clients) + row
