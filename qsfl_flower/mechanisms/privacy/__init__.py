"""Differential privacy, by where the noise is added."""

from qsfl_flower.mechanisms.privacy.options import (
    AdaptiveClipOptions,
    CentralDPOptions,
    DistributedDPOptions,
    LocalDPOptions,
    RecordDPOptions,
)
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import Trait

_SERVER = "qsfl_flower.mechanisms.privacy.server:"
_CLIENT = "qsfl_flower.mechanisms.privacy.client:"

CENTRAL_DP = Mechanism(
    "central_dp",
    CentralDPOptions,
    _SERVER + "CentralDP",
    traits=frozenset({Trait.PROTECTS_CLIENTS}),
)
ADAPTIVE_CLIP = Mechanism(
    "adaptive_clip",
    AdaptiveClipOptions,
    _SERVER + "AdaptiveClip",
    traits=frozenset({Trait.SPENDS_ON_CLIENTS, Trait.SEES_UPDATES}),
)
RECORD_DP = Mechanism(
    "record_dp",
    RecordDPOptions,
    _SERVER + "RecordDP",
    _CLIENT + "RECORD_STEPS",
    traits=frozenset({Trait.TELLS_TRAINING, Trait.COVERS_METRICS}),
)
DISTRIBUTED_DP = Mechanism(
    "distributed_dp",
    DistributedDPOptions,
    _SERVER + "DistributedDP",
    _CLIENT + "SHARE_STEPS",
    traits=frozenset({Trait.SHARES_NOISE}),
)
LOCAL_DP = Mechanism(
    "local_dp",
    LocalDPOptions,
    _SERVER + "LocalDP",
    _CLIENT + "LOCAL_STEPS",
    traits=frozenset({Trait.NOISES_UPDATES, Trait.OUTGROWS_BOUND, Trait.COVERS_METRICS}),
)

__all__ = ["ADAPTIVE_CLIP", "CENTRAL_DP", "DISTRIBUTED_DP", "LOCAL_DP", "RECORD_DP"]
