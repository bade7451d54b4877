"""Ready programs for a `Tap`: observe, drop, delay, repeat, reorder, alter and answer.

Each takes a message and returns what is delivered in its place::

    grid.taps[3] = Tap(up=delay(90.0))
    grid.taps[4] = Tap(down=alter(lambda content: lie(content)))
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from flwr.app import Message, RecordDict

from qsfl_flower.testing.grid import Parcels

Program = Callable[[Message], Parcels]


def copy_of(message: Message, content: RecordDict | None = None) -> Message:
    """Return a message with the same address, and another content if one is given.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> copy_of(Message(RecordDict(), 7, "train")).metadata.dst_node_id
    7
    """
    made = copy(message)
    made.__dict__["_metadata"] = copy(message.metadata)
    if content is not None:
        made.content = content
    return made


def observe(look: Callable[[Message], object]) -> Program:
    """Show every message to `look` and deliver it.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> seen = []
    >>> [(seconds, message)] = observe(seen.append)(Message(RecordDict(), 1, "train"))
    >>> seen == [message]
    True
    """

    def program(message: Message) -> Parcels:
        look(message)
        return [(0.0, message)]

    return program


def drop(message: Message) -> Parcels:
    """Deliver nothing.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> drop(Message(RecordDict(), 1, "train"))
    []
    """
    del message
    return []


def delay(seconds: float) -> Program:
    """Deliver after so many virtual seconds.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> [(seconds, message)] = delay(90.0)(Message(RecordDict(), 1, "train"))
    >>> seconds
    90.0
    """
    return lambda message: [(seconds, message)]


def repeat(times: int) -> Program:
    """Deliver a message several times.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> len(repeat(3)(Message(RecordDict(), 1, "train")))
    3
    """
    return lambda message: [(0.0, copy_of(message)) for _ in range(times)]


def alter(change: Callable[[RecordDict], RecordDict]) -> Program:
    """Deliver another content; errors pass.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> program = alter(lambda content: RecordDict())
    >>> [(seconds, message)] = program(Message(RecordDict(), 1, "train"))
    >>> dict(message.content)
    {}
    """
    return lambda message: [
        (0.0, copy_of(message, change(message.content)) if message.has_content() else message)
    ]


def answer(program: Callable[[Message], Message]) -> Program:
    """Let a program answer in the node's place: put it on the way up.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run()
    >>> program = answer(lambda reply: copy_of(reply, RecordDict()))
    >>> len(program(Message(RecordDict(), 1, "train")))
    1
    """
    return lambda message: [(0.0, program(message))]


def reorder(count: int) -> Program:
    """Hold `count` messages back and deliver them in the reverse order.

    Examples
    --------
    >>> program = reorder(2)
    >>> program("first"), program("second")
    ([], [(0.0, 'second'), (0.0, 'first')])
    """
    held: list[Message] = []

    def program(message: Message) -> Parcels:
        held.append(message)
        if len(held) < count:
            return []
        parcels = [(0.0, one) for one in reversed(held)]
        held.clear()
        return parcels

    return program
