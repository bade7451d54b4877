"""One round with the committee: what is asked, judged, opened and released, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.crypto.roster import Roster
from qsfl_flower.errors import QSFLError, RejectedUpdate, other_instruction
from qsfl_flower.mechanisms.secure_sum.session import Session, Taken, sealed_of
from qsfl_flower.numerics import Vector, measure
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.rounds.update import Cohort, Rejection, Update
from qsfl_flower.secure.dealing import read_header
from qsfl_flower.secure.decoding import open_vectors
from qsfl_flower.secure.field import Elements
from qsfl_flower.secure.fixed_point import signed
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.secure.terms import Terms
from qsfl_flower.secure.verdict import judge


class Abandoned(QSFLError):
    """A round cannot be finished with its guarantees; the model stays as it is."""


@dataclass
class Attempt:
    """One attempt to open the sum of a round.

    Parameters
    ----------
    session : Session
        The exchanges with the committee.
    roster : Roster
        Who may have dealt shares.
    tally : Tally
        What is summed behind the update, before the buffers of floats.
    weighted : bool
        Whether the updates were multiplied by their weights.
    choose : callable
        From the squared distances of n clients (empty if they are not opened) and n to the
        positions of those to be added up.
    context : RoundContext
        Of the round.
    cohort : Cohort
        Updates as `SecureSum.read` made them; in the end with weights, statuses and rejections.
    whole : int
        How many updates make a whole step; with fewer it is shorter in proportion.
    """

    session: Session
    roster: Roster
    tally: Tally
    weighted: bool
    choose: Callable[[Elements, int], Sequence[int]]
    context: RoundContext
    cohort: Cohort
    whole: int = 0
    summed: int = 0
    dropped: int = 0

    @property
    def terms(self) -> Terms:
        """The terms of the round."""
        return self.session.terms

    def run(
        self, now: int
    ) -> tuple[NDArray[np.float64], Mapping[str, float], Mapping[str, NDArray[Any]]]:
        """Return the mean update, the mean metrics, and the next buffers of floats."""
        terms, session = self.terms, self.session
        d = self.context.layout.size
        if self.context.support is not None:
            d = self.context.support.size
        size = d + terms.extras
        self._verify(size, now)
        self._enough()
        taken = session.take(self.cohort.updates, size)
        checks = {member: answer.check for member, answer in taken.items()}
        verdict = judge(checks, len(self.cohort.updates), terms.threshold)
        session.liars |= verdict.members
        needed = max(terms.quorum, terms.answers if terms.opens_products else 0)
        honest = {m: answer for m, answer in taken.items() if m not in session.liars}
        self._answered(honest, needed)
        reasons = {i: ("inconsistent-shares", why) for i, why in verdict.clients.items()}
        if terms.norms:
            reasons |= self._too_long(honest, reasons, d)
        kept = [i for i in range(len(self.cohort.updates)) if i not in reasons]
        distances = np.empty(0, np.uint64)
        if terms.distances:
            told = {m: answer.distances_of(kept) for m, answer in honest.items()}
            distances = self._open(told, terms.answers - 1)
        self._drop(reasons)
        self._enough()
        chosen = self._weighed(self.choose(distances, len(kept)))
        updates = self.cohort.updates
        if len(chosen) < terms.min_clients:
            raise Abandoned(
                f"{len(chosen)} of {len(updates)} clients are selected, a sum needs at least "
                f"{terms.min_clients}"
            )
        members = [m for m in honest if m not in session.liars]
        names = [updates[i].sender.name for i in chosen]
        released = session.release(members, names, size)
        self._answered(released, terms.quorum)
        total = self._open(released, terms.quorum - 1)
        self.summed = len(chosen)
        full = max(len(chosen), self.whole)
        self.cohort = replace(
            self.cohort,
            updates=tuple(
                replace(u, weight=u.damping / full)
                if i in set(chosen)
                else replace(u, weight=0.0, status="not-selected")
                for i, u in enumerate(updates)
            ),
        )
        mean = terms.fixed_point.decode(total[:d])
        behind, counted = signed(total[d:]), self.tally.size
        weight, metrics = self.tally.read(behind[:counted].tolist(), len(chosen))
        statistics = Statistics(self.context.layout).read(
            behind[counted:], len(chosen), self.context.carried, len(chosen) / full
        )
        own = weight if self.weighted else len(chosen)
        mean /= (self.context.weighting.denominator or own) * terms.scale
        mean *= len(chosen) / full
        # A mean of vectors within a norm is within it, unless somebody lied about size or weight.
        norm = measure(Vector.dense(mean)).norm
        if terms.bound == terms.clip_norm and norm > terms.longest(d) / 2**terms.bits:
            raise Abandoned(f"the mean has norm {norm:g}, its terms have at most {terms.clip_norm}")
        return mean, metrics, statistics

    def measured(self) -> dict[str, float]:
        """Return numbers of clients, and by member 1 if it served, 0 if lost, -1 if it lied."""
        fate = {
            f"member {name}": -1.0 if m in self.session.liars else float(m not in self.session.lost)
            for m, name in enumerate(self.terms.members, start=1)
        }
        return {
            "clients": float(len(self.cohort.updates)),
            "summed": float(self.summed),
            "dropped": float(self.dropped),
            "committee bytes": float(self.session.traffic),
            **fate,
        }

    def _verify(self, size: int, now: int) -> None:
        """Check every header as the members will: then the server can tell clients from members."""
        seen: set[str] = set()

        def check(update: Update) -> Update:
            sealed = sealed_of(update)
            header = read_header(sealed.statement, self.terms, self.roster, now)
            if header.client != update.sender.name or header.client in seen:
                raise RejectedUpdate(
                    "wrong-node", f"{update.sender.label} brings the shares of {header.client}"
                )
            if header.round != self.terms.round - update.staleness:
                raise RejectedUpdate(
                    "wrong-round",
                    f"{header.client} has dealt in round {header.round}, it was asked in round "
                    f"{self.terms.round - update.staleness}",
                )
            if header.instruction != self.context.instructions.get(header.round):
                raise other_instruction(header.client, header.round)
            if header.size != size:
                raise RejectedUpdate(
                    "wrong-shape", f"{header.size} coordinates are shared, there are {size}"
                )
            seen.add(header.client)
            return update

        before = len(self.cohort.updates)
        self.cohort = self.cohort.each(check)
        self.dropped += before - len(self.cohort.updates)

    def _open(self, values: Mapping[int, Elements], degree: int) -> Elements:
        opened = open_vectors(values, degree)
        self.session.liars |= opened.liars
        return opened.vector

    def _too_long(
        self, taken: Mapping[int, Taken], dropped: Mapping[int, object], d: int
    ) -> dict[int, tuple[str, str]]:
        """Open the squared norms of the other clients; return who is beyond the clip norm."""
        terms = self.terms
        kept = [i for i in range(len(self.cohort.updates)) if i not in dropped]
        told = {m: answer.norms_of(kept) for m, answer in taken.items()}
        squares = self._open(told, terms.answers - 1)
        limit = terms.longest(d) ** 2
        return {
            i: ("norm-too-large", f"the shared update is longer than {terms.clip_norm:g}")
            for i, square in zip(kept, squares.tolist(), strict=True)
            if square > limit
        }

    def _weighed(self, chosen: Sequence[int]) -> list[int]:
        """Return the positions of the chosen clients without those that too few weigh like.

        The members release no sum in which a weight is that of fewer clients than the minimum.
        """
        updates, terms = self.cohort.updates, self.terms
        weights = {i: terms.weight(terms.round - updates[i].staleness) for i in chosen}
        alike = Counter(weights.values())
        few = {i for i, weight in weights.items() if alike[weight] < terms.min_clients}
        self._drop(
            {
                i: (
                    "few-of-its-weight",
                    f"{alike[weights[i]]} clients count with weight {weights[i]}, a sum needs "
                    f"{terms.min_clients} of each weight",
                )
                for i in few
            }
        )
        kept = [i for i in range(len(updates)) if i not in few]
        return [place for place, i in enumerate(kept) if i in weights]

    def _drop(self, reasons: Mapping[int, tuple[str, str]]) -> None:
        kept, rejections = [], list(self.cohort.rejections)
        for i, update in enumerate(self.cohort.updates):
            if i in reasons:
                rejections.append(Rejection(update.sender, *reasons[i], update.bytes_up))
                self.dropped += 1
            else:
                kept.append(update)
        self.cohort = Cohort(tuple(kept), tuple(rejections))

    def _enough(self) -> None:
        if (count := len(self.cohort.updates)) < self.terms.min_clients:
            raise Abandoned(
                f"{count} clients with usable shares, a sum needs at least {self.terms.min_clients}"
            )

    def _answered(self, members: Collection[int], needed: int) -> None:
        if len(members) < needed:
            why = "".join(
                f"; first {self.terms.members[member - 1]} did not: {reason}"
                for member, reason in [*self.session.lost.items()][:1]
            )
            raise Abandoned(
                f"{len(members)} of {len(self.terms.members)} committee members answered, "
                f"{needed} are needed{why}"
            )
