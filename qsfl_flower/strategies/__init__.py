"""Flower strategies and the stages they are made of (the server's side of a round)."""

from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.mechanisms.bounds.server import Clip, Validate
from qsfl_flower.mechanisms.broadcast.server import Broadcast
from qsfl_flower.mechanisms.compression.server import Compress, SharedMask
from qsfl_flower.mechanisms.detection.server import Detect
from qsfl_flower.mechanisms.masked_sum.server import MaskedSum
from qsfl_flower.mechanisms.privacy.distributed import DistributedDP
from qsfl_flower.mechanisms.privacy.server import AdaptiveClip, CentralDP, LocalDP, RecordDP
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureKrum, SecureSum
from qsfl_flower.mechanisms.server_optimizers.server import FedAdam, FedAvgM, FedYogi
from qsfl_flower.mechanisms.server_optimizers.stale import StaleStep
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
from qsfl_flower.strategies.scaffold import ControlVariates, ScaffoldFedAvg
from qsfl_flower.strategies.secure import SecAggFedAvg, SecureFedAvg, SecureMultiKrum
from qsfl_flower.strategies.stable import StableFedAvg
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
