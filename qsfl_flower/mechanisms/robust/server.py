"""The stage that combines updates by a robust rule, and ready strategies with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import (
    PREPARATIONS,
    RULES,
    Aggregate,
    Bucketing,
    FLTrust,
    Mean,
    Preparation,
    Rule,
    TooFewUpdates,
    Updates,
    aggregate,
)
from qsfl_flower.numerics import Layout, not_finite
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import RoundContext, State
from qsfl_flower.rounds.facts import Sentences, Topic
from qsfl_flower.rounds.stages import Combined, CombineStage
from qsfl_flower.rounds.update import Cohort, Rejection, Update, Weighting

log = logging.getLogger("qsfl_flower")

NOT_SELECTED = "not-selected"
"""Status of an update that the rule has left out."""

NONSENSE = frozenset(
    {
        "bad-indices",
        "bad-num-examples",
        "bad-record",
        "bad-values",
        "malformed",
        "missing-array",
        "not-finite",
        "too-large",
        "unknown-array",
        "wrong-dtype",
        "wrong-shape",
    }
)
"""Reasons of rejections that no honest client of this run gets: each is one of the liars."""

_warned: set[tuple[str, int]] = set()
"""Rules and runs for which it was logged that no update is assumed to lie."""

RootUpdate = Callable[[RoundContext], NDArray[np.float64]]


class Robust(CombineStage):
    """Combine by a rule that some updates cannot mislead.

    All selected updates count alike: a claimed number of examples would be a lever for liars.

    Parameters
    ----------
    rule : Rule or str
        The rule, or its name in `qsfl_flower.mechanisms.robust.core.RULES`.
    num_byzantine : int, optional
        How many updates of a round may lie; for a rule given by name. By default a third of them,
        or as many as the rule withstands.
    before : Preparation or str, optional
        How updates are mixed first, or its name in
        `qsfl_flower.mechanisms.robust.core.PREPARATIONS`.
    root_update : Callable, optional
        For `FLTrust`: trains on the server's own data and returns the update, shape (d,). Of a
        round that is restricted to public coordinates the rule sees these alone.

    Raises
    ------
    ConfigError
        If a name or number is not usable, or FLTrust has no `root_update`.

    Notes
    -----
    A round with too few updates for `num_byzantine` leaves the model as it is: whatever a rule
    returned then, the liars could have chosen it. Updates with NaN, infinity or absurd numbers are
    rejected and count as liars; where updates are too few, so do replies that were no updates at
    all (`NONSENSE`), or a single one of them would stop the run.

    Who sees what: the server compares all updates in the clear.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model + (1e6 if client == 0 else 1)
    >>> federation = LocalFederation(clients=7, train=train)
    >>> outcome = federation.run([Robust("multi_krum", num_byzantine=1)])
    >>> bool(abs(outcome.model).max() < 2)  # client 0 has sent a million
    True
    """

    name = "robust"
    needs_norms = False
    declares = frozenset({Trait.WITHSTANDS_LIARS})

    def __init__(
        self,
        rule: Rule | str = "multi_krum",
        num_byzantine: int | None = None,
        before: Preparation | str | None = None,
        root_update: RootUpdate | None = None,
    ) -> None:
        if isinstance(rule, Rule):
            if num_byzantine is not None:
                raise ConfigError("robust: give num_byzantine to the rule itself")
            self.rule = rule
        else:
            self.rule = _named("rule", rule, RULES)(num_byzantine)
        self.before: Preparation | None = (
            _named("preparation", before, PREPARATIONS)() if isinstance(before, str) else before
        )
        self.root_update = root_update
        if isinstance(self.rule, FLTrust) != (root_update is not None):
            raise ConfigError("robust: root_update goes with the rule fltrust, which needs it")

    @property
    def traits(self) -> frozenset[Trait]:
        """The result of `FLTrust` is as long as the server's own update."""
        found = super().traits
        return found | {Trait.SETS_LENGTH} if isinstance(self.rule, FLTrust) else found

    @property
    def needs_start(self) -> bool:
        """A rule that measures updates from the model does."""
        return self.rule.anchored

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say whom the rule withstands."""
        given = getattr(self.rule, "num_byzantine", None)
        liars = (
            "as many attackers as it is made for"
            if given is None
            else f"{given} attackers in a round"
        )
        return {
            Topic.LIARS: [
                f"the rule {type(self.rule).__name__} withstands {liars}, up to its bound: best "
                "where honest updates resemble each other"
            ]
        }

    def _aggregate(
        self,
        updates: Updates,
        rule: Rule,
        before: Preparation | None,
        rejections: Sequence[Rejection],
    ) -> Aggregate:
        """Apply the rule; if updates are too few, clients that sent nonsense were some of the f."""
        try:
            return aggregate(updates, rule, before)
        except TooFewUpdates:
            known = sum(r.reason in NONSENSE for r in rejections)
            if rule.num_byzantine is None or not known:
                raise
            left = replace(rule, num_byzantine=max(0, rule.num_byzantine - known))
            found = aggregate(updates, left, before)
            log.warning(
                "%s: %d replies were no updates and count among the %d attackers; the rule "
                "withstands %d among the other %d updates",
                rule.name,
                known,
                rule.num_byzantine,
                found.num_byzantine,
                updates.count,
            )
            return found

    def check_buffer(self, weighting: Weighting) -> None:
        """Refuse buffers among which the rule cannot withstand as many liars as it should."""
        size = weighting.buffer_size or 0
        try:
            self.rule.liars(size, size if self.before is None else self.before.rows(size))
        except TooFewUpdates as error:
            raise ConfigError(f"{self.name}: buffer_size is {size}: {error}") from None

    def combine(self, cohort: Cohort, state: State, context: RoundContext) -> Combined:
        """Apply the rule to the updates of a round."""
        counting = [u for u in cohort.updates if u.status == "accepted"]
        if not counting:
            return Combined(cohort, None, state, skipped="no update may count")
        updates = updates_of(counting, context)
        rule, before = self.rule, self.before
        if isinstance(rule, FLTrust) and self.root_update is not None:
            root = self.root_update(context)
            if context.support is not None:
                whole, root = root, np.zeros_like(root)
                root[context.support] = whole[context.support]
            rule = replace(rule, root=root)
        if isinstance(before, Bucketing):
            before = replace(before, seed=before.seed + context.server_round)
        try:
            found = self._aggregate(updates, rule, before, cohort.rejections)
        except TooFewUpdates as error:
            return Combined(cohort, None, state, skipped=str(error))
        if found.weights is not None and not found.weights.any():
            return Combined(cohort, None, state, skipped="no update is trusted")
        if rule.num_byzantine is None and found.num_byzantine == 0:
            _warn_of_none(rule, updates.count, context)
        fates = _told(counting, found, context)
        told = dict(zip((u.sender for u in counting), fates, strict=True))
        rest = [replace(u, weight=0.0) for u in cohort.updates if u.sender not in told]
        entries = [*rest, *told.values()]
        after = Cohort(
            tuple(sorted((e for e in entries if isinstance(e, Update)), key=_rank)),
            (*cohort.rejections, *(e for e in entries if isinstance(e, Rejection))),
        )
        measured = {
            "num_byzantine": found.num_byzantine,
            "selected": int(found.selected.sum()),
            "excluded": len(found.excluded),
        }
        return Combined(after, found.vector, state, measured)


def _warn_of_none(rule: Rule, count: int, context: RoundContext) -> None:
    """Log once in a run that the rule is as good as a mean."""
    if isinstance(rule, FLTrust | Mean) or (rule.name, context.run_id) in _warned:
        return
    _warned.add((rule.name, context.run_id))
    share = getattr(rule, "share", None)
    why = "a third" if share is None else f"a share of {share:g}"
    log.warning(
        "round %d: %s among %d updates assumes no malicious client, since %s of them is less than "
        "1: one attacker can set the model. Give num_byzantine, or let more clients train in a "
        "round",
        context.server_round,
        rule.name,
        count,
        why,
    )


def updates_of(updates: Sequence[Update], context: RoundContext) -> Updates:
    """See the updates of a cohort as a matrix of scaled differences to the round's model."""
    bases = [u.base(context.model) for u in updates]
    if all(np.ndim(u.scale) == 0 and u.scale == u.damping == 1.0 for u in updates):
        return Updates([u.vector for u in updates], bases)
    parts = list(context.layout.slices.values())
    if context.support is not None and updates[0].vector.size == context.support.size:
        ends = [0, *np.searchsorted(context.support, [part.stop for part in parts]).tolist()]
        parts = [slice(*pair) for pair in pairwise(ends)]
    scales = np.array([np.broadcast_to(u.scale, len(parts)) * u.damping for u in updates])
    return Updates([u.vector for u in updates], bases, scales, parts)


def _told(
    updates: Sequence[Update], found: Aggregate, context: RoundContext
) -> list[Update | Rejection]:
    """Write what became of each update into it."""
    count = int(found.selected.sum())
    weights = found.selected / count if found.weights is None else found.weights
    entries: list[Update | Rejection] = []
    for row, update in enumerate(updates):
        if row in found.excluded:
            reason = not_finite(update.vector, context.layout)
            entries.append(Rejection(update.sender, reason.reason, reason.detail, update.bytes_up))
            continue
        score = None if found.scores is None else float(found.scores[row])
        status = update.status if found.selected[row] else NOT_SELECTED
        entries.append(replace(update, weight=float(weights[row]), status=status, score=score))
    return entries


def _rank(update: Update) -> int:
    return update.sender.rank


def _named(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(f"robust: there is no {what} {name!r}; known are {', '.join(known)}")
    return known[name]
