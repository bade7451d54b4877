"""Mechanisms of the suite as records: options, and where the two halves are.

Nothing here needs NumPy, Flower or torch: reading a configuration imports it.
"""

from qsfl_flower.mechanisms.authentication import AUTHENTICATE
from qsfl_flower.mechanisms.bounds import CLIP, VALIDATE
from qsfl_flower.mechanisms.broadcast import BROADCAST
from qsfl_flower.mechanisms.compression import COMPRESS, SHARED_MASK
from qsfl_flower.mechanisms.detection import DETECT
from qsfl_flower.mechanisms.masked_sum import MASKED_SUM
from qsfl_flower.mechanisms.privacy import (
    ADAPTIVE_CLIP,
    CENTRAL_DP,
    DISTRIBUTED_DP,
    LOCAL_DP,
    RECORD_DP,
)
from qsfl_flower.mechanisms.robust import ROBUST
from qsfl_flower.mechanisms.secure_sum import SECURE_KRUM, SECURE_SUM
from qsfl_flower.plugins import Mechanism, added

_RECORDS = (
    AUTHENTICATE, VALIDATE, CLIP, DETECT, MASKED_SUM, SECURE_KRUM, SECURE_SUM, COMPRESS,
    SHARED_MASK, BROADCAST, ROBUST, CENTRAL_DP, ADAPTIVE_CLIP, RECORD_DP, DISTRIBUTED_DP, LOCAL_DP,
)  # fmt: skip
BUILT_IN: dict[str, Mechanism] = {one.name: one for one in _RECORDS}


def find(name: str) -> Mechanism | None:
    """Return the mechanism of this name, of the suite or of a plugin; None if there is none."""
    found = BUILT_IN.get(name) or added("mechanism").get(name)
    return found if isinstance(found, Mechanism) else None


__all__ = ["AUTHENTICATE", "BUILT_IN", "find"]
