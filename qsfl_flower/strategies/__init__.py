"""Flower strategies, the server's side of a federation; stages are in `qsfl_flower.stages`."""

import warnings

from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.policies import POLICIES, Policy
from qsfl_flower.rounds.record import ClientRow, RoundLog, RoundRecord, RunObserver
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.strategies.adaptive import FedAdam, FedAvgM, FedYogi
from qsfl_flower.strategies.asynchronous import BufferedAsync, FedAsync, FedBuff
from qsfl_flower.strategies.authenticated import AuthenticatedFedAvg
from qsfl_flower.strategies.compressed import CompressedFedAvg
from qsfl_flower.strategies.legacy_server import legacy_server_app
from qsfl_flower.strategies.presets import CrossDevice, CrossSilo, FullChain, Research
from qsfl_flower.strategies.robust_presets import (
    Bulyan,
    CenteredClipping,
    FedMedian,
    FedTrimmedAvg,
    GeometricMedian,
    Krum,
    MultiKrum,
    NormBounded,
    RobustFedAvg,
)
from qsfl_flower.strategies.scaffold import ScaffoldFedAvg
from qsfl_flower.strategies.secure import SecAggFedAvg, SecureFedAvg, SecureMultiKrum
from qsfl_flower.strategies.stable import StableFedAvg

__all__ = [
    "POLICIES",
    "AuthenticatedFedAvg",
    "BufferedAsync",
    "Bulyan",
    "CenteredClipping",
    "CheckpointStore",
    "ClientRow",
    "CompressedFedAvg",
    "CrossDevice",
    "CrossSilo",
    "FedAdam",
    "FedAsync",
    "FedAvgM",
    "FedBuff",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "FullChain",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "NormBounded",
    "Policy",
    "PrivacyBudget",
    "Research",
    "RobustFedAvg",
    "RoundLog",
    "RoundRecord",
    "RunObserver",
    "ScaffoldFedAvg",
    "SecAggFedAvg",
    "SecureFedAvg",
    "SecureMultiKrum",
    "Snapshot",
    "StableFedAvg",
    "legacy_server_app",
]


def __getattr__(name: str) -> object:
    """Find a stage under its name of the last release."""
    from qsfl_flower import stages

    if name not in stages.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"qsfl_flower.strategies.{name} is now qsfl_flower.stages.{name}; the old name goes with "
        "the next release",
        FutureWarning,
        stacklevel=2,
    )
    return getattr(stages, name)
