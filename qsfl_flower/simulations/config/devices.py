"""The `devices` section: a fleet of simulated phones instead of clients that are always there."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from qsfl_flower.simulations.config.base import Contradiction, Section, refuse


class DevicesSpec(Section):
    """A fleet of phones with batteries, networks and owners who use them, day and night."""

    simulate: bool = Field(
        default=False,
        description="Let the clients be such phones; otherwise they are always there and willing, "
        "and nothing in this section matters.",
    )
    high: float = Field(
        default=0.3, ge=0, le=1, description="Share of devices that are fast and large."
    )
    mid: float = Field(default=0.5, ge=0, le=1, description="Share of devices in between.")
    low: float = Field(
        default=0.2, ge=0, le=1, description="Share of devices that are slow and small."
    )
    start_hour: float = Field(
        default=18.0, ge=0, lt=24, description="Time of day of the first round (hours)."
    )
    round_minutes: float = Field(
        default=60.0, gt=0, description="Simulated time from one round to the next (minutes)."
    )
    min_battery: float = Field(
        default=0.2, ge=0, le=1, description="Charge that a device needs to start, 0 to 1."
    )
    stop_battery: float = Field(
        default=0.15, ge=0, le=1, description="Charge at which training stops, 0 to 1."
    )
    unmetered: bool = Field(default=True, description="Train only on networks that cost nothing.")
    idle: bool = Field(default=True, description="Train only while the device is not in use.")
    throttle: bool = Field(
        default=False,
        description="Do less instead of nothing while the device is in use, or its charge is "
        "between the two bounds.",
    )
    mid_epochs: float = Field(
        default=1.0, gt=0, le=1, description="Factor on clients.epochs for the devices in between."
    )
    low_epochs: float = Field(
        default=1.0, gt=0, le=1, description="Factor on clients.epochs for slow devices."
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Simulated time after which a device sends what it has (seconds); null: none.",
    )
    checkpoint_every: int = Field(
        default=50, ge=1, le=10**6, description="Training steps between two checkpoints."
    )
    max_staleness: int = Field(
        default=2,
        ge=0,
        le=10**6,
        description="Rounds after which interrupted training is given up.",
    )

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        found = []
        if self.stop_battery > self.min_battery:
            found.append(
                Contradiction(
                    ("devices.stop_battery", "devices.min_battery"),
                    f"devices.stop_battery {self.stop_battery:g} is above devices.min_battery "
                    f"{self.min_battery:g}; a device would stop before it starts",
                )
            )
        if not self.high + self.mid + self.low > 0:
            found.append(
                Contradiction(
                    ("devices.high", "devices.mid", "devices.low"),
                    "devices.high, devices.mid and devices.low are all 0; raise one of them",
                )
            )
        refuse(found)
        return self
