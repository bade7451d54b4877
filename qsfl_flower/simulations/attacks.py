"""Clients of a simulation that attack: the innermost mod, in place of what the app returned.

What the other mods do afterwards - clip, compress, encrypt, sign - is done to the poison as to any
update: an attacker is an enrolled client with keys of its own, and every stage of the strategy, the
hiding ones included, meets it as it would in a deployment.

Nobody shows an attacker the others' updates, so an omniscient one works them out: in a simulation
the training of every client depends on the experiment, the round and the model alone, bit for bit,
and the attacker's process can repeat it. The poison can therefore be aimed even where updates are
encrypted or shared, which is more than any real attacker can do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from qsfl_flower.clients.trainer import derive_seed
from qsfl_flower.mechanisms.robust.core.attacks import Attack, Collusion, Replay, View, build_attack
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.simulations.build import Owners, client_of, fingerprint
from qsfl_flower.simulations.config import AttackKeys, Experiment
from qsfl_flower.simulations.materials import roles_of_model
from qsfl_flower.wire import Kind, from_record, kind_of, to_record

Floats = NDArray[np.float64]

MOST_KNOWN = 50
"""An omniscient attacker works out the updates of no more clients than these, for the cost."""

_FIRST = "qsfl-attack-first"


def attack_mod(experiment: Experiment, owners: Owners) -> Mod:
    """Make the mod that lets the clients of ``attacks:`` attack in their rounds.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    owners : numpy.ndarray
        Who owns which example.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        spec = _attack_now(experiment, message, context)
        reply = call_next(message, context)
        if spec is None or reply.has_error() or not reply.content.array_records:
            return reply
        attack = build_attack(spec.attack, **spec.parameters)
        ((key, record),) = reply.content.array_records.items()
        reply.content[key] = _poison(experiment, owners, spec, attack, message, context, record)
        return reply

    return mod


def _attack_now(experiment: Experiment, message: Message, context: Context) -> AttackKeys | None:
    if (
        kind_of(message.metadata.message_type) is not Kind.TRAIN
        or not message.content.array_records
    ):
        return None
    client = int(context.node_config["partition-id"])
    specs: tuple[AttackKeys, ...] = experiment.attacks
    for spec in specs:
        if client in spec.clients and (spec.rounds == "all" or _round(message) in spec.rounds):
            return spec
    return None


def _round(message: Message) -> int:
    return int(str(_config(message).get("server-round", 1)))


def _config(message: Message) -> ConfigRecord:
    return next(iter(message.content.config_records.values()), ConfigRecord())


def _poison(
    experiment: Experiment,
    owners: Owners,
    spec: AttackKeys,
    attack: Attack,
    message: Message,
    context: Context,
    trained: ArrayRecord,
) -> ArrayRecord:
    model = from_record(next(iter(message.content.array_records.values())))
    layout, arrays = _layout(experiment, model), from_record(trained)
    own = _difference(arrays, model, layout)
    client, server_round = int(context.node_config["partition-id"]), _round(message)
    known = own[None]
    if isinstance(attack, Collusion):
        honest = _known_clients(experiment, spec, attack)
        known = _updates(experiment, owners, honest, message, model, context.run_id)
    asked = max(2, int(experiment.clients.fraction_train * experiment.clients.count))
    view = View(
        own=own,
        known=known,
        clients=asked,
        attackers=min(len(spec.clients), asked - 1),
        server_round=server_round,
        rng=np.random.default_rng(derive_seed(experiment.seed, f"attack {client}", server_round)),
        first=_first(context) if isinstance(attack, Replay) else None,
    )
    if isinstance(attack, Replay) and view.first is None:
        context.state[_FIRST] = to_record({"update": own})
    beside = {name: arrays[name] for name in layout.beside}
    return to_record(layout.unpack(attack.craft(view), beside, Vector.of(model, layout)))


def _first(context: Context) -> Floats | None:
    kept = context.state.array_records.get(_FIRST)
    return None if kept is None else np.array(from_record(kept)["update"])


def _known_clients(experiment: Experiment, spec: AttackKeys, attack: Collusion) -> tuple[int, ...]:
    if getattr(attack, "knowledge", "all") == "colluders":
        return spec.clients
    attackers = {client for one in experiment.attacks for client in one.clients}
    honest = [c for c in range(experiment.clients.count) if c not in attackers]
    return tuple(honest[:MOST_KNOWN])


_LAST: dict[str, Floats] = {}
"""The known updates of the last round that this process worked out: attackers share them."""


def _updates(
    experiment: Experiment,
    owners: Owners,
    clients: Sequence[int],
    message: Message,
    model: Mapping[str, NDArray[Any]],
    run_id: int,
) -> Floats:
    """Train in the stead of other clients, shape (len(clients), d)."""
    about = f"{fingerprint(experiment)} {run_id} {_round(message)} {clients}"
    digest = hashlib.sha256(about.encode())
    for array in model.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    key = digest.hexdigest()
    if key not in _LAST:
        layout = _layout(experiment, model)
        config: dict[str, Any] = dict(_config(message))
        rows = np.empty((len(clients), layout.size))
        for row, client in zip(rows, clients, strict=True):
            parameters = [np.array(array) for array in model.values()]
            trained, _, _ = client_of(experiment, owners, client, run_id).fit(parameters, config)
            row[...] = _difference(dict(zip(model, trained, strict=True)), model, layout)
        _LAST.clear()
        _LAST[key] = rows
    return _LAST[key]


def _layout(experiment: Experiment, model: Mapping[str, NDArray[Any]]) -> Layout:
    return Layout.of(model, roles_of_model(experiment))


def _difference(
    trained: Mapping[str, NDArray[Any]], model: Mapping[str, NDArray[Any]], layout: Layout
) -> Floats:
    layout.check(trained)
    difference, base = np.empty((2, layout.size))
    Vector.of(trained, layout).read(0, layout.size, difference)
    Vector.of(model, layout).read(0, layout.size, base)
    return difference - base
