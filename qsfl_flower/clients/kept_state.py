"""What training leaves behind on a node: kept on disk, or not used, as its policy says."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from qsfl_flower.clients.checkpoints import ClientCheckpoint, ClientCheckpoints
from qsfl_flower.clients.local import LOCAL_RECORD
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import Refusal
from qsfl_flower.node.made_mods import made_by_call
from qsfl_flower.node.memory import facts_of, is_durable
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.node.steps import client_name
from qsfl_flower.numerics import Layout
from qsfl_flower.numerics.roles import TRAINED, guess_roles, usual_role
from qsfl_flower.wire import Plan, config_of, from_record, to_record

log = logging.getLogger("qsfl_flower")

KEPT = ("qsfl-compression", "qsfl-scaffold", "qsfl-personal", LOCAL_RECORD)
"""Records of the client state that are written: the residual of error feedback, the control
variate, personal layers, local arrays. Keys and shares never are."""

_RUN_RECORD = "qsfl-run"
_FACT = "kept-state/"
_ANY_AGE = 1 << 62
_FORGETS: ContextVar[bool] = ContextVar("qsfl_forgets", default=False)


def begin_run(context: Context) -> None:
    """Forget what training has left behind in another run.

    Flower keeps the client state over all runs of a series. A residual, a control variate or
    personal layers of an earlier run belong to another model; in a new run they would be data that
    nobody has accounted for.
    """
    run = str(context.run_id)
    known = config_of(context.state, _RUN_RECORD).get("run")
    if known == run:
        return
    if known is not None:
        _drop(context)
    context.state[_RUN_RECORD] = ConfigRecord({"run": run})


def forgets() -> bool:
    """Return whether the training in hand may build on no earlier one; for apps that keep some."""
    return _FORGETS.get()


@contextmanager
def training_alone(
    context: Context, policy: NodePolicy, plan: Plan, layout: Layout | None
) -> Iterator[None]:
    """Let an app train on nothing but the instruction in hand, if the node's policy says so.

    Members of a committee and neighbours under masks see that all clients of a sum were asked for
    the same in this round. What an earlier round left behind is in no digest: a server could have
    sent all but one client an instruction after which their next updates are known.

    Raises
    ------
    Refusal
        ``policy-kept-state``: the plan or the app needs what earlier rounds leave behind. Local
        statistics do not count: the model is trained without them.
    """
    if not policy.forgets:
        yield
        return
    local = () if layout is None else layout.local
    dtypes = {} if layout is None else dict(zip(layout.names, layout.dtypes, strict=True))
    weights = [n for n in local if usual_role(dtypes[n]) == TRAINED and n not in guess_roles(local)]
    needed = [f"the local weights {name!r:.80}" for name in weights]
    for item in plan.items:
        options = item.parameters.get("scheme", item.parameters.get("mask"))
        if isinstance(options, Mapping) and options.get("feedback", True):
            needed.append(f"the residual of {item.name}")
    _refuse(needed)
    _drop(context)
    token = _FORGETS.set(True)
    try:
        yield
    finally:
        _FORGETS.reset(token)
    _refuse(_drop(context))


def _refuse(needed: list[str]) -> None:
    if needed:
        raise Refusal(
            "policy-kept-state",
            f"{needed[0]} would take part in later hidden sums; this node lets nothing of earlier "
            "rounds do that (kept_state = true in its policy allows it)",
        )


def _drop(context: Context) -> list[str]:
    """Forget what training has left behind, and return the names of these records."""
    found = [name for name in KEPT if name in context.state]
    for name in found:
        del context.state[name]
    return found


@made_by_call
def state_mod(folder: Path, key: Secret | None = None) -> Mod:
    """Make the mod that keeps a client's memory in a file.

    Flower holds the client state in the SuperNode's process. This mod writes the records `KEPT`
    after each message that changed them, and puts them back when Flower comes with a state in
    which they are missing. A client that is killed while it trains, and takes up its training from
    a checkpoint, then adds the same residual and sends the same record.

    Parameters
    ----------
    folder : Path
        Of this client; the file goes into ``state`` below it. It may be the folder of the client's
        `ClientCheckpoints`.
    key : Secret, optional
        Encrypts the file: the ``storage`` key of the client's identity.

    Returns
    -------
    Mod
        To be put before `qsfl_mod`.

    Notes
    -----
    A memory belongs to one run and one client; others are passed over. The file is replaced when a
    reply is finished: if the process dies between that and the reply's departure, the update counts
    as sent, like one that the network loses.

    With a durable memory of the node (`qsfl-state`) a file that was set back to an older one is
    noticed, and training goes on without it. Without one nobody knows better: a residual that is
    set back is added twice.

    Who sees what: whoever reads the file sees what training left behind; it is readable by its
    owner only.

    Examples
    --------
    >>> from pathlib import Path
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[state_mod(Path("/var/lib/qsfl")), qsfl_mod])
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        begin_run(context)
        owner = f"state {context.run_id} {client_name(context)}"
        store = ClientCheckpoints(folder / "state", owner=owner, keep=1, key=key)
        if not any(name in context.state for name in KEPT):
            _restore(store, context)
        before = [context.state.get(name) for name in KEPT]
        reply = call_next(message, context)
        after = [context.state.get(name) for name in KEPT]
        if any(new is not old for new, old in zip(after, before, strict=True)):
            _save(store, context)
        return reply

    return mod


def _save(store: ClientCheckpoints, context: Context) -> None:
    names: dict[str, list[str]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for kept in KEPT:
        record = context.state.get(kept)
        if isinstance(record, ArrayRecord):
            values = from_record(record)
            names[kept] = list(values)
            arrays |= {f"{kept}/{number}": array for number, array in enumerate(values.values())}
    token = random_bytes(16, "checkpoint token").hex()
    if is_durable(context):
        with facts_of(context) as facts:
            for name in [name for name in facts if name.startswith(_FACT)]:
                del facts[name]
            facts[f"{_FACT}{context.run_id}"] = token.encode()
    store.save(ClientCheckpoint(0, token, 0, arrays, names))


def _restore(store: ClientCheckpoints, context: Context) -> None:
    saved = store.latest(0, _ANY_AGE)
    if saved is None:
        return
    if is_durable(context):
        with facts_of(context) as facts:
            newest = facts.get(f"{_FACT}{context.run_id}")
        if newest != saved.version.encode():
            log.warning(
                "the client's memory in %s is not the newest: it was set back, or its writer was "
                "killed; training continues without it",
                store.folder,
            )
            return
    for kept, names in saved.values.items():
        arrays = {name: saved.arrays[f"{kept}/{n}"] for n, name in enumerate(names)}
        context.state[kept] = to_record(arrays)
    log.info("the client's memory was read from %s", store.folder)
