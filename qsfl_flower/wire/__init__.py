"""What crosses the network between a strategy and a client, in Flower's own records.

Both sides import this package and nothing of each other: record names, arrays without copies,
the plan that a strategy sends to the mods, and the older ``FitIns``/``FitRes`` format.
"""

from qsfl_flower.wire.arrays import (
    config_of,
    content_bytes,
    from_record,
    numbers_only,
    records_of,
    refusal,
    to_record,
)
from qsfl_flower.wire.blob import from_blob, to_blobs
from qsfl_flower.wire.keys import (
    BASE_KEY,
    BROADCAST_KEY,
    CHOOSE_STEP,
    CLIENT_KEY,
    COMPRESS_STEP,
    DETAIL_KEY,
    ENCODING_KEY,
    FORM_KEY,
    LEADING_KEY,
    MASK_ENCODE_STEP,
    MASK_ENCODING,
    MASK_STEP,
    PAYLOAD_RECORD,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    RELEASED_KEY,
    ROLES_KEY,
    TASK_KEY,
    Form,
)
from qsfl_flower.wire.kinds import Kind, kind_of
from qsfl_flower.wire.plan import ClientPhase, Plan, PlanItem
from qsfl_flower.wire.tell import change_records, with_keys

__all__ = [
    "BASE_KEY",
    "BROADCAST_KEY",
    "CHOOSE_STEP",
    "CLIENT_KEY",
    "COMPRESS_STEP",
    "DETAIL_KEY",
    "ENCODING_KEY",
    "FORM_KEY",
    "LEADING_KEY",
    "MASK_ENCODE_STEP",
    "MASK_ENCODING",
    "MASK_STEP",
    "PAYLOAD_RECORD",
    "PLAN_KEY",
    "QSFL_RECORD",
    "REFUSED_KEY",
    "RELEASED_KEY",
    "ROLES_KEY",
    "TASK_KEY",
    "ClientPhase",
    "Form",
    "Kind",
    "Plan",
    "PlanItem",
    "change_records",
    "config_of",
    "content_bytes",
    "from_blob",
    "from_record",
    "kind_of",
    "numbers_only",
    "records_of",
    "refusal",
    "to_blobs",
    "to_record",
    "with_keys",
]
