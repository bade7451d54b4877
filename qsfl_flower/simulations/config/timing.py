"""The `timing` section: how fast the simulated devices are, and when they can be reached."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from qsfl_flower.simulations.config.base import Contradiction, Section, refuse


class DeviceClassSpec(Section):
    """A share of the clients with a common speed, network and time of day."""

    share: float = Field(default=1.0, gt=0, description="Relative number of clients.")
    seconds: float = Field(
        default=1.0, gt=0, description="Median time of one training task (seconds)."
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Spread of that time from task to task: standard deviation of its logarithm.",
    )
    download: float | None = Field(
        default=None, gt=0, description="Speed of the download (bytes/s); null: takes no time."
    )
    upload: float | None = Field(
        default=None, gt=0, description="Speed of the upload (bytes/s); null: takes no time."
    )
    dropout: float = Field(
        default=0.0, ge=0, le=1, description="Probability that a task is never answered."
    )
    online_from: float = Field(
        default=0.0, ge=0, lt=24, description="Time of day at which it comes online (hours)."
    )
    online_for: float = Field(
        default=24.0, gt=0, le=24, description="Time for which it is online every day (hours)."
    )


class TimingSpec(Section):
    """Simulated time: what a device takes is computed, and nobody waits for it."""

    classes: tuple[DeviceClassSpec, ...] = Field(
        default=(DeviceClassSpec(),),
        strict=False,
        description="Kinds of devices, spread over the clients at random with the seed.",
    )
    deadline: float = Field(
        default=3600.0,
        gt=0,
        description="Simulated time after which an answer is given up (seconds).",
    )

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if not self.classes:
            refuse(
                [
                    Contradiction(
                        ("timing.classes",),
                        "there must be at least one class of devices; list one, or leave it out",
                    )
                ]
            )
        return self
