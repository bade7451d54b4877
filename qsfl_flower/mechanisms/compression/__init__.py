"""Fewer bytes: chosen coordinates in few bits."""

from qsfl_flower.mechanisms.compression.options import CompressOptions, SharedMaskOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import Trait

COMPRESS = Mechanism(
    "compress",
    CompressOptions,
    server="qsfl_flower.mechanisms.compression.server:Compress",
    client="qsfl_flower.mechanisms.compression.client:COMPRESS_STEPS",
    traits=frozenset({Trait.ENCODES, Trait.OWN_SUPPORT}),
)
SHARED_MASK = Mechanism(
    "shared_mask",
    SharedMaskOptions,
    server="qsfl_flower.mechanisms.compression.server:SharedMask",
    client="qsfl_flower.mechanisms.compression.client:MASK_STEPS",
    traits=frozenset({Trait.ENCODES, Trait.FLAT}),
)

__all__ = ["COMPRESS", "SHARED_MASK", "CompressOptions", "SharedMaskOptions"]
