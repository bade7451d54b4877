"""Secure sums without a committee: the clients mask their updates for each other."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.authentication.server import SERVER
from qsfl_flower.mechanisms.masked_sum import MASKED_SUM
from qsfl_flower.mechanisms.masked_sum.options import MaskedSumOptions
from qsfl_flower.mechanisms.masked_sum.run import Run
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.admission import check_encoding
from qsfl_flower.rounds.context import RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, HiddenSum, Sentences, Topic
from qsfl_flower.rounds.stages import Combined, CombineStage, Stage
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, Weighting
from qsfl_flower.secure.pairwise import server
from qsfl_flower.secure.pairwise.graph import complete_graph, sparse_graph
from qsfl_flower.secure.pairwise.ring import LIMBS, RingCode, decode_scalars
from qsfl_flower.secure.pairwise.terms import Terms
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.wire import (
    PAYLOAD_RECORD,
    ClientPhase,
    Form,
    PlanItem,
    content_bytes,
    from_record,
    records_of,
)

_MAX_TERMS = 32 * 1024


@dataclass(frozen=True, eq=False, repr=False)
class MaskedSum(CombineStage, MaskedSumOptions):
    r"""Combine updates that are masked so that only their sum can be read.

    .. math:: \Delta = \sum_i w_i \Delta_i \Big/ \sum_i w_i, \qquad
              w_i = \min(n_i / n_{\max}, 1)

    Both sums, and the metrics, are taken under the masks; weights are hidden like updates. The sum
    is exact in fixed point of 2^-f, the finest that 4 bytes per coordinate and the number of
    clients allow (f = 24 for 10 clients and a bound of 8).

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, as for `Authenticate`, which the chain needs too; the clients
        need `auth_mod`.
    bound : float
        Largest magnitude of a coordinate of a difference, > 0. A client with a larger one does not
        take part; `Clip` with a norm of at most `bound` excludes that.
    min_clients : int
        Least number of clients in a sum, >= 2; the clients release no other, nor one of fewer than
        their own least cohort, which is 3 unless a node says otherwise.
    max_examples : int
        No client counts for more examples than this, >= 1.
    metrics : Sequence[str]
        Metrics that are averaged under the masks; all others stay on the devices.
    weighted_by : str
        Name of the metric that counts the examples.
    colluding : float
        Share of the clients that may help the server, in [0, 1).
    sparse : bool
        Use a sparse graph: k masks per client instead of n - 1. It protects against an honest but
        curious server only; the complete graph also against a server that lies.
    dropouts : float
        For a sparse graph: share of the clients that may drop out after the shares were dealt.
    clock : Callable[[], float]
        Unix time in seconds.

    Notes
    -----
    Who sees what: the server learns the sum over the survivors, and who dropped out when. So does
    whoever is given the model. A client learns nothing about the others but their names. With
    `colluding` of the clients on its side, the server still learns no more than the sum over all
    others. Buffers of floats are part of the sum, whatever `Clip` says; all clients count alike
    there, and one can move them far. All clients in a sum have answered one instruction, or none of
    them masks anything.

    A client cannot be stopped from adding garbage of its own. One that makes a sum fail takes no
    part in later rounds if bytes that it has signed prove it. If one of two clients lies about the
    other and nothing proves which, the two never share an edge again, and nobody is excluded; from
    then on clients try their packets before they mask (one more exchange), so that complaints cost
    no round.

    References
    ----------
    K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning",
    2017. doi:10.1145/3133956.3133982.
    J. H. Bell, K. Bonawitz, A. Gascon, T. Lepoint, M. Raykova, "Secure single-server aggregation
    with (poly)logarithmic overhead", 2020. doi:10.1145/3372297.3417885.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation, learned
    >>> federation = LocalFederation(clients=5, size=32)
    >>> view = federation.watch()  # what the server sees
    >>> masked = MaskedSum(federation.credentials, bound=1.0, clock=federation.grid_time)
    >>> outcome = federation.run([Clip(1.0), masked])
    >>> learned(federation.updates, view.bytes_up())
    []
    """

    name = MASKED_SUM.name
    hides = True
    sums_statistics = True
    needs_norms = False
    declares = MASKED_SUM.traits

    credentials: Credentials | Path | str
    _: KW_ONLY
    weighted_by: str = "num-examples"
    clock: Callable[[], float] = unix_time

    _opened: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        """Raise what would otherwise end the first round."""
        self.roster  # noqa: B018  # reads a folder
        super().__post_init__()
        self.tally  # noqa: B018  # checks the metrics
        RingCode(self.bound, 2)

    @cached_property
    def roster(self) -> Roster:
        """Who is enrolled."""
        return Credentials.given(self.credentials, "server", SERVER).roster

    @cached_property
    def tally(self) -> Tally:
        """What is summed behind the update."""
        return Tally(self.max_examples, self.metrics, self.weighted_by)

    @property
    def facts(self) -> Facts:
        """What is opened."""
        opened = HiddenSum(
            min_clients=self.min_clients,
            bound=self.bound,
            bits=lambda clients: RingCode(self.bound, clients).bits,
            metrics=self.tally.metrics,
        )
        return Facts(sum=opened)

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Find which metrics the other stages let leave the devices."""
        return self.knowing(_opened=Facts.left_of(self.tally.metrics, [s.facts for s in stages]))

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is opened, and who could open more."""
        opened = self.metrics if self._opened is None else self._opened
        metrics = f" and {', '.join(opened)}" if opened else ""
        return {
            Topic.SERVER: [
                f"one sum a round, of the updates{Statistics(layout).told}, numbers of examples"
                f"{metrics} of all clients that stayed to the end"
            ],
            Topic.CLIENT: [
                f"who else takes part; {self.colluding:.0%} of the clients and the server together "
                "learn no more than the sum over all others"
            ],
            Topic.NETWORK: ["updates only if both X25519 and ML-KEM-768 are broken"],
            Topic.LIARS: [
                f"no coordinate of an update is larger than {self.bound:g}, or its own client "
                "refuses; an attacker can spoil a sum with garbage"
            ],
        }

    def upload(self, size: int, clients: int) -> int:
        """Return the bytes of the masked vector, and of the shares for the others."""
        return 4 * (size + self.tally.size) + 4000 * (clients - 1)

    def least_clients(self, weighting: Weighting) -> int:
        """Return how many clients the smallest sum has."""
        del weighting
        return self.min_clients

    def init(self, layout: Layout) -> State:
        """Start without knowing who is at which node."""
        del layout
        return {"names": {}, "terms": "", "excluded": {}, "apart": []}

    def prepare(self, state: State, context: RoundContext) -> State:
        """Fix the terms of the sum before training, if everybody's name is known already."""
        names = [state["names"].get(str(sender.node_id)) for sender in context.senders]
        names = [name for name in names if name not in state["excluded"]]
        terms, apart = "", _pairs(state)
        if None not in names and len(set(names)) == len(names):
            with suppress(server.SumAbandoned):
                terms = base64.b64encode(self._terms(names, apart, context).encode()).decode()
        return {**state, "terms": terms if len(terms) <= _MAX_TERMS else ""}

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask for encoded updates, and for shares if the terms are known."""
        parameters = {
            "round": context.server_round,
            "terms": state["terms"],
            "clients": len(context.senders),
            "bound": self.bound,
            "min_clients": self.min_clients,
            "max_examples": self.tally.max_examples,
            "metrics": list(self.tally.metrics),
            "weighted_by": self.tally.weighted_by,
        }
        return [(ClientPhase.ENCODE, PlanItem(self.name, parameters))]

    def read(self, sender: Sender, content: RecordDict, context: RoundContext) -> Update:
        """Read a reply that holds shares for the neighbours, or nothing yet."""
        del context
        check_encoding(content, self.name)
        record = records_of(content, ArrayRecord).get(PAYLOAD_RECORD)
        array = None if record is None else from_record(record).get("deal")
        if array is None or array.dtype != np.uint8:
            raise RejectedUpdate("malformed", "the reply has no shares")
        return Update(
            sender,
            num_examples=1.0,
            vector=Vector(()),
            form=Form.DELTA,
            bytes_up=content_bytes(content),
            sealed=array.tobytes(),
        )

    def combine(self, cohort: Cohort, state: State, context: RoundContext) -> Combined:
        """Have the clients deal shares, mask, and release; read the sum."""
        excluded = dict(state["excluded"])
        # Authentication lets each name in once.
        names = {str(u.sender.node_id): u.sender.name for u in cohort.updates}
        updates = {u.sender.name: u for u in cohort.updates if u.sender.name not in excluded}
        senders = {name: update.sender for name, update in updates.items()}
        run = Run(self.roster, context, senders, int(self.clock()), _pairs(state))
        step, metrics, skipped = None, None, None
        statistics: Mapping[str, NDArray[Any]] = {}
        try:
            step, metrics, statistics = self._sum(run, state["terms"], updates, context)
        except (server.SumAbandoned, RejectedUpdate) as error:
            skipped = str(error)
            excluded |= run.proven
            if isinstance(error, server.SumAbandoned) and error.culprit is not None:
                excluded[error.culprit] = error.reason
        barred = [
            Rejection(u.sender, "excluded", f"for {excluded[u.sender.name]}, which is proven")
            for u in cohort.updates
            if u.sender.name not in updates
        ]
        kept = tuple(
            replace(u, status=run.faults.get(name, u.status))
            for name, u in updates.items()
            if name not in run.lost
        )
        measured = {"clients": float(len(kept)), "exchanges": float(run.exchanges)}
        if run.terms is not None:
            measured["degree"] = float(run.terms.degree)
            measured["threshold"] = float(run.terms.threshold)
        cohort = Cohort(kept, (*cohort.rejections, *barred, *run.lost.values()))
        state = {
            "names": {**state["names"], **names},
            "terms": "",
            "excluded": excluded,
            "apart": sorted([*pair] for pair in run.apart),
        }
        return Combined(cohort, step, state, measured, skipped, metrics, statistics)

    def _sum(
        self,
        run: Run,
        terms: str,
        updates: Mapping[str, Update],
        context: RoundContext,
    ) -> tuple[NDArray[np.float64], Mapping[str, float], Mapping[str, NDArray[Any]]]:
        dealt = Terms.decode(base64.b64decode(terms)) if terms else None
        if dealt is None or not run.dealt_enough(dealt, updates):
            left = [name for name in updates if name not in run.lost]
            run.ask_to_deal(self._terms(left, run.apart, context))
        if run.apart:
            run.ask_to_check()
        size = context.layout.size if context.support is None else context.support.size
        hidden = Statistics(context.layout)
        total = run.ask_to_mask(size + LIMBS * (self.tally.size + hidden.size))
        if len(run.lockers) < self.min_clients:
            raise server.SumAbandoned(
                "too-few-clients", f"{len(run.lockers)} are left, a sum needs {self.min_clients}"
            )
        run.ask_to_release(total)
        clients = len(run.lockers)
        code = RingCode(self.bound, len(context.senders))
        integers = decode_scalars(total[size:])
        weight, metrics = self.tally.read(integers[: self.tally.size].tolist(), clients)
        step = code.decode(total[:size], clients)
        step /= context.weighting.denominator or weight
        return step, metrics, hidden.read(integers[self.tally.size :], clients, context.carried)

    def _terms(
        self, names: Sequence[str], apart: Set[tuple[str, str]], context: RoundContext
    ) -> Terms:
        """Return terms for all of these clients but those who are apart from too many others."""
        left = sorted(names)
        while len(left) >= self.min_clients:
            n = len(left)
            try:
                graph = (
                    sparse_graph(n, self.colluding, self.dropouts)
                    if self.sparse
                    else complete_graph(n, self.colluding)
                )
            except ConfigError as error:
                raise server.SumAbandoned("too-few-clients", str(error)) from None
            pairs = tuple(sorted(pair for pair in apart if set(pair) <= set(left)))
            where = context.run_id, context.server_round
            terms = Terms(
                *where,
                tuple(left),
                graph.degree,
                graph.threshold,
                apart=pairs,
                purpose=context.purpose,
            )
            if not (alone := terms.isolated()):
                return terms
            left.remove(alone[0])
        raise server.SumAbandoned(
            "too-few-clients",
            f"{len(left)} of {len(names)} clients can share edges, a sum needs {self.min_clients}",
        )


def _pairs(state: State) -> set[tuple[str, str]]:
    return {(a, b) for a, b in state.get("apart", ())}
