"""The classes of Flower's message types: ``train``, ``train.lora`` and so on are all training."""

from __future__ import annotations

from enum import StrEnum

from qsfl_flower.errors import Refusal


class Kind(StrEnum):
    """What a message asks for, whatever action is named behind the dot."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    QUERY = "query"


class Purpose(StrEnum):
    """What a question to the nodes is for: each has its own answers, least cohort and budget."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    QUERY = "query"
    ANALYTICS = "analytics"


ANALYTICS_TYPE = "query.analytics"
"""Flower's type of messages with questions of analytics, which no app sees."""


def purpose_of(message_type: str) -> Purpose:
    """Return the purpose of a message of this type; see `kind_of` for what is raised.

    Examples
    --------
    >>> purpose_of("query.analytics").value, purpose_of("evaluate.test").value
    ('analytics', 'evaluate')
    """
    kind = kind_of(message_type)
    return Purpose.ANALYTICS if message_type == ANALYTICS_TYPE else Purpose(kind.value)


def kind_of(message_type: str) -> Kind:
    """Return the class of a message type.

    Flower routes ``train.default`` and ``train.lora`` to training handlers like ``train``. What
    holds for training has to hold for all of them.

    Parameters
    ----------
    message_type : str
        Flower's type: ``train``, ``evaluate`` or ``query``, with or without ``.action``.

    Raises
    ------
    Refusal
        ``policy-message-type``: any other type.

    Examples
    --------
    >>> kind_of("train.lora").value
    'train'
    """
    head, dot, action = message_type.partition(".")
    if head not in tuple(Kind) or (dot and not action.isidentifier()):
        raise Refusal(
            "policy-message-type",
            f"the message type is {message_type!r:.60}; allowed are train, evaluate and query, "
            "each with or without .action",
        )
    return Kind(head)
