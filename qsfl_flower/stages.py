"""Stages of a strategy: what is done to updates between the clients and the model.

A strategy takes them as ``stages=[...]``, in any order; each says who sees what.
"""

from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.mechanisms.bounds.server import Clip, Validate
from qsfl_flower.mechanisms.broadcast.server import Broadcast
from qsfl_flower.mechanisms.compression.server import Compress, SharedMask
from qsfl_flower.mechanisms.detection.server import Detect
from qsfl_flower.mechanisms.masked_sum.server import MaskedSum
from qsfl_flower.mechanisms.privacy.server import (
    AdaptiveClip,
    CentralDP,
    DistributedDP,
    LocalDP,
    RecordDP,
)
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureKrum, SecureSum
from qsfl_flower.mechanisms.server_optimizers.server import ServerAdam, ServerMomentum, ServerYogi
from qsfl_flower.mechanisms.server_optimizers.stale import StaleStep
from qsfl_flower.rounds.aggregate import Outcome
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.context import Phase, RoundContext, State
from qsfl_flower.rounds.stages import (
    CohortStage,
    Combined,
    CombineStage,
    DecodeStage,
    Stage,
    VectorStage,
)
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, Weighting
from qsfl_flower.wire import ClientPhase

__all__ = [
    "AdaptiveClip",
    "Authenticate",
    "Broadcast",
    "CentralDP",
    "Chain",
    "ClientPhase",
    "Clip",
    "Cohort",
    "CohortStage",
    "CombineStage",
    "Combined",
    "Committee",
    "Compress",
    "DecodeStage",
    "Detect",
    "DistributedDP",
    "LocalDP",
    "MaskedSum",
    "Outcome",
    "Phase",
    "RecordDP",
    "Rejection",
    "Robust",
    "RoundContext",
    "SecureKrum",
    "SecureSum",
    "Sender",
    "ServerAdam",
    "ServerMomentum",
    "ServerYogi",
    "SharedMask",
    "Stage",
    "StaleStep",
    "State",
    "Update",
    "Validate",
    "VectorStage",
    "Weighting",
]
