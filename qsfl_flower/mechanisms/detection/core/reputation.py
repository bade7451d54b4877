"""What becomes of a client that is flagged: reputation, quarantine, hearing, probation, return."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qsfl_flower.plugins import Options, option

STRIKES = 3
"""Flags of full score in consecutive rounds that lead to quarantine."""

LONGEST = 4
"""Quarantine doubles with each relapse, up to this many times the first one."""


@dataclass(frozen=True)
class Standing:
    """What the server thinks of a client.

    Parameters
    ----------
    suspicion : float
        0 for a good reputation to 1.
    until : int
        Last round of the quarantine; 0 if there was none.
    probation : int
        Further rounds in which a single flag leads back into quarantine.
    terms : int
        How often it has been in quarantine.
    """

    suspicion: float = 0.0
    until: int = 0
    probation: int = 0
    terms: int = 0

    @property
    def reputation(self) -> float:
        """1 for a client that was never flagged, down to 0."""
        return 1.0 - self.suspicion

    def quarantined(self, server_round: int) -> bool:
        """Whether the client's updates do not count in a round."""
        return server_round <= self.until

    def heard(self, server_round: int) -> bool:
        """Whether this is its hearing: its first update after a quarantine, not yet judged."""
        return self.probation < 0 and not self.quarantined(server_round)


@dataclass(frozen=True)
class Reputation(Options):
    r"""How standings change: :math:`s \leftarrow \gamma s + g \cdot \text{score}` for a flag.

    The gain g is such that three flags of score 1 in a row reach the threshold; a flag now and then
    is forgotten. A client in quarantine is observed but does not count. After it comes a hearing:
    its next update counts even if it is flagged again, though with a bounded norm, so that an
    honest client with unusual data is never shut out for good. A flag then, or within the
    probation that follows, starts a quarantine twice as long, up to four times the first.

    Parameters
    ----------
    decay : float
        What remains of suspicion after a round, gamma, in [0, 1).
    threshold : float
        Suspicion at which quarantine begins, 0 < threshold <= 1.
    rounds : int
        Length of the first quarantine, >= 1.
    probation : int
        Length of the probation, >= 0.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    decay: float = option("What remains of suspicion after a round.", 0.95, ge=0, lt=1)
    threshold: float = option("Suspicion at which quarantine begins.", 0.8, gt=0, le=1)
    rounds: int = option("Length of the first quarantine.", 5, ge=1)
    probation: int = option("Length of the probation.", 3, ge=0)

    @property
    def gain(self) -> float:
        """How much suspicion a flag of score 1 adds."""
        return self.threshold / sum(self.decay**k for k in range(STRIKES))

    def step(self, standing: Standing, score: float, flagged: bool, server_round: int) -> Standing:
        """Return the standing after a round in which the client's update was judged."""
        suspicion = self.decay * standing.suspicion + (self.gain * score if flagged else 0.0)
        now = replace(standing, suspicion=min(1.0, suspicion))
        if standing.quarantined(server_round):
            return now
        full = now.suspicion >= self.threshold - 1e-9
        if flagged and (full or standing.probation != 0):
            length = self.rounds * min(2**standing.terms, LONGEST)
            return Standing(now.suspicion, server_round + length, -1, standing.terms + 1)
        if standing.probation < 0:
            return replace(now, probation=self.probation, suspicion=self.threshold / 2)
        return replace(now, probation=max(0, now.probation - 1))
