"""Flower strategies, the server's side of a federation; stages are in `qsfl_flower.stages`."""

import warnings

from qsfl_flower.mechanisms.evaluation.core import Metric
from qsfl_flower.mechanisms.evaluation.server import Evaluation
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.policies import POLICIES, Policy
from qsfl_flower.rounds.record import ClientRow, RoundLog, RoundRecord, RunObserver
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.strategies.adaptive import FedAdam, FedAvgM, FedYogi
from qsfl_flower.strategies.analytics import FederatedAnalytics
from qsfl_flower.strategies.asynchronous import BufferedAsync, FedAsync, FedBuff
from qsfl_flower.strategies.authenticated import AuthenticatedFedAvg
from qsfl_flower.strategies.compressed import CompressedFedAvg
from qsfl_flower.strategies.legacy_server import legacy_server_app
from qsfl_flower.strategies.presets import cross_device, cross_silo, full_chain, research
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
    "Evaluation",
    "FedAdam",
    "FedAsync",
    "FedAvgM",
    "FedBuff",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "FederatedAnalytics",
    "GeometricMedian",
    "Krum",
    "Metric",
    "MultiKrum",
    "NormBounded",
    "Policy",
    "PrivacyBudget",
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
    "cross_device",
    "cross_silo",
    "full_chain",
    "legacy_server_app",
    "research",
]


_PRESETS = {
    "CrossDevice": cross_device,
    "CrossSilo": cross_silo,
    "FullChain": full_chain,
    "Research": research,
}
"""Names of the last release."""


def __getattr__(name: str) -> object:
    """Find a stage or a preset under its name of the last release."""
    from qsfl_flower import stages

    if name in _PRESETS:
        found, new = _PRESETS[name], f"strategies.{_PRESETS[name].__name__}"
    elif name in stages.__all__:
        found, new = getattr(stages, name), f"stages.{name}"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"qsfl_flower.strategies.{name} is now qsfl_flower.{new}; the old name goes with the next "
        "release",
        FutureWarning,
        stacklevel=2,
    )
    return found
