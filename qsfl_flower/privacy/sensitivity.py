r"""How much one client can change what a round releases: every combination in one place.

Notation: clip norm C, largest weight w, fixed denominator n. Neighbouring federations differ in one
client, present or absent. The noise protects exactly the number that is computed here, so a
combination without a proof is refused.

===========================================  ==================  ==================================
combination                                  sensitivity         why
===========================================  ==================  ==================================
mean over a fixed denominator                C w / n             one term of norm <= C w is added or
                                                                 removed, nothing else changes
... divided by the accepted clients          refused             the divisor depends on the client
... weighted by claimed sample counts        refused             the counts are private and shared
... with staleness weights <= 1, buffer K    C / K               n is the fixed K; each client pays
                                                                 for every buffer it is in
... of top-k or random-k updates             unchanged           all of the norm can sit in k
                                                                 coordinates; clip what is sent
... with error feedback after clipping       refused             the sent vector exceeds C
selecting rule (Krum, median, trimmed mean)  2 C                 every result lies in the ball of
                                                                 radius C; one client can change the
                                                                 whole selection
filter that compares clients, then a mean    2 C                 the same: one client can decide
                                                                 whether others count
===========================================  ==================  ==================================
"""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.errors import CompositionError, ConfigError

FIXED = "fixed"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a round computes from the clients' vectors before noise.

    Parameters
    ----------
    clip_norm : float or None
        Bound on each client's L2 norm; None if there is none.
    rule : str
        ``"mean"``, or the name of a rule that selects or orders clients.
    weighting : str
        ``"fixed"``: each term divided by `denominator`; anything else names what the weights
        depend on, as ``"num-examples"`` or ``"accepted clients"``.
    denominator : float
        Expected number of clients, or the size of the buffer, > 0.
    max_weight : float
        Largest weight of a client before the division, > 0; staleness weights are at most 1.
    compression : str
        Name of what shortens updates, ``"none"`` if nothing does.
    clipped_last : bool
        Whether clipping comes after error feedback and sparsification.
    filters : tuple of str
        Stages that drop or weigh a client because of other clients' data.
    accept_worst_case : bool
        Whether the user has asked for the 2C bound where nothing better is true.
    """

    clip_norm: float | None
    rule: str = "mean"
    weighting: str = FIXED
    denominator: float
    max_weight: float = 1.0
    compression: str = "none"
    clipped_last: bool = True
    filters: tuple[str, ...] = ()
    accept_worst_case: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """The L2 sensitivity of a round's result and the sentence that proves it."""

    l2: float
    reason: str


def sensitivity(release: Release) -> Sensitivity:
    """Return the sensitivity of a round under adding or removing one client.

    Raises
    ------
    CompositionError
        If there is no bound, or only one that has not been accepted; says why and what to do.
    """
    clip = release.clip_norm
    if clip is None:
        raise CompositionError(
            "client-level privacy needs a clip stage: without a bound on one client's norm no "
            "amount of noise is enough"
        )
    if not (clip > 0 and release.denominator > 0 and release.max_weight > 0):
        raise ConfigError(f"clip norm, denominator and weight must be positive, found {release}")
    if not release.clipped_last:
        raise CompositionError(
            f"{release.compression} with error feedback after clipping sends vectors longer than "
            f"the clip norm {clip:g}; clip after error feedback and sparsification"
        )
    if release.rule == "mean" and release.weighting != FIXED:
        raise CompositionError(
            f"a mean weighted by {release.weighting} has no useful sensitivity: the sum of weights "
            "depends on private data. Divide by a fixed number of clients: "
            "weighting 'fixed' with the expected cohort"
        )
    selects = release.rule != "mean"
    if selects or release.filters:
        culprit = f"rule {release.rule}" if selects else "filter " + ", ".join(release.filters)
        if not release.accept_worst_case:
            raise CompositionError(
                f"the {culprit} looks at several clients, so one client can change what happens to "
                f"all others: the sensitivity is 2 C = {2 * clip:g}, not "
                f"C / n = {clip / release.denominator:g}, and stays so for any number of clients. "
                "Use record-level privacy, or filter each client by itself, or accept the noise "
                "with accept_worst_case"
            )
        return Sensitivity(
            2 * clip,
            f"whatever the {culprit} decides, the result lies within {clip:g} of the round's model "
            f"(an average of vectors clipped to {clip:g}); two such results differ by at most 2 C",
        )
    value = clip * release.max_weight / release.denominator
    note = (
        ""
        if release.compression == "none"
        else f"; {release.compression} does not lower it, since all of the norm can sit in the "
        "coordinates that are kept"
    )
    return Sensitivity(
        value,
        f"one client adds or removes one vector of norm at most {clip:g}, weighted by at most "
        f"{release.max_weight:g} and divided by the fixed {release.denominator:g}{note}",
    )
