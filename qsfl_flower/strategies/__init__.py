"""Flower strategies and the stages they are made of (the server's side of a round)."""

import sys
from importlib import import_module

from qsfl_flower.rounds.aggregate import Outcome
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.context import Phase, RoundContext, State
from qsfl_flower.rounds.policies import POLICIES, Policy
from qsfl_flower.rounds.record import ClientRow, RoundLog, RoundRecord, RunObserver
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.rounds.stages import (
    CohortStage,
    Combined,
    CombineStage,
    DecodeStage,
    Stage,
    VectorStage,
)
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, Weighting
from qsfl_flower.strategies.asynchronous import BufferedAsync, FedAsync, FedBuff
from qsfl_flower.strategies.authenticated import AuthenticatedFedAvg
from qsfl_flower.strategies.authentication import Authenticate
from qsfl_flower.strategies.bounds import Clip, Validate
from qsfl_flower.strategies.broadcast import Broadcast
from qsfl_flower.strategies.compression import Compress, CompressedFedAvg, SharedMask
from qsfl_flower.strategies.detection import Detect
from qsfl_flower.strategies.distributed_dp import DistributedDP
from qsfl_flower.strategies.legacy_server import legacy_server_app
from qsfl_flower.strategies.masked_sum import MaskedSum
from qsfl_flower.strategies.presets import CrossDevice, CrossSilo, FullChain, Research
from qsfl_flower.strategies.privacy import AdaptiveClip, CentralDP, LocalDP, RecordDP
from qsfl_flower.strategies.robust import Robust
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
from qsfl_flower.strategies.scaffold import ControlVariates, ScaffoldFedAvg
from qsfl_flower.strategies.secure import SecAggFedAvg, SecureFedAvg, SecureMultiKrum
from qsfl_flower.strategies.secure_sum import Committee, SecureKrum, SecureSum
from qsfl_flower.strategies.server_optimizers import FedAdam, FedAvgM, FedYogi
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.strategies.stale_step import StaleStep
from qsfl_flower.wire import ClientPhase

__all__ = [
    "POLICIES",
    "AdaptiveClip",
    "Authenticate",
    "AuthenticatedFedAvg",
    "Broadcast",
    "BufferedAsync",
    "Bulyan",
    "CenteredClipping",
    "CentralDP",
    "Chain",
    "CheckpointStore",
    "ClientPhase",
    "ClientRow",
    "Clip",
    "Cohort",
    "CohortStage",
    "CombineStage",
    "Combined",
    "Committee",
    "Compress",
    "CompressedFedAvg",
    "ControlVariates",
    "CrossDevice",
    "CrossSilo",
    "DecodeStage",
    "Detect",
    "DistributedDP",
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
    "LocalDP",
    "MaskedSum",
    "MultiKrum",
    "NormBounded",
    "Outcome",
    "Phase",
    "Policy",
    "PrivacyBudget",
    "RecordDP",
    "Rejection",
    "Research",
    "Robust",
    "RobustFedAvg",
    "RoundContext",
    "RoundLog",
    "RoundRecord",
    "RunObserver",
    "ScaffoldFedAvg",
    "SecAggFedAvg",
    "SecureFedAvg",
    "SecureKrum",
    "SecureMultiKrum",
    "SecureSum",
    "Sender",
    "SharedMask",
    "Snapshot",
    "StableFedAvg",
    "Stage",
    "StaleStep",
    "State",
    "Update",
    "Validate",
    "VectorStage",
    "Weighting",
    "legacy_server_app",
]

_MOVED = (
    "admission", "aggregate", "assignment", "chain", "charges", "checkpoint", "combine",
    "composition", "evaluation", "exchange", "explanation", "guard", "policies", "post", "record",
    "roles", "sampling", "spending", "stages", "update",
)  # fmt: skip
"""Modules of `qsfl_flower.rounds` that can be imported from here for one release."""

for _name in _MOVED:
    sys.modules[f"{__name__}.{_name}"] = import_module(f"qsfl_flower.rounds.{_name}")
