"""The personalized, private phone under a secure sum: the whole chain and what leaves it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.dpsgd import DPSGD
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.personal import STATE
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.strategies import (
    Authenticate,
    Committee,
    RecordDP,
    RunObserver,
    SecureSum,
    StableFedAvg,
)
from qsfl_flower.wire import from_record, to_record
from tests.clients.support import HEAD, MODEL, NAMES, PRIVACY, build, data, noise, phone

CLIENTS = range(1, 7)


class Spent(RunObserver):
    def __init__(self) -> None:
        self.epsilon: list[float | None] = []

    def on_round(self, record: Any, clients: Any) -> None:
        self.epsilon.append(record.epsilon)


def federate(
    fake_grid: Any, device: bool, stages: Any, mods: Any, replay: Any = None
) -> tuple[dict[str, np.ndarray], Spent, bytes, dict[int, RecordDict], list[np.ndarray]]:
    """Return model, privacy spent, all that was sent, the clients' memories, and noisy sums."""
    contexts = {n: Context(1, n, {"partition-id": n}, RecordDict(), {}) for n in CLIENTS}
    sent: list[bytes] = []

    def client(context: Context) -> Any:
        how = {"records": DPSGD(PRIVACY), "client_id": context.node_id}
        own = phone() if device else None
        return build("fedper", data(context.node_id), context.state, device=own, **how)

    def answer(message: Message, node: int) -> Message:
        reply = numpy_client_app(client, mods(node))(message, contexts[node])
        assert not reply.has_error(), reply.error
        sent.extend(a.data for r in reply.content.array_records.values() for a in r.values())
        return reply

    grid = fake_grid({n: lambda m, n=n: answer(m, n) for n in CLIENTS})
    seen = Spent()
    strategy = StableFedAvg(fraction_evaluate=0.0, observer=seen, stages=stages)
    build("plain", records=DPSGD(PRIVACY), device=phone())._memory()  # measured without the watch
    with noise(replay) as sums:
        model = to_record(dict(zip(NAMES, MODEL, strict=True)))
        result = strategy.start(grid, model, num_rounds=2, timeout=1.0)
    memories = {n: contexts[n].state for n in CLIENTS}
    return from_record(result.arrays), seen, b"".join(sent), memories, [s["noisy"] for s in sums]


def test_a_personal_private_phone_under_a_secure_sum(fake_grid: Any) -> None:
    keys = create_federation(map(str, CLIENTS), now=int(time.time()))
    roster = open_roster(keys.roster, keys.authority)
    of = {n: Credentials(keys.clients[str(n)], roster) for n in CLIENTS}
    private = RecordDP(PRIVACY, rounds=2)
    open_model, spent, _, memories, sums = federate(
        fake_grid, False, [private], lambda _: [qsfl_mod]
    )
    chain = [
        Authenticate(Credentials(keys.server, roster)),
        private,
        SecureSum(64.0, Committee(), weighted=False, metrics=()),
    ]
    hidden, also_spent, sent, hidden_memories, again = federate(
        fake_grid, True, chain, lambda n: [auth_mod(lambda _: of[n]), qsfl_mod], sums
    )
    # Every client has as many records, so that weights by records are equal too.
    assert len(again) == len(sums) == 2 * len(CLIENTS) * PRIVACY.steps
    for name, before in zip(NAMES, MODEL, strict=True):
        np.testing.assert_allclose(hidden[name], open_model[name], atol=1e-5, err_msg=name)
        assert np.array_equal(hidden[name], before) == name.startswith(HEAD)
    assert also_spent.epsilon == spent.epsilon
    assert spent.epsilon[-1] is not None
    for node in CLIENTS:
        head, other = (from_record(m[node][STATE]) for m in (hidden_memories, memories))
        for name, array in head.items():
            np.testing.assert_allclose(array, other[name], atol=1e-5)
            assert array.tobytes() not in sent
