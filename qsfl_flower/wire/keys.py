"""Names of records and keys on the wire; changing one breaks deployed clients."""

from __future__ import annotations

from enum import StrEnum

QSFL_RECORD = "qsfl"
"""ConfigRecord that carries the suite's own fields, in instructions and in replies."""

PLAN_KEY = "plan"
"""In an instruction: what the mod has to do with the update (JSON, see `Plan`)."""

FORM_KEY = "form"
"""In a reply: what the arrays are, a value of `Form`."""

CLIENT_KEY = "client"
"""In a reply: the name that the client gives itself. A claim, used for display only."""


class Form(StrEnum):
    """What the arrays of a reply mean."""

    PARAMETERS = "parameters"
    """The whole model after local training, as plain Flower apps return it."""

    DELTA = "delta"
    """Model after training minus model before: what the mod sends."""
