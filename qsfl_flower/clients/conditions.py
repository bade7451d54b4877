"""When a device may train: conditions to start and to go on, and refusals with a named reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.clients.device import Reading
from qsfl_flower.errors import ConfigError


@dataclass(frozen=True)
class Verdict:
    """What the conditions say to a reading.

    Parameters
    ----------
    action : {"go", "throttle", "stop"}
        Train, train less, or do not train.
    reason : str
        Named reason of the refusal, such as ``"device-battery-low"``; empty for ``"go"``.
    detail : str
        One sentence: what was found, and what is needed.
    """

    action: Literal["go", "throttle", "stop"] = "go"
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a device's owner asks before it trains, and while it does.

    Parameters
    ----------
    min_battery : float
        Charge needed to start, 0 to 1; 0 asks for none.
    stop_battery : float
        Training stops at this charge or below, at most `min_battery`.
    unmetered : bool
        Only on networks whose traffic does not cost.
    idle : bool
        Only while nobody uses the device.
    max_load : float or None
        Largest share of the processor that others may keep busy at the start, > 0 and <= 1.
    unknown : {"refuse", "allow"}
        What a sensor that is asked for and does not answer means.
    throttle : bool
        Where the owner is using the device, or the charge lies between the two bounds, train less
        (half of the steps, and a rest after each as long as the step) instead of not at all.

    Examples
    --------
    >>> from qsfl_flower.clients.device import Reading
    >>> night = Reading(battery=0.9, metered=False, in_use=False, online=True)
    >>> Conditions(min_battery=0.5).to_start(night).action
    'go'
    >>> Conditions().to_start(Reading(battery=0.1, metered=False, in_use=False)).reason
    'device-battery-low'
    """

    min_battery: float = 0.2
    stop_battery: float = 0.15
    unmetered: bool = True
    idle: bool = True
    max_load: float | None = None
    unknown: Literal["refuse", "allow"] = "refuse"
    throttle: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.stop_battery <= self.min_battery <= 1:
            raise ConfigError(
                f"stop_battery {self.stop_battery!r} and min_battery {self.min_battery!r} must be "
                "from 0 to 1, the first not above the second"
            )
        if self.max_load is not None and not 0 < self.max_load <= 1:
            raise ConfigError(f"max_load must be > 0 and <= 1 or null, found {self.max_load!r}")
        if self.unknown not in ("refuse", "allow"):
            raise ConfigError(f"unknown must be 'refuse' or 'allow', found {self.unknown!r}")

    def to_start(self, reading: Reading) -> Verdict:
        """Decide whether training may begin."""
        if self.max_load is not None:
            if reading.load is None and self.unknown == "refuse":
                return _unknown("the load of the processor")
            if reading.load is not None and reading.load > self.max_load:
                needed = f"at most {self.max_load:.0%} is allowed"
                return Verdict("stop", "device-busy", f"the load is {reading.load:.0%}, {needed}")
        return self._judge(reading, self.min_battery)

    def to_go_on(self, reading: Reading) -> Verdict:
        """Decide whether training may continue."""
        return self._judge(reading, self.stop_battery)

    def _judge(self, reading: Reading, battery: float) -> Verdict:
        strict = self.unknown == "refuse"
        if reading.online is False:
            return Verdict("stop", "device-offline", "there is no network")
        if self.unmetered and reading.metered is not False:
            if reading.metered:
                return Verdict("stop", "device-metered", "the network is metered")
            if strict:
                return _unknown("whether the network is metered")
        softer: Verdict | None = None
        if self.min_battery > 0:
            if reading.battery is None:
                if strict:
                    return _unknown("the charge of the battery")
            elif reading.battery <= self.stop_battery or reading.battery < battery:
                found = f"the battery is at {reading.battery:.0%}"
                detail = f"{found}; {self.min_battery:.0%} to start, more than "
                detail += f"{self.stop_battery:.0%} to go on are needed"
                if not self.throttle or reading.battery <= self.stop_battery:
                    return Verdict("stop", "device-battery-low", detail)
                softer = Verdict("throttle", "device-battery-low", detail)
        if self.idle and reading.in_use is not False:
            if reading.in_use is None:
                return _unknown("whether the device is in use") if strict else softer or Verdict()
            action: Literal["throttle", "stop"] = "throttle" if self.throttle else "stop"
            return Verdict(action, "device-in-use", "somebody is using the device")
        return softer or Verdict()


def _unknown(what: str) -> Verdict:
    detail = f"{what} is unknown; allow it with unknown='allow' or drop the condition"
    return Verdict("stop", "device-unknown", detail)
