"""Whole rounds of real strategies with a program between grid and clients that does what it likes.

Hypothesis writes what happens to which message on its way: it is lost, late, held back, repeated,
altered, exchanged for an earlier one or for that of another party. Judged is what was sent, what
the models tell, and how the run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.errors import QSFLError
from qsfl_flower.stages import Committee, LocalDP, MaskedSum, SecureKrum, SecureSum, Stage
from qsfl_flower.testing import AppNode, LocalFederation, Outcome, Tap, View, copy_of
from qsfl_flower.wire import from_record
from qsfl_flower.wire.content import AUTH_RECORD

CLIENTS, SIZE, ROUNDS, LEAST = 6, 128, 2, 3
PATIENCE, PULLS = 3600.0, 100_000
"""Virtual seconds, and questions for replies, after which a run counts as one without an end."""

MECHANISMS: dict[str, Callable[[LocalFederation], Stage]] = {
    "secure sum": lambda f: SecureSum(1.0, Committee(3, 2), clock=f.grid_time),
    "secure Multi-Krum": lambda f: SecureKrum(
        1.0, 1, Committee(3, 2), num_selected=3, clock=f.grid_time
    ),
    "masks": lambda f: MaskedSum(f.credentials, bound=1.0, clock=f.grid_time),
    "local noise": lambda f: LocalDP(1.0, 5.0, rounds=ROUNDS),
}
HIDING = ("secure sum", "secure Multi-Krum", "masks")


def secret_of(client: int, server_round: int) -> np.ndarray:
    """Return the update of a client in a round: independent of all others."""
    values = np.random.default_rng([client, server_round]).normal(size=SIZE)
    return 0.5 * values / np.linalg.norm(values)


SECRETS = np.stack([secret_of(c, r) for r in range(1, ROUNDS + 1) for c in range(CLIENTS)])


@dataclass(frozen=True)
class Trick:
    """What happens to one message, or to all from it on.

    Parameters
    ----------
    what : str
        One of `TRICKS`.
    up : bool
        Whether on the way to the server.
    client : int
        Whose message.
    first, last : int
        Which of those on this way, counted from 0.
    where : int
        Chooses what is altered, and by whose message it is replaced.
    """

    what: str
    up: bool
    client: int
    first: int
    last: int
    where: int


TRICKS = (
    "drop", "late", "too late", "repeat", "again later", "hold", "alter", "strip", "earlier",
    "of another", "echo", "error", "silence",
)  # fmt: skip

tricks = st.builds(
    lambda what, up, client, first, more, where: Trick(
        what, up, client, first, first + more, where
    ),
    st.sampled_from(TRICKS),
    st.booleans(),
    st.integers(0, CLIENTS - 1),
    st.integers(0, 6),
    st.sampled_from([0, 0, 0, 1, 9]),
    st.integers(0, 1 << 20),
)


class Endless(BaseException):
    """A run that does not end; nothing in it may catch this."""


@dataclass
class Network:
    """A federation whose messages pass through a program."""

    script: tuple[Trick, ...] = ()
    view: View = field(default_factory=View)
    faults: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.federation = LocalFederation(
            CLIENTS, SIZE, train=lambda client, r, model: model + secret_of(client, r)
        )
        grid = self.federation.grid
        self._counts: dict[tuple[bool, int], int] = {}
        self._passed: dict[tuple[bool, int], list[Message]] = {}
        self._held: dict[tuple[bool, int], list[Message]] = {}
        for client, context in enumerate(self.federation.contexts):
            node = context.node_id
            grid.clients[node] = _Node(self.federation.app(client), context, self.faults)
            grid.taps[node] = Tap(down=self._way(client, False), up=self._way(client, True))
        pulls, pull = iter(range(PULLS)), grid.pull_messages

        def counted(names: list[str]) -> list[Message]:
            if next(pulls, None) is None or grid.time.now > PATIENCE:
                raise Endless(f"{grid.time.now} virtual seconds, and still waiting")
            return list(pull(names))

        grid.pull_messages = counted

    def run(self, mechanism: str | None, rounds: int) -> Outcome:
        """Run a strategy; what is no error of ours comes through."""
        stages = [MECHANISMS[mechanism](self.federation)] if mechanism else []
        return self.federation.run(stages, rounds, max_failed_rounds=rounds)

    def steps(self, outcome: Outcome) -> np.ndarray:
        """Return by what the models that were sent and the last one differ."""
        models = [np.zeros(SIZE)]
        for message in self.view.down:
            record = message.content.array_records.get("arrays")
            if record is not None:
                models.append(from_record(record)["w"].astype(float))
        if outcome.model is not None:
            models.append(outcome.model)
        return np.diff(models, axis=0)

    def sent(self) -> list[bytes]:
        """Return every byte string that clients have sent, without signatures."""
        for message in self.view.up:
            if message.has_content():
                left = {k: v for k, v in message.content.items() if k != AUTH_RECORD}
                message.content = RecordDict(left)
        return self.view.bytes_up()

    def _way(self, client: int, up: bool) -> Callable[[Message], list[tuple[float, Message]]]:
        def program(message: Message) -> list[tuple[float, Message]]:
            (self.view.up if up else self.view.down).append(copy_of(message))
            nth = self._counts[up, client] = self._counts.get((up, client), -1) + 1
            parcels = [(0.0, message), *((0.0, m) for m in self._held.pop((up, client), []))]
            for trick in self.script:
                if (trick.up, trick.client) == (up, client) and trick.first <= nth <= trick.last:
                    parcels = [new for old in parcels for new in self._play(trick, *old)]
            self._passed.setdefault((up, client), []).append(message)
            return parcels

        return program

    def _play(self, trick: Trick, seconds: float, message: Message) -> list[tuple[float, Message]]:
        what, at = trick.what, trick.where
        if what == "drop" or (what == "silence" and trick.up):
            return []
        if what in ("late", "too late"):
            return [(seconds + (20.0 if what == "late" else 90.0), message)]
        if what == "repeat":
            return [(seconds, copy_of(message)) for _ in range(3)]
        if what == "again later":
            return [(seconds, message), (seconds + 30.0, copy_of(message))]
        if what == "hold":
            self._held.setdefault((trick.up, trick.client), []).append(message)
            return []
        if what == "error" and trick.up:
            return [(seconds, Message(Error(2, "\x1b[2J\nrejected: me"), reply_to=message))]
        if message.has_error():
            return [(seconds, message)]
        content = message.content
        if what == "alter":
            content = altered(content, at)
        elif what == "strip":
            gone = sorted(content)[at % len(content)] if len(content) else ""
            content = RecordDict({k: v for k, v in content.items() if k != gone})
        elif what in ("earlier", "of another", "echo"):
            other = trick.client if what == "earlier" else at % CLIENTS
            up = trick.up != (what == "echo")  # what the server has said comes back to it
            known = [m for m in self._passed.get((up, other), []) if m.has_content()]
            content = known[at // CLIENTS % len(known)].content if known else content
        return [(seconds, copy_of(message, content))]


class _Node(AppNode):
    """A node that notes what is no error of ours."""

    def __init__(self, app: testing.grid.App, context: Context, faults: list[Exception]) -> None:
        super().__init__(self._watched, context)
        self._inner, self._faults = app, faults

    def _watched(self, message: Message, context: Context) -> Message:
        try:
            return self._inner(message, context)
        except QSFLError:
            raise
        except Exception as error:
            self._faults.append(error)
            raise


def altered(content: RecordDict, at: int) -> RecordDict:
    """Return a content of which one value is another."""
    places = [(k, name) for k, record in sorted(content.items()) for name in record]
    if not places:
        return content
    key, name = places[at % len(places)]
    record, at = content[key], at // len(places)
    value = record[name]
    if isinstance(value, Array):
        shape = value.shape if at % 5 else (*value.shape, 1)
        changed: object = Array(value.dtype, shape, value.stype, flipped(value.data, at))
    elif isinstance(value, bytes):
        changed = flipped(value, at)
    elif isinstance(value, str):
        changed = value[: at % (len(value) + 1)]
    elif isinstance(value, list):
        changed = value[1:]
    else:
        changed = type(value)(value + (1 if at % 2 else -7))
    return RecordDict(
        {k: type(r)({**r, name: changed}) if k == key else r for k, r in content.items()}
    )


def flipped(data: bytes, at: int) -> bytes:
    """Return the bytes with another bit, or without the last one."""
    if not data or at % 7 == 0:
        return data[:-1]
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << at % 8
    return bytes(changed)
