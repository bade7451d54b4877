"""The client's half of authentication: obey only the server's signed instructions, sign replies.

One mod, whatever kind of app it is; put it first in the list::

    app = ClientApp(mods=[auth_mod(), qsfl_mod])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.envelope import (
    Authentic,
    sign_reply,
    verify_instruction,
)
from qsfl_flower.crypto.errors import Reason, Rejected
from qsfl_flower.crypto.files import read_file
from qsfl_flower.crypto.handshake import accept_offer, ticket_fits
from qsfl_flower.crypto.identity import KeySet
from qsfl_flower.crypto.messages import Instruction, Reply, fresh_nonce
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError, CryptoError, Refusal
from qsfl_flower.node.instructions import obey
from qsfl_flower.node.made_mods import made_by_call
from qsfl_flower.node.memory import facts_of
from qsfl_flower.node.policy import POLICY_FILE, policy_of
from qsfl_flower.node.steps import Party, acting_as, refuse
from qsfl_flower.wire import config_of
from qsfl_flower.wire.content import AUTH_RECORD, digest_of, frame_record, pack_arrays
from qsfl_flower.wire.keys import (
    ENCRYPT_KEY,
    INSTRUCTION_KEY,
    KEY_FOLDER,
    REPLY_KEY,
    TICKET_KEY,
    UPDATE_PURPOSE,
)

_STATE_RECORD = "qsfl-auth-state"
_SESSION = "session"

_FILES = ("qsfl-key", "qsfl-roster", "qsfl-authority")


@made_by_call
def auth_mod(
    credentials: Callable[[Context], Credentials] | None = None,
    clock: Callable[[], float] = unix_time,
) -> Mod:
    """Make the mod that authenticates both ways.

    The client trains only for an instruction that the server of the roster has signed, for this
    run and not seen before. Its reply is signed over content, run, round, node and instruction;
    its arrays are encrypted under the session if the instruction says so. Session and memory of
    what was seen are kept in Flower's client state, the session encrypted under the client's key.

    Parameters
    ----------
    credentials : Callable[[Context], Credentials], optional
        Returns the client's keys and roster; by default `credentials_from_node_config`.
    clock : Callable[[], float]
        Unix time in seconds.

    Returns
    -------
    Mod
        To be put first among the mods of a ClientApp.

    Notes
    -----
    Who sees what: an instruction that is not acceptable is refused before the app sees it; the
    server gets Flower's error reply, which carries nothing of the client's data.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[auth_mod(), qsfl_mod])
    """

    find = credentials or credentials_from_node_config

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        now = int(clock())
        party = _Party.of(find(context), context, now)
        instruction, ticket = party.verify(message)
        session, acceptance, nonce = party.session(instruction, ticket)
        encrypt = bool(config_of(message.content).get(ENCRYPT_KEY))
        content = message.content
        message.content = RecordDict({k: v for k, v in content.items() if k != AUTH_RECORD})
        try:
            policy = policy_of(context)
            policy.check_server(instruction.signer.name)
            with acting_as(Party(party.credentials, party.keys, now)):
                if POLICY_FILE in context.node_config:  # which counts in apps without qsfl_mod too
                    reply = obey(message, context, policy, call_next)
                else:
                    reply = call_next(message, context)
        except Refusal as refused:
            reply = refuse(refused, message)
        finally:
            message.content = content
        if reply.has_error():
            return reply
        if encrypt:
            sealer = session.sealer(UPDATE_PURPOSE)
            for name, record in list(reply.content.array_records.items()):
                frame = sealer.seal(pack_arrays(record), instruction.content.round)
                reply.content[name] = frame_record(frame)
        answer = Reply(
            run=instruction.content.run,
            round=instruction.content.round,
            model_version=instruction.content.model_version,
            node=context.node_id,
            instruction=instruction.digest,
            content=digest_of(reply.content),
            acceptance=acceptance,
            nonce=nonce,
        )
        signed = sign_reply(answer, party.credentials.identity.name, party.keys.signing)
        reply.content[AUTH_RECORD] = ConfigRecord({REPLY_KEY: signed})
        return reply

    return mod


def credentials_from_node_config(context: Context) -> Credentials:
    """Read the credentials of the node from the files that its configuration names.

    In the SuperNode's ``--node-config``, ``qsfl-keys`` is a key folder (see
    `Credentials.in_folder`); or ``qsfl-key``, ``qsfl-roster`` and ``qsfl-authority`` are paths.
    ``qsfl-passphrase-file`` is needed for an encrypted key.

    Simulated nodes have no configuration of their own but ``partition-id``. Without one of the
    entries above, ``qsfl-keys`` in the run's configuration is a folder in which
    ``qsfl keys federation`` has made a key folder ``client-N`` for every partition N.

    Raises
    ------
    ConfigError
        If nothing says where the keys are.

    Examples
    --------
    >>> from qsfl_flower.testing import context_of
    >>> credentials_from_node_config(context_of(1, 0, 8))
    Traceback (most recent call last):
        ...
    qsfl_flower.errors.ConfigError: node config: qsfl-keys is missing...
    """
    config = context.node_config
    passphrase = None
    if secret := config.get("qsfl-passphrase-file"):
        passphrase = Secret(read_file(Path(str(secret)), private=True).rstrip(b"\r\n"))
    if KEY_FOLDER in config:
        return Credentials.in_folder(str(config[KEY_FOLDER]), passphrase=passphrase)
    if not any(name in config for name in _FILES) and KEY_FOLDER in context.run_config:
        shared = Path(str(context.run_config[KEY_FOLDER])).expanduser()
        party = f"client-{config.get('partition-id')}"
        return Credentials.in_folder(shared / party)
    for name in _FILES:
        if not isinstance(config.get(name), str):
            raise ConfigError(
                f"node config: {KEY_FOLDER} is missing, and {name} is {config.get(name)!r}; start "
                f"the SuperNode with --node-config '{KEY_FOLDER}=\"/path/to/folder\" ...', or "
                f"simulate with {KEY_FOLDER} in the run config"
            )
    key, roster, authority = (Path(str(config[name])) for name in _FILES)
    return Credentials.load(key, roster, authority, passphrase=passphrase)


@dataclass(frozen=True, repr=False)
class _Party:
    """One client while it handles one message."""

    credentials: Credentials
    context: Context
    keys: KeySet
    now: int

    @classmethod
    def of(cls, credentials: Credentials, context: Context, now: int) -> _Party:
        credentials = credentials.of("client", "the credentials of this node")
        return cls(
            credentials, context, credentials.roster.own_keys(credentials.identity, now), now
        )

    @property
    def state(self) -> ConfigRecord:
        """The client's memory between messages."""
        return config_of(self.context.state, _STATE_RECORD)

    def remember(self, key: str, value: bytes) -> None:
        self.context.state[_STATE_RECORD] = ConfigRecord({**self.state, key: value})

    def verify(self, message: Message) -> tuple[Authentic[Instruction], bytes]:
        """Return the server's instruction if this client may act on it, and the ticket with it."""
        auth = config_of(message.content, AUTH_RECORD)
        signed, ticket = auth.get(INSTRUCTION_KEY), auth.get(TICKET_KEY, b"")
        if not isinstance(signed, bytes) or not isinstance(ticket, bytes):
            raise Rejected(
                Reason.MALFORMED,
                "the instruction is not signed, and this client obeys no other; let a strategy of "
                "qsfl_flower make the messages",
            )
        with facts_of(self.context) as facts:
            name = f"auth/seen/{self.context.run_id}"
            seen = ReplayCache.decode(facts[name]) if name in facts else ReplayCache()
            instruction, seen = verify_instruction(
                signed,
                digest_of(message.content),
                run=self.context.run_id,
                roster=self.credentials.roster,
                now=self.now,
                seen=seen,
            )
            kind = message.metadata.message_type
            if instruction.content.purpose != kind:
                raise Rejected(
                    Reason.MALFORMED,
                    f"the instruction is for {instruction.content.purpose!r}, not for {kind!r}",
                )
            facts[name] = seen.encode()
        return instruction, ticket

    def session(
        self, instruction: Authentic[Instruction], ticket: bytes
    ) -> tuple[Session, bytes, bytes]:
        """Return the session to use, the acceptance if it is a new one, and the reply's nonce."""
        nonce = fresh_nonce()
        known = self._restored()
        if known is not None and ticket_fits(known, ticket, instruction.digest):
            self.remember(_SESSION, known.save(self.keys.storage))
            return known, b"", nonce
        identity = self.credentials.identity
        acceptance, session = accept_offer(
            instruction,
            identity.public(self.keys),
            node=self.context.node_id,
            nonce=nonce,
            now=self.now,
        )
        self.remember(_SESSION, session.save(self.keys.storage))
        return session, acceptance, nonce

    def _restored(self) -> Session | None:
        saved = self.state.get(_SESSION)
        if not isinstance(saved, bytes):
            return None
        try:
            return Session.restore(saved, self.keys.storage).used(self.now)
        except CryptoError:
            return None  # expired, or from before a rotation of the keys: a new one is made
