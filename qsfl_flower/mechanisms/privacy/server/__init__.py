"""The server's half of differential privacy: a stage for each place at which noise is added."""

from qsfl_flower.mechanisms.privacy.server.adaptive import AdaptiveClip
from qsfl_flower.mechanisms.privacy.server.central import CentralDP
from qsfl_flower.mechanisms.privacy.server.devices import ClientSideDP, LocalDP, RecordDP
from qsfl_flower.mechanisms.privacy.server.distributed import DistributedDP

__all__ = ["AdaptiveClip", "CentralDP", "ClientSideDP", "DistributedDP", "LocalDP", "RecordDP"]
