"""Experiments as YAML files: schema, loading with clear errors, and writing back."""

from __future__ import annotations

from qsfl_flower.simulations.config.asynchronous import MonitorSpec
from qsfl_flower.simulations.config.attacks import AttackKeys
from qsfl_flower.simulations.config.data import (
    DataSpec,
    DirichletSpec,
    IidSpec,
    NaturalSpec,
    ShardsSpec,
    WriterSpec,
)
from qsfl_flower.simulations.config.devices import DevicesSpec
from qsfl_flower.simulations.config.experiment import Experiment
from qsfl_flower.simulations.config.files import shipped_configs
from qsfl_flower.simulations.config.loader import (
    asked_imports,
    dump_experiment,
    experiment_from_dict,
    load_experiment,
)
from qsfl_flower.simulations.config.personal import PersonalizationSpec
from qsfl_flower.simulations.config.reference import json_schema, markdown
from qsfl_flower.simulations.config.sections import (
    ClientsSpec,
    FaultSpec,
    ModelSpec,
    OutputSpec,
    SimulationSpec,
)
from qsfl_flower.simulations.config.strategy import (
    FedAdamSpec,
    FedAsyncSpec,
    FedAvgMSpec,
    FedAvgSpec,
    FedBuffSpec,
    FedProxSpec,
    FedYogiSpec,
    ScaffoldSpec,
)
from qsfl_flower.simulations.config.timing import TimingSpec

__all__ = [
    "AttackKeys",
    "ClientsSpec",
    "DataSpec",
    "DevicesSpec",
    "DirichletSpec",
    "Experiment",
    "FaultSpec",
    "FedAdamSpec",
    "FedAsyncSpec",
    "FedAvgMSpec",
    "FedAvgSpec",
    "FedBuffSpec",
    "FedProxSpec",
    "FedYogiSpec",
    "IidSpec",
    "ModelSpec",
    "MonitorSpec",
    "NaturalSpec",
    "OutputSpec",
    "PersonalizationSpec",
    "ScaffoldSpec",
    "ShardsSpec",
    "SimulationSpec",
    "TimingSpec",
    "WriterSpec",
    "asked_imports",
    "dump_experiment",
    "experiment_from_dict",
    "json_schema",
    "load_experiment",
    "markdown",
    "shipped_configs",
]
