"""The model goes out as what changed."""

from qsfl_flower.mechanisms.broadcast.options import BroadcastOptions
from qsfl_flower.plugins import Mechanism

BROADCAST = Mechanism(
    "broadcast",
    BroadcastOptions,
    server="qsfl_flower.mechanisms.broadcast.server:Broadcast",
    receives="qsfl_flower.mechanisms.broadcast.client:BROADCAST_RECEIVES",
    needs=(),
)

__all__ = ["BROADCAST", "BroadcastOptions"]
