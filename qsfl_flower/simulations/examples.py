"""One example of each reason why an update was not used, with its line in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qsfl_flower.strategies import ClientRow, RoundRecord


@dataclass
class FirstExamples:
    """Remembers which reasons a person has seen an example of.

    Parameters
    ----------
    log : Path
        The log of the run; it need not exist.
    """

    log: Path
    _seen: set[str] = field(default_factory=set)

    def of(self, record: RoundRecord, clients: Sequence[ClientRow]) -> list[str]:
        """Return the reasons of a round with their numbers, new ones with their first example."""
        told = []
        for reason, count in record.unused.items():
            first = next((r for r in clients if r.status == reason and r.detail), None)
            text = f"{count} x {reason}"
            if first is not None and reason not in self._seen:
                self._seen.add(reason)
                line = self._line(f"{reason} from ", f": {first.detail}")
                place = "" if line is None else f"; log line {line}"
                text += f": {first.detail} (first of client {first.client}{place})"
            told.append(text)
        return told

    def _line(self, *parts: str) -> int | None:
        """Return the number of the first line of the log that holds some texts."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return next((n for n, x in enumerate(lines, 1) if all(p in x for p in parts)), None)
        except OSError:
            return None
