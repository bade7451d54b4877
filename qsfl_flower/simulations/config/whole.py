"""All sections of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from qsfl_flower.mechanisms.evaluation.options import EvaluationOptions
from qsfl_flower.simulations.config.attacks import AttackSpec
from qsfl_flower.simulations.config.base import MODULE, Section
from qsfl_flower.simulations.config.data import (
    DataSpec,
)
from qsfl_flower.simulations.config.described import keys_of
from qsfl_flower.simulations.config.devices import DevicesSpec
from qsfl_flower.simulations.config.personal import PersonalizationSpec
from qsfl_flower.simulations.config.sections import (
    ClientsSpec,
    FaultSpec,
    ModelSpec,
    OutputSpec,
    SimulationSpec,
)
from qsfl_flower.simulations.config.strategy import (
    FedAvgSpec,
    StrategySpec,
)
from qsfl_flower.simulations.config.timing import TimingSpec

EvaluationSpec = keys_of(EvaluationOptions)
"""The `evaluation` section."""


class Sections(Section):
    """The sections of an experiment, each right by itself."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        default="experiment",
        description="Name of the experiment; the run's folder starts with it.",
        json_schema_extra={
            "x-allowed": "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        },
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of every random choice of the simulation; never of a key.",
    )
    plugins: tuple[
        Annotated[str, StringConstraints(max_length=256, pattern=rf"^{MODULE}$")], ...
    ] = Field(
        default=(),
        strict=False,
        description="Modules that are imported before all else is read, since they add stages, "
        "rules, attacks, models or others; see docs/extending.md.",
    )
    rounds: int = Field(default=10, ge=1, le=100_000, description="Number of federated rounds.")
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    clients: ClientsSpec = ClientsSpec()
    strategy: StrategySpec = Field(
        default=FedAvgSpec(name="fedavg"),
        description="How the server combines what the clients send.",
    )
    evaluation: EvaluationSpec | None = Field(  # type: ignore[valid-type]
        default=None,
        description="Evaluate on the clients, on their held-out examples, without seeing one of "
        "them; null: clients.fraction_evaluate says whether they report one by one.",
    )
    personalization: PersonalizationSpec = PersonalizationSpec()
    devices: DevicesSpec = DevicesSpec()
    timing: TimingSpec | None = Field(
        default=None,
        description="Simulated time of slow and fast devices; null: real time.",
    )
    simulation: SimulationSpec = SimulationSpec()
    output: OutputSpec = OutputSpec()
    attacks: tuple[AttackSpec, ...] = Field(
        default=(),
        strict=False,
        description="Clients that attack, to see what the strategy withstands.",
    )
    faults: tuple[FaultSpec, ...] = Field(
        default=(),
        strict=False,
        description="Clients that misbehave, for tests and demonstrations.",
    )
