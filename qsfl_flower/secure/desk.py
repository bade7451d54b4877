"""What a member keeps between two messages of one run, and what it refuses because of that.

A member answers one question per round: it takes one set of shares, and releases one sum of at
least `Terms.min_clients` of them. The same shares again get the same answer; anything else is
refused, whatever the server says. Where shares that were dealt in several rounds may come together
(`Terms.weights`), a member remembers which it has taken as long as the terms under which they were
dealt let them be used, and takes none of them for another round. It proves that it remembers by its
seat: see `Terms.seats`.

Who sees what: whatever the server asks, it gets one value per pair of headers, and one sum.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qsfl_flower.errors import Refusal, RejectedUpdate
from qsfl_flower.secure.dealing import Header
from qsfl_flower.secure.field import Elements, accumulate, expand
from qsfl_flower.secure.terms import Terms

_SECOND = "policy-second-answer"


@dataclass(frozen=True, eq=False, repr=False)
class Held:
    """One client's share, as a member holds it between its two answers.

    Parameters
    ----------
    client : str
        Who dealt it.
    dealt : int
        The round in which it dealt it.
    digest : bytes
        Digest of the client's header.
    instruction : bytes
        Digest of what the client was asked to do, from its header.
    share : ndarray of uint64
        Shape (size + 1,), or (4,): the seed of such a vector.
    seeds : mapping of int to bytes
        Seeds for shares of zero by index of the set.
    expands : bool
        Whether the share is a seed; a vector of three numbers is as long as one.
    """

    client: str
    dealt: int
    digest: bytes
    instruction: bytes
    share: Elements
    seeds: Mapping[int, bytes]
    expands: bool

    def vector(self, size: int) -> Elements:
        """Return the share of the vector and, behind it, of the blind: shape (size + 1,)."""
        if not self.expands:
            return self.share
        out = np.empty(size + 1, np.uint64)
        expand(self.share.tobytes(), out)
        return out


@dataclass(frozen=True)
class Use:
    """For which round shares were taken, and the last round in which they could be used."""

    taken: int
    until: int


@dataclass(frozen=True, eq=False, repr=False)
class Desk:
    """What a member remembers and holds: a value, to be saved and restored.

    Parameters
    ----------
    seat : str
        What the member has drawn when it was appointed.
    opened : int
        The last round for which shares were taken, or 0.
    question : bytes
        Digest of these shares and of their terms.
    closed : int
        The last round of which a sum was released, or 0.
    uses : mapping of (str, int) to Use
        What became of shares, by the client and the round in which it dealt them.
    cohorts : mapping of str to str
        Under terms with `Terms.fixed`: digest of the clients with which one is added up.
    terms : qsfl_flower.secure.terms.Terms or None
        Of the round whose shares are held.
    size : int
        Length of the shared vectors.
    held : tuple of Held
        One share per client.
    """

    seat: str = ""
    opened: int = 0
    question: bytes = b""
    closed: int = 0
    uses: Mapping[tuple[str, int], Use] = field(default_factory=dict)
    cohorts: Mapping[str, str] = field(default_factory=dict)
    terms: Terms | None = None
    size: int = 0
    held: tuple[Held, ...] = ()

    def memory(self) -> bytes:
        """Return what must not be forgotten during the run: all but the shares."""
        uses = [[client, dealt, u.taken, u.until] for (client, dealt), u in self.uses.items()]
        told = [self.seat, self.opened, self.question.hex(), self.closed, uses]
        if self.cohorts:
            told.append(dict(self.cohorts))
        return json.dumps(told, separators=(",", ":")).encode()

    @classmethod
    def recall(cls, memory: bytes) -> Desk:
        """Return a desk without shares that remembers what `memory` has written."""
        seat, opened, question, closed, uses, *cohorts = json.loads(memory)
        known = {(client, dealt): Use(taken, until) for client, dealt, taken, until in uses}
        return cls(seat, opened, bytes.fromhex(question), closed, known, *cohorts)

    def check_new(self, header: Header, terms: Terms) -> None:
        """Refuse shares that were taken for another round.

        Raises
        ------
        RejectedUpdate
            ``already-taken``.
        """
        before = self._taken(header.client, header.round, terms)
        if before != terms.round:
            raise RejectedUpdate(
                "already-taken",
                f"the shares that {header.client} dealt in round {header.round} were taken for "
                f"round {before}",
            )

    def take(self, terms: Terms, size: int, held: Sequence[Held], member: int) -> Desk:
        """Return the desk with the shares of a round; what it held before is forgotten.

        Parameters
        ----------
        terms : qsfl_flower.secure.terms.Terms
            Of the round.
        size : int
            Length of the shared vectors.
        held : sequence of Held
            The shares.
        member : int
            In 1 .. m.

        Raises
        ------
        Refusal
            If a sum of this round has been released, other shares were taken for it, a later round
            was begun, a share was taken for another round (``policy-second-answer``), two clients
            that dealt in one round were not asked for the same (``policy-other-instruction``), the
            shares were dealt to a member whose memory is not this one (``policy-seat``), or they
            are not what the terms allow (``policy-terms``).
        """
        at = f"round {terms.round}"
        if terms.seats[member - 1] != self.seat:
            raise Refusal(
                "policy-seat",
                f"{at}: these shares were dealt to a member that had another memory than this one; "
                "which sums it has released is not known",
            )
        if terms.round < self.opened:
            raise Refusal(_SECOND, f"{at}: round {self.opened} has begun")
        if terms.round <= self.closed:
            raise Refusal(
                _SECOND,
                f"{at}: a sum of round {self.closed} was released; there is one per round, and no "
                "way back",
            )
        names = [h.client for h in held]
        if len(set(names)) != len(names):
            raise Refusal("policy-terms", f"{at}: a client is there twice")
        if len(held) > terms.max_clients:
            raise Refusal(
                "policy-terms",
                f"{at}: {len(held)} clients, but the terms are for {terms.max_clients}",
            )
        asked: dict[int, bytes] = {}
        for h in held:
            if asked.setdefault(h.dealt, h.instruction) != h.instruction:
                raise Refusal(
                    "policy-other-instruction",
                    f"{at}: clients that dealt in round {h.dealt} were sent different models, "
                    "configurations or plans",
                )
        question = _question(terms, size, held)
        if terms.round == self.opened and question != self.question:
            raise Refusal(_SECOND, f"{at}: other shares were taken for it; there is one question")
        for h in held:
            if self._taken(h.client, h.dealt, terms) != terms.round:
                raise Refusal(_SECOND, f"{at}: shares of {h.client} were taken before")
        # The terms of shares say how long these could count; rounds only go up.
        window = len(terms.weights) - 1
        new = {(h.client, h.dealt): Use(terms.round, h.dealt + window) for h in held}
        kept = {key: use for key, use in self.uses.items() if use.until >= terms.round}
        return replace(
            self,
            opened=terms.round,
            question=question,
            uses={**kept, **new},
            terms=terms,
            size=size,
            held=tuple(held),
        )

    def release(
        self, server_round: int, clients: Collection[str], member: int, least_cohort: int = 2
    ) -> tuple[Elements, Desk]:
        """Return this member's share of one weighted sum, and the desk without any shares.

        The updates count with the weights of the terms, what is behind them counts once.

        Parameters
        ----------
        server_round : int
            The round that the shares must belong to.
        clients : collection of str
            Different clients, to be added up.
        member : int
            In 1 .. m.
        least_cohort : int
            Fewest clients that must count with one weight, whatever the terms say: residues of a
            sum modulo its weights are sums over those of one weight.

        Returns
        -------
        ndarray of uint64, shape (size,)
            If the quorum is larger than the threshold, masked by shares of zero that depend on the
            clients: answers to different questions do not fit together.
        Desk
            What to keep.

        Raises
        ------
        Refusal
            If this is not the round, fewer clients than the minimum have one weight, a client is
            unknown, or was added up with others before where these must stay the same
            (``policy-other-cohort``). The shares are kept.
        """
        terms, at = self.terms, f"round {server_round}"
        if terms is None or terms.round != server_round or server_round <= self.closed:
            raise Refusal(_SECOND, f"{at}: no shares are held for it; a sum is released once")
        least = max(terms.min_clients, least_cohort)
        if not least <= len(set(clients)) == len(clients):
            raise Refusal(
                "policy-cohort",
                f"{at}: a sum of {len(set(clients))} different clients is asked for, at least "
                f"{least} are needed",
            )
        by_name = {h.client: h for h in self.held}
        if unknown := sorted(set(clients) - set(by_name)):
            raise Refusal("policy-terms", f"{at}: no valid share of {', '.join(unknown)} is held")
        cohorts = check_cohort(self.cohorts, clients, at) if terms.fixed else self.cohorts
        chosen = [by_name[name] for name in sorted(clients)]
        alike = Counter(terms.weight(h.dealt) for h in chosen)
        weight, fewest = min(alike.items(), key=lambda pair: pair[1])
        if fewest < least:
            raise Refusal(
                "policy-weights",
                f"{at}: {fewest} of the clients count with weight {weight}; at least {least} must "
                "count with each weight",
            )
        total = np.zeros(self.size, np.uint64)
        d = self.size - terms.extras
        for h in chosen:
            vector = h.vector(self.size)
            accumulate(total[:d], vector[:d], terms.weight(h.dealt))
            accumulate(total[d:], vector[d : self.size], 1)
        if zero := terms.zero_sharings[0]:
            seeds = _sum_seeds(chosen, server_round, zero.known_to(member))
            zero.add_to(total, member, seeds)
        closed = replace(self, closed=server_round, cohorts=cohorts, terms=None, size=0, held=())
        return total, closed

    def _taken(self, client: str, dealt: int, terms: Terms) -> int:
        """Return the round for which shares were taken; that of the terms if for none."""
        use = self.uses.get((client, dealt))
        return terms.round if use is None else use.taken


def check_way(facts: MutableMapping[str, bytes], name: str, way: bytes, at: str) -> None:
    """Refuse exact sums of a run and purpose by another committee than before, or by masks.

    Whoever opens exact sums remembers who was added up with whom; others would not know.

    Raises
    ------
    Refusal
        ``policy-committee``.
    """
    if facts.setdefault(name, way) != way:
        raise Refusal(
            "policy-committee",
            f"{at}: another committee, or masks, have served in this run, and know who was added "
            "up with whom; exact sums need the same one, noisy ones do not",
        )


def check_cohort(
    cohorts: Mapping[str, str], clients: Collection[str], at: str
) -> Mapping[str, str]:
    """Return who is added up with whom, this sum included.

    Cohorts that are the same or have nobody in common tell no more together than one by one: the
    difference of two sums is never about a few clients.

    Parameters
    ----------
    cohorts : mapping of str to str
        Digest of the cohort of each client that was added up before.
    clients : collection of str
        Those of this sum.
    at : str
        Where, for the error.

    Raises
    ------
    Refusal
        ``policy-other-cohort``: one of them was added up with others before.
    """
    cohort = hashlib.sha256("\n".join(sorted(clients)).encode()).hexdigest()[:32]
    if moved := sorted(name for name in clients if cohorts.get(name, cohort) != cohort):
        raise Refusal(
            "policy-other-cohort",
            f"{at}: {len(moved)} of {len(clients)} clients, {moved[0]} first, were added up with "
            "others before in this run; the difference of two exact sums would tell about a few: "
            "ask the same clients again, or add noise (noise_multiplier)",
        )
    return {**cohorts, **dict.fromkeys(clients, cohort)}


def _question(terms: Terms, size: int, held: Sequence[Held]) -> bytes:
    """Return the digest of what a member is asked to take; headers name their payloads."""
    asked = hashlib.sha256(b"qsfl-flower/1/question" + terms.digest + size.to_bytes(8, "big"))
    for h in held:
        asked.update(h.digest)
    return asked.digest()


def _sum_seeds(held: Sequence[Held], server_round: int, known: Sequence[int]) -> dict[int, bytes]:
    """Join the clients' seeds for one sum; one honest client makes the result secret."""
    chosen = hashlib.sha256(b"qsfl-flower/1/sum" + server_round.to_bytes(8, "big"))
    for h in held:
        chosen.update(h.digest)
    label = chosen.digest()
    return {i: hashlib.sha256(label + b"".join(h.seeds[i] for h in held)).digest() for i in known}
