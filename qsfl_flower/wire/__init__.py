"""What crosses the network between a strategy and a client, in Flower's own records.

Both sides import this package and nothing of each other: record names, arrays without copies,
the plan that a strategy sends to the mods, and the older ``FitIns``/``FitRes`` format.
"""

from qsfl_flower.wire.arrays import (
    content_bytes,
    from_record,
    numbers_only,
    records_of,
    refusal,
    to_record,
)
from qsfl_flower.wire.blob import from_blob, to_blobs
from qsfl_flower.wire.keys import (
    CHOOSE_STEP,
    CLIENT_KEY,
    COMPRESS_STEP,
    DETAIL_KEY,
    ENCODING_KEY,
    FORM_KEY,
    PAYLOAD_RECORD,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    TASK_KEY,
    Form,
)
from qsfl_flower.wire.plan import Plan, PlanItem

__all__ = [
    "CHOOSE_STEP",
    "CLIENT_KEY",
    "COMPRESS_STEP",
    "DETAIL_KEY",
    "ENCODING_KEY",
    "FORM_KEY",
    "PAYLOAD_RECORD",
    "PLAN_KEY",
    "QSFL_RECORD",
    "REFUSED_KEY",
    "TASK_KEY",
    "Form",
    "Plan",
    "PlanItem",
    "content_bytes",
    "from_blob",
    "from_record",
    "numbers_only",
    "records_of",
    "refusal",
    "to_blobs",
    "to_record",
]
