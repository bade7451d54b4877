"""What a run has charged for privacy, on disk before the instructions of a round leave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qsfl_flower.crypto.files import replace_file
from qsfl_flower.errors import CheckpointError, QSFLError
from qsfl_flower.moved import STAGES
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import event_from_dict
from qsfl_flower.privacy.gaussian import check_delta

FILE = "charges.json"
_FORMAT = 1
_MOST = 10**8  # releases of one kind; a file that says more is no file of ours


@dataclass(frozen=True)
class Charge:
    """What one stage has charged.

    Parameters
    ----------
    state : Mapping[str, Any]
        The stage's state, all JSON values: ``events``, and ``pending`` for a round under way.
    delta : float
        Delta at which epsilon is reported, in (0, 1).
    """

    state: Mapping[str, Any]
    delta: float

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events, that of the round under way included."""
        events = [dict(event) for event in self.state.get("events", [])]
        pending = self.state.get("pending")
        return events if pending is None else merged(events, pending)

    @property
    def epsilon(self) -> float:
        """What was spent, if the round under way counts."""
        return epsilon_of_events([event_from_dict(e) for e in self.events], self.delta)


@dataclass(frozen=True)
class Charges:
    """The charges of all stages of a run.

    Parameters
    ----------
    number : int
        How often charges were written; checkpoints hold the number that they know of.
    server_round : int
        The round whose instructions were about to leave.
    fingerprint : str
        Identifies the experiment.
    stages : Mapping[str, Charge]
        By the stage's name.
    """

    number: int = 0
    server_round: int = 0
    fingerprint: str = ""
    stages: Mapping[str, Charge] = field(default_factory=dict)

    @property
    def epsilon(self) -> float | None:
        """The largest loss of privacy that a stage has charged; None if none charges."""
        return max((charge.epsilon for charge in self.stages.values()), default=None)

    def over(self, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Return the states of a checkpoint that is older than these charges."""
        return {**states, **{name: charge.state for name, charge in self.stages.items()}}


def write_charges(folder: Path, charges: Charges) -> None:
    """Write the charges so that they last when the call returns; `OSError` if they cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(folder / FILE, json.dumps({"format": _FORMAT, **asdict(charges)}).encode())


def read_charges(folder: Path) -> Charges | None:
    """Return the charges of a run; None if it has charged nothing.

    Raises
    ------
    CheckpointError
        If the file is there and cannot be used: what was spent is not known then.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        values = json.loads(data)
        if values.pop("format") != _FORMAT:
            raise ValueError("its format is not known to this release")
        stages = {
            STAGES.get(name, name): _charge(charge) for name, charge in values.pop("stages").items()
        }
        number, server_round = values["number"], values["server_round"]
        if type(number) is not int or type(server_round) is not int or number < 1:
            raise ValueError("its numbers are not whole")
        return Charges(number, server_round, str(values["fingerprint"]), stages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, QSFLError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error!r}): what the run has charged for privacy is not known. "
            "Restore the file, or begin a new run and count this one in full"
        ) from None


def merged(events: Sequence[Mapping[str, Any]], latest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return events with one more, which is added to the last one if it is of the same kind."""
    kept = [dict(event) for event in events]
    if kept and {**kept[-1], "count": latest["count"]} == latest:
        kept[-1]["count"] += latest["count"]
        return kept
    return [*kept, dict(latest)]


def _charge(values: Mapping[str, Any]) -> Charge:
    charge = Charge(dict(values["state"]), values["delta"])
    check_delta(charge.delta)
    asked = charge.state.get("asked", {}).values()
    counts = [*asked, charge.state.get("before", 0), *(e["count"] for e in charge.events)]
    if not all(type(count) is int and 0 <= count <= _MOST for count in counts):
        raise ValueError("a count is no whole number, or is out of range")
    for event in charge.events:
        event_from_dict(event)
    return charge
