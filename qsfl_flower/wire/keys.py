"""Names of records and keys on the wire; changing one breaks deployed clients."""

from __future__ import annotations

from enum import StrEnum

QSFL_RECORD = "qsfl"
"""ConfigRecord that carries the suite's own fields, in instructions and in replies."""

PLAN_KEY = "plan"
"""In an instruction: what the mod has to do with the update (JSON, see `Plan`)."""

ROLES_KEY = "roles"
"""Beside it: the roles of the arrays that are not the usual ones (JSON, see `Layout.told`)."""

FORM_KEY = "form"
"""In a reply: what the arrays are, a value of `Form`."""

CLIENT_KEY = "client"
"""In a reply: the name that the client gives itself. A claim, used for display only."""


TASK_KEY = "task"
"""In an instruction: the mod answers it alone, without the app, by this entry of ``TASKS``."""

QUESTIONS = "questions"
"""The step that makes a client's vector from questions about its table."""

PAYLOAD_RECORD = "qsfl-payload"
"""ArrayRecord of a reply whose form is ``encoded``: what a mechanism made of the update."""

ENCODING_KEY = "encoding"
"""In such a reply: the name of the mechanism that can read the payload."""


REFUSED_KEY = "refused"
"""In a reply without arrays: why the client does not train in this round (``device-battery-low``).
A NumPyClient returns it among its metrics."""

DETAIL_KEY = "refused-detail"
"""Beside it: one sentence for a person."""


class Form(StrEnum):
    """What the arrays of a reply mean."""

    PARAMETERS = "parameters"
    """The whole model after local training, as plain Flower apps return it."""

    DELTA = "delta"
    """Model after training minus model before: what the mod sends."""

    ENCODED = "encoded"
    """A payload in a format of its own (compressed, shared, masked)."""


ENCRYPT_KEY = "encrypt"
"""In an instruction: True if the arrays of the reply have to be encrypted."""

INSTRUCTION_KEY = "instruction"
"""In the authentication record of an instruction: the signed message of the server."""

TICKET_KEY = "ticket"
"""Beside it: the proof that the server has the session with this client."""

REPLY_KEY = "reply"
"""In the authentication record of a reply: the signed message of the client."""

UPDATE_PURPOSE = "update"
"""Purpose that encrypted arrays of a reply are bound to."""

MASKED_SUM = "masked_sum"
"""Name of the pairwise-mask sum: of its step, the prefix of its tasks, and its ConfigRecord."""

DISTRIBUTED_DP = "distributed_dp"
"""Name of the stage, and step of a plan: add a share of the noise before the secure sum."""

PROTECTION = "protection"
"""Step of a plan: what the server promises, see `qsfl_flower.privacy.policy.Protection`."""

CLIP_STEP = "clip"
RECORD_DP = "record_dp"
LOCAL_DP = "local_dp"
"""Steps of a plan, and names of their stages."""

CHOOSE_STEP = "compress-choose"
"""Step of a plan: keep few coordinates of the update (a `Scheme` says which)."""

COMPRESS_STEP = "compress"
"""Step of a plan, and name of the encoding: write them as one record."""
MEASURE_STEP = "measure"
"""Step of a plan: make a vector of the metrics that an app reports."""

COUNTED = "sums"
"""Name of the one array, and of its record, of numbers that are summed and are no update."""

SHARES = "shares-2"
"""Encoding of a reply that holds shares for a committee, and name of the client's step. The number
is that of the protocol: a party of another release refuses by name before it trains or answers."""

SECURE_RECORD = "qsfl-secure"
SECURE_SHARES = "qsfl-secure-shares"
"""ConfigRecord and ArrayRecord of the exchanges with a committee."""

SEALED_TYPE = "qsfl.sealed"
"""Serialization type of an array that is a sealed payload or a signed statement."""

TAKE_TASK = "committee.take-2"
RELEASE_TASK = "committee.release-2"
HELLO_TASK = "committee.hello-2"
"""Tasks of committee members; the last one only tells who is at a node."""

MASK_STEP = "shared_mask"
"""Step of a plan: restrict the update to the public coordinates of the round."""

MASK_ENCODE_STEP = "shared_mask_encode"
"""Step of a plan: write their values where nothing hides them."""

MASK_ENCODING = "shared-mask"
"""Name of that encoding."""

ON_THE_WIRE = {
    name: name.replace("_", "-")
    for name in (DISTRIBUTED_DP, RECORD_DP, LOCAL_DP, MASK_STEP, MASK_ENCODE_STEP)
}
"""Steps that the release before knows by another name: plans are written so, and read both ways."""

LEADING_KEY = "leading"
"""In an instruction: the coordinates that come from the last released step."""

BROADCAST_KEY = "broadcast"
"""In an instruction: digest of the model that the client has to end up with."""

BASE_KEY = "base"
"""Beside it: digest of the model that the client holds, and that the steps start from."""

RELEASED_KEY = "released"
"""Beside it: the steps to take, one record each; without them the arrays are the whole model."""

KEY_FOLDER = "qsfl-keys"
"""Entry of a node's or a run's configuration that names a party's key folder."""
