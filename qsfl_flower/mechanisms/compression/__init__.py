"""Fewer bytes: chosen coordinates in few bits."""

from qsfl_flower.mechanisms.compression.options import CompressOptions
from qsfl_flower.plugins import Mechanism

COMPRESS = Mechanism(
    "compress",
    CompressOptions,
    server="qsfl_flower.mechanisms.compression.server:Compress",
    client="qsfl_flower.mechanisms.compression.client:COMPRESS_STEPS",
)
