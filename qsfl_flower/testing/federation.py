"""A federation with keys in one process, and what a coalition of its parties sees.

    federation = LocalFederation(clients=6)
    outcome = federation.run([Clip(1.0)], rounds=2)

Client n adds `update_of(n)` to the model in every round. With all of Flower's messages, mods,
signatures and node configuration it is the real thing; only processes and waiting are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from qsfl_flower.asynchrony import WallClock
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.envelope import sign_instruction
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.handshake import make_offer
from qsfl_flower.crypto.messages import Instruction
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.rounds.record import ClientRow, RoundRecord
from qsfl_flower.stages import Authenticate, Stage
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.testing.grid import App, AppNode, NodeGrid, Tap, context_of
from qsfl_flower.testing.taps import observe
from qsfl_flower.wire.arrays import from_record
from qsfl_flower.wire.content import AUTH_RECORD, digest_of
from qsfl_flower.wire.keys import INSTRUCTION_KEY

FIRST_NODE = 100
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    model : ndarray or None, shape (d,)
        The model after the last round; None if the run ended with an error.
    rounds : tuple of RoundRecord
        What an observer was shown.
    clients : tuple of tuple of ClientRow
        And the clients of every round.
    error : QSFLError or None
        What ended the run.

    Examples
    --------
    >>> federation = LocalFederation(clients=3, train=lambda client, number, model: model + client)
    >>> outcome = federation.run()
    >>> outcome.error is None, float(outcome.model[0])
    (True, 1.0)
    """

    model: Floats | None
    rounds: tuple[RoundRecord, ...]
    clients: tuple[tuple[ClientRow, ...], ...]
    error: QSFLError | None = None

    @property
    def rejected(self) -> dict[str, int]:
        """How many replies were rejected, by reason, in all rounds."""
        counts: dict[str, int] = {}
        for record in self.rounds:
            for reason, count in record.rejected.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


class View(RunObserver):
    """Everything that a coalition sees: the server all messages, a client its own.

    Parameters
    ----------
    nodes : collection of int, optional
        The nodes whose messages are seen; None: all, as the server does.

    Examples
    --------
    >>> federation = LocalFederation(clients=2)
    >>> view = federation.watch(clients=[1])  # what client 1 sees and sends
    >>> outcome = federation.run()
    >>> learned(federation.updates, view.bytes_up())
    [1]
    """

    def __init__(self, nodes: Iterable[int] | None = None) -> None:
        self.nodes = None if nodes is None else frozenset(nodes)
        self.down: list[Message] = []
        self.up: list[Message] = []

    def tap(self, node: int) -> Tap:
        """Return the tap that watches a node."""
        if self.nodes is not None and node not in self.nodes:
            return Tap()
        return Tap(down=observe(self.down.append), up=observe(self.up.append))

    def bytes_up(self) -> list[bytes]:
        """Return every byte string that nodes have sent: arrays, values, texts."""
        found: list[bytes] = []
        for message in self.up:
            if message.has_error():
                found.append((message.error.reason or "").encode())
                continue
            for record in message.content.values():
                if isinstance(record, ArrayRecord):
                    found += [array.data for array in record.values()]
                else:
                    found += [_bytes(value) for value in record.values()]
        return found


class _Rows(RunObserver):
    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []
        self.clients: list[tuple[ClientRow, ...]] = []

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        self.rounds.append(record)
        self.clients.append(clients)


@dataclass
class LocalFederation:
    """Clients with keys on a grid in this process.

    Parameters
    ----------
    clients : int
        How many; client n has the name ``client-n`` and the node 100 + n.
    size : int
        Coordinates of the model.
    node_config : Callable[[int], Mapping[str, Any]]
        Further entries of a node's configuration, such as ``qsfl-policy``, by client.
    run_config : Mapping[str, Any]
        The run's configuration.
    mods : sequence of Mod
        Between `auth_mod` and the app; `qsfl_mod` alone by default.
    train : Callable[[int, int, Floats], Floats], optional
        Takes client, ``server-round`` of the configuration (0 if there is none) and model, and
        returns the trained model.

    Examples
    --------
    >>> from qsfl_flower.stages import Clip
    >>> federation = LocalFederation(clients=3)
    >>> view = federation.watch()
    >>> outcome = federation.run([Clip(1.0)])
    >>> learned(federation.updates, view.bytes_up())  # without a secure sum the server sees all
    [0, 1, 2]
    """

    clients: int = 6
    size: int = 256
    node_config: Callable[[int], Mapping[str, Any]] = lambda client: {}
    run_config: Mapping[str, Any] = field(default_factory=dict)
    mods: Sequence[Mod] = (qsfl_mod,)
    train: Callable[[int, int, Floats], Floats] | None = None

    def __post_init__(self) -> None:
        self.names = [f"client-{n}" for n in range(self.clients)]
        now = int(unix_time())
        self.keys = create_federation(self.names, now=now)
        self.roster = open_roster(self.keys.roster, self.keys.authority)
        self.credentials = Credentials(self.keys.server, self.roster)
        self.contexts = [context_of(FIRST_NODE + n, n, self.clients) for n in range(self.clients)]
        for n, context in enumerate(self.contexts):
            context.node_config.update(self.node_config(n))
            context.run_config.update(self.run_config)
        self.grid = NodeGrid(
            {c.node_id: AppNode(self.app(n), c) for n, c in enumerate(self.contexts)}
        )
        self.grid.time.start = now

    def update_of(self, client: int) -> Floats:
        """Return what a client adds to the model: of norm 1/2, and like no other's."""
        update = np.random.default_rng(client).normal(size=self.size)
        return np.asarray(0.5 * update / np.linalg.norm(update))

    @property
    def updates(self) -> Floats:
        """All updates, shape (clients, size)."""
        return np.stack([self.update_of(n) for n in range(self.clients)])

    def app(self, client: int) -> App:
        """Return the client's app with its mods around it."""
        credentials = Credentials(self.keys.clients[self.names[client]], self.roster)
        chain = (auth_mod(lambda context: credentials, self.grid_time), *self.mods)

        def call(message: Message, context: Context, left: Sequence[Mod] = chain) -> Message:
            if not left:
                return self._train(client, message)
            return left[0](message, context, lambda m, c: call(m, c, left[1:]))

        return call

    def grid_time(self) -> float:
        """Return the virtual Unix time."""
        return self.grid.time.time()

    def authenticate(self) -> Authenticate:
        """Return the stage with the server's keys."""
        return Authenticate(self.credentials, clock=self.grid_time)

    def watch(self, clients: Iterable[int] | None = None) -> View:
        """Return the view of the server, or of some clients, from now on."""
        view = View(None if clients is None else [FIRST_NODE + n for n in clients])
        self.grid.taps |= {node: view.tap(node) for node in self.grid.clients}
        return view

    def run(
        self,
        stages: Sequence[Stage] = (),
        rounds: int = 1,
        kind: Callable[..., StableFedAvg] = StableFedAvg,
        **options: Any,
    ) -> Outcome:
        """Run a strategy with these stages behind `authenticate`.

        Parameters
        ----------
        stages : sequence of Stage
            Without `authenticate`, which is always there.
        rounds : int
            Number of rounds.
        kind : Callable[..., StableFedAvg]
            The strategy; it gets the stages and `options`.
        """
        rows = _Rows()
        arguments: dict[str, Any] = {
            "fraction_evaluate": 0.0,
            "min_available_nodes": self.clients,
            "min_train_nodes": self.clients,
            "max_failed_rounds": 1,
            "observer": rows,
            "clock": WallClock(self.grid.time.monotonic),
        }
        strategy = kind(stages=[self.authenticate(), *stages], **(arguments | options))
        start = ArrayRecord({"w": Array(np.zeros(self.size))})
        with self.grid.time.for_strategies():
            try:
                result = strategy.start(self.grid, start, num_rounds=rounds, timeout=60.0)
            except QSFLError as error:
                return Outcome(None, tuple(rows.rounds), tuple(rows.clients), error)
        model = from_record(result.arrays)["w"].astype(np.float64)
        return Outcome(model, tuple(rows.rounds), tuple(rows.clients))

    def ask(
        self, client: int, content: RecordDict, kind: str = "train", server_round: int = 1
    ) -> Message | None:
        """Send one client anything, signed with the server's key; return what reaches the server.

        This is a server that lies as it likes, and that nobody can tell from an honest one.
        """
        now, identity = int(self.grid_time()), self.keys.server
        told = Instruction(
            run=self.contexts[client].run_id,
            round=server_round,
            model_version=server_round,
            purpose=kind,
            content=digest_of(content),
            issued_at=now,
            expires_at=now + 600,
            offer=make_offer(identity.public().suite).encode(),
        )
        signed = sign_instruction(told, identity.name, identity.keys[0].signing)
        auth = ConfigRecord({INSTRUCTION_KEY: signed})
        whole = RecordDict({**content, AUTH_RECORD: auth})
        message = Message(whole, FIRST_NODE + client, kind)
        (name,) = self.grid.push_messages([message])
        return next(iter(self.grid.pull_messages([name])), None)

    def forget(self) -> None:
        """Set every node back to the state before its first message."""
        for context in self.contexts:
            context.state.clear()

    def _train(self, client: int, message: Message) -> Message:
        model = from_record(next(iter(message.content.array_records.values())))
        if self.train is None:
            trained = {k: v + self.update_of(client).reshape(v.shape) for k, v in model.items()}
        else:
            configs = message.content.config_records.values()
            told = [c["server-round"] for c in configs if "server-round" in c]
            number = told[0] if told and isinstance(told[0], int) else 0
            trained = {k: self.train(client, number, v) for k, v in model.items()}
        arrays = ArrayRecord({k: Array(np.asarray(v)) for k, v in trained.items()})
        metrics = MetricRecord({"num-examples": 100, "train-loss": 1.0 + 0.01 * client})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return b"".join(_bytes(one) for one in value)
    return np.float64(value).tobytes() if isinstance(value, int | float) else str(value).encode()
