"""Limits on the size of updates."""

from qsfl_flower.mechanisms.bounds.options import ClipOptions, ValidateOptions
from qsfl_flower.plugins import Mechanism

VALIDATE = Mechanism(
    "validate", ValidateOptions, server="qsfl_flower.mechanisms.bounds.server:Validate", needs=()
)
CLIP = Mechanism(
    "clip",
    ClipOptions,
    server="qsfl_flower.mechanisms.bounds.server:Clip",
    client="qsfl_flower.mechanisms.bounds.client:CLIP_STEPS",
    needs=(),
)

__all__ = ["CLIP", "VALIDATE", "ClipOptions", "ValidateOptions"]
