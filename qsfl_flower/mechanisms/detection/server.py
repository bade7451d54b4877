"""The stage that looks for unusual updates before they are combined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsfl_flower.mechanisms.detection.core import (
    Detection,
    Finding,
    Memory,
    counted,
    extract,
    inspect,
)
from qsfl_flower.mechanisms.robust.core import Updates
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.facts import Sentences, Topic
from qsfl_flower.rounds.stages import CohortStage
from qsfl_flower.rounds.update import Cohort, Opinion, Rejection, Update

FLAGGED, QUARANTINED = "flagged", "quarantined"
"""Reasons of rejection."""


class Detect(CohortStage):
    """Flag unusual updates with their reasons, and keep them out.

    Parameters
    ----------
    detection : Detection, optional
        Detector, threshold and reputation.
    quarantine : bool
        Reject what is flagged, and everything from clients in quarantine. Otherwise flags are told
        and nothing else happens.

    Notes
    -----
    Clients are remembered by name where `Authenticate` proves who they are, so that a client in
    quarantine stays there when it comes back on another node; otherwise by the order in which their
    nodes registered, and a node that registers anew is a new client.

    The state holds the last model in float32, the features of some hundred usual updates, and a row
    of numbers per client ever seen.

    Who sees what: the server compares all updates in the clear. Whether one client's update counts
    depends on those of others, so a client-level DP guarantee calibrated to the clip norm does not
    hold behind this stage; one at record level does.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> from qsfl_flower.mechanisms.detection.core import Detection
    >>> stage = Detect(Detection(detector="robust-z"))
    >>> outcome = LocalFederation(clients=8).run([stage], rounds=2)
    >>> outcome.clients[-1][0].reputation
    1.0
    """

    name = "detect"
    phase = Phase.DETECT

    def __init__(
        self,
        detection: Detection | None = None,
        quarantine: bool = True,
    ) -> None:
        self.detection = detection or Detection()
        self.quarantine = quarantine

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what happens to unusual clients."""
        then = "are rejected, and their clients quarantined" if self.quarantine else "are logged"
        return {Topic.LIARS: [f"unusual updates {then}, with reasons"]}

    def init(self, layout: Layout) -> State:
        """Return the memory before the first round."""
        return Memory.new(self.detection.seed).state

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Judge the updates, and reject those that do not count."""
        model = np.empty(context.layout.size)
        context.model.read(0, model.size, model)
        if not cohort.updates:
            return cohort, {**state, "model": model.astype(np.float32)}, {}
        updates, now = cohort.updates, context.server_round
        memory = Memory.of(state)
        clients = [update.sender.key for update in updates]
        size = updates[0].vector.size
        whole = size == context.layout.size
        layout = context.layout if whole else Layout(("support",), ((size,),), ("float64",))
        step = model - state["model"] if whole and "model" in state else None
        table = extract(
            Updates([u.vector for u in updates], [u.base(context.model) for u in updates]),
            layout,
            step,
            memory.trusted(clients, now),
        )
        findings, memory = inspect(table, clients, memory, self.detection, now)
        shares = np.ones(len(updates))
        if self.quarantine:
            norms = np.array([update.measured().norm for update in updates])
            shares = counted(findings, norms, now)
        entries = [_judged(*one, now) for one in zip(updates, findings, shares, strict=True)]
        judged = Cohort(
            tuple(entry for entry in entries if isinstance(entry, Update)),
            (*cohort.rejections, *(e for e in entries if isinstance(e, Rejection))),
        )
        measured = {
            "flagged": sum(f.flagged for f in findings),
            "quarantined": sum(f.after.quarantined(now + 1) for f in findings),
            "groups": len({f.group for f in findings} - {None}),
            "highest_anomaly": max(f.score for f in findings),
        }
        return judged, {**memory.state, "model": model.astype(np.float32)}, measured


def _judged(
    update: Update, finding: Finding, share: float, server_round: int
) -> Update | Rejection:
    """Return the update with the opinion of it, or its rejection."""
    opinion = Opinion(finding.score, finding.after.reputation, finding.why)
    if share > 0:
        if finding.flagged:
            why = f"{finding.why}; counts at its hearing after a quarantine, with a bounded norm"
            opinion = replace(opinion, flag=why)
        return replace(update, scale=update.scale * share, opinion=opinion)
    reason, detail = FLAGGED, f"anomaly {finding.score:.2f}: {finding.why}"
    if finding.before.quarantined(server_round):
        reason = QUARANTINED
        detail = f"until round {finding.before.until}, reputation {opinion.reputation:.2f}"
    return Rejection(update.sender, reason, detail, update.bytes_up, opinion)
