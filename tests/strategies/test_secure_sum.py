"""Sums through a committee over real messages and real mods: exact, and nothing else arrives."""

from __future__ import annotations

import json
import secrets
import struct
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, RecordDict

from qsfl_flower.errors import CompositionError, ConfigError, TooFewReplies
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.mechanisms.secure_sum import client as client_side
from qsfl_flower.secure import dealing
from qsfl_flower.secure.desk import Desk, Use
from qsfl_flower.secure.field import P
from qsfl_flower.secure.fixed_point import FixedPoint
from qsfl_flower.stages import (
    Authenticate,
    Clip,
    Committee,
    DecodeStage,
    MaskedSum,
    SecureKrum,
    SecureSum,
    SharedMask,
)
from qsfl_flower.strategies import SecureFedAvg, SecureMultiKrum, StableFedAvg
from qsfl_flower.wire import to_record
from qsfl_flower.wire.keys import HELLO_TASK, RELEASE_TASK, SECURE_RECORD, SHARES, TAKE_TASK

from .conftest import (
    MODEL,
    NOW,
    WIDTH,
    Recorder,
    examples_of,
    loss_of,
    refusal_of,
    task_of,
    update_of,
)  # fmt: skip


def silent(*tasks, rounds=(1,)):
    """Give no answer to some tasks in some rounds."""
    count = {"train": 0}

    def attack(message, answer):
        count["train"] += task_of(message) == "train"
        gone = task_of(message) in tasks and max(count["train"], 1) in rounds
        return None if gone else answer(message)

    return attack


def patched(patches, task="train"):
    """Answer one kind of message with something in the client's code replaced."""

    def attack(message, answer):
        if task_of(message) != task:
            return answer(message)
        with patches():
            return answer(message)

    return attack


def secure_sum(**options):
    committee = options.pop("committee", None)
    return SecureSum(4.0, committee, clock=lambda: NOW, max_examples=1000, **options)


def run(grid, stage, gate, rounds=1, **options):
    seen = Recorder()
    options = {"fraction_evaluate": 0.0, "max_failed_rounds": 9, **options}
    strategy = StableFedAvg(stages=[gate, stage], observer=seen, **options)
    try:
        result = strategy.start(grid, to_record(MODEL), num_rounds=rounds, timeout=0.2)
    except TooFewReplies:
        result = None
    return result, seen, strategy


def flat(result):
    return np.concatenate([result.arrays["w"].numpy().reshape(-1), result.arrays["b"].numpy()])


def weighted_mean(numbers):
    weights = [round(examples_of(n) / 1000 * 2**20) / 2**20 for n in numbers]
    total = sum(
        np.rint(update_of(n).astype(np.float64) * w * 2.0**24)
        for n, w in zip(numbers, weights, strict=True)
    )
    return total / 2.0**24 / sum(weights)


def test_the_sum_is_exact_weighted_and_comes_with_mean_metrics(federation):
    grid, _ = federation(7)
    result, seen, strategy = run(grid, secure_sum(), federation.gate)
    assert flat(result) == pytest.approx(weighted_mean(range(7)), abs=1e-8)
    # The array of float64 shows every bit.
    assert flat(result)[6:].tolist() == pytest.approx(weighted_mean(range(7))[6:], rel=1e-15)
    assert result.arrays["n"].numpy() == 7
    loss = sum(loss_of(n) * examples_of(n) for n in range(7)) / sum(map(examples_of, range(7)))
    assert seen.rounds[-1].train_loss == pytest.approx(loss, abs=1e-6)
    measured = seen.rounds[-1].stages["secure_sum"]
    assert measured["summed"] == 7
    assert {k: v for k, v in measured.items() if k.startswith("member")} == {
        f"member {n}": 1.0 for n in range(5)
    }
    assert strategy.engine.traffic.up > 0
    assert [row.status for row in seen.rows[-1].values()] == ["accepted"] * 7


def test_members_forget_what_they_held(federation):
    grid, devices = federation(5)
    run(grid, secure_sum(), federation.gate)
    for device in devices.values():
        assert len(device.context.state.array_records["qsfl-committee-shares"]) == 0
        assert dict(device.context.state["qsfl-committee"]) == {}
        # What stays is whose shares they were.
        desk = Desk.recall(device.context.state["qsfl-memory"]["committee/1/memory"])
        assert (desk.closed, desk.opened, len(desk.held)) == (1, 1, 0)
        assert desk.uses == {(str(n), 1): Use(1, 1) for n in range(5)}


def test_what_members_hold_between_two_messages_is_encrypted(federation):
    grid, devices = federation(6, {4: silent(RELEASE_TASK)})
    opened = []
    receive = client_side.receive

    def noted(*args):
        opened.append(receive(*args))
        return opened[-1]

    with patch.object(client_side, "receive", noted):
        run(grid, secure_sum(), federation.gate)
    state = devices[104].context.state
    kept = [array.data for array in state.array_records["qsfl-committee-shares"].values()]
    assert len(kept) == 6
    assert not any(h.share.tobytes()[:24] in data for h in opened for data in kept)


def test_an_altered_state_is_noticed_when_it_is_used(federation):
    def alter(message, answer):
        if task_of(message) == RELEASE_TASK:
            kept = devices[104].context.state.array_records["qsfl-committee-shares"]["0"]
            kept.data = kept.data[:-1] + bytes([kept.data[-1] ^ 1])
        return answer(message)

    grid, devices = federation(6, {4: alter})
    result, seen, _ = run(grid, secure_sum(), federation.gate)
    assert seen.rounds[-1].stages["secure_sum"]["member 4"] == 0.0
    assert flat(result) == pytest.approx(weighted_mean(range(6)), abs=1e-8)


@pytest.mark.parametrize(
    ("attacks", "kept", "lost"),
    [
        ({8: silent("train")}, range(8), []),
        ({0: silent("train")}, range(1, 9), []),
        ({0: silent(TAKE_TASK), 3: silent(TAKE_TASK)}, range(9), [0, 3]),
        ({1: silent(RELEASE_TASK), 2: silent(TAKE_TASK, RELEASE_TASK)}, range(9), [1, 2]),
    ],
)
def test_clients_and_members_may_vanish_at_every_step(federation, attacks, kept, lost):
    grid, _ = federation(9, attacks)
    stage = secure_sum(committee=Committee(7, 3))
    result, seen, strategy = run(grid, stage, federation.gate, rounds=2)
    measured = seen.rounds[1].stages["secure_sum"]
    assert [n for n in range(7) if not measured[f"member {n}"]] == lost
    assert seen.rounds[1].accepted == len(list(kept))
    # In the next round nobody is missing, and who vanished has been replaced.
    expected = weighted_mean(kept) + weighted_mean(range(9))
    assert flat(result) == pytest.approx(expected, abs=1e-7)
    members = strategy.states["secure_sum"]["seats"].members
    assert not set(members) & {str(n) for n in lost}


def test_too_few_members_abandon_the_round_and_the_next_one_works(federation):
    attacks = {n: silent(RELEASE_TASK, rounds=(1,)) for n in range(3)}
    grid, _ = federation(8, attacks)
    result, seen, strategy = run(grid, secure_sum(), federation.gate, rounds=2)
    assert "2 of 5 committee members answered, 4 are needed" in seen.rounds[1].skipped
    assert flat(result) == pytest.approx(weighted_mean(range(8)), abs=1e-8)
    assert strategy.states["secure_sum"]["seats"].members == ("3", "4", "5", "6", "7")


def test_a_node_that_gives_no_sign_of_life_is_not_appointed(federation):
    grid, _ = federation(7, {2: silent(HELLO_TASK, "train")})
    _, seen, strategy = run(grid, secure_sum(), federation.gate)
    assert strategy.states["secure_sum"]["seats"].members == ("0", "1", "3", "4", "5")
    assert seen.rounds[-1].accepted == 6


def test_too_few_clients_for_a_committee_or_a_sum(federation):
    attacks = {n: silent("train") for n in (3, 4, 5)}
    grid, _ = federation(6, attacks)
    stage = secure_sum(committee=Committee(min_clients=4))
    _, seen, _ = run(grid, stage, federation.gate, min_replies=1)
    assert "3 clients with usable shares, a sum needs at least 4" in seen.rounds[-1].skipped


# --- misbehaviour ---------------------------------------------------------------------------------


def bad_shares(member):
    """Deal a share to one member that does not fit the others."""
    share = dealing.share

    def bad(secret, sharing, seeds=None, out=None):
        shares = share(secret, sharing, seeds, out)
        shares.vectors[member - sharing.threshold][1] ^= np.uint64(4)
        return shares

    return lambda: patch.object(dealing, "share", bad)


def beyond_range():
    """Encode a coordinate far outside the range, so that a sum with it wraps."""
    encode = FixedPoint.encode

    def bad(self, values, out=None, *, seed=None):
        encoded = encode(self, values, out, seed=seed)
        encoded[0] = P // 2
        return encoded

    return patch.object(FixedPoint, "encode", bad)


def false_sum():
    """Release random field elements instead of the sum of the shares."""
    release = Desk.release

    def bad(self, *args):
        total, desk = release(self, *args)
        return total[::-1].copy(), desk

    return patch.object(Desk, "release", bad)


def false_checks():
    """Contradict the other members about every client."""
    return patch.object(client_side, "check_value", lambda held, size: secrets.randbelow(P))


@pytest.mark.parametrize("member", [3, 4, 5])
def test_a_client_that_deals_inconsistent_shares_is_named_and_dropped(federation, member):
    grid, _ = federation(7, {6: patched(bad_shares(member))})
    result, seen, _ = run(grid, secure_sum(), federation.gate)
    assert seen.rounds[-1].rejected == {"inconsistent-shares": 1}
    assert seen.rows[-1]["6"].status == "inconsistent-shares"
    assert f"member {member}" in seen.rows[-1]["6"].detail
    assert flat(result) == pytest.approx(weighted_mean(range(6)), abs=1e-8)


@pytest.mark.parametrize("lie", [false_sum, false_checks])
def test_a_member_that_lies_is_named_and_corrected(federation, lie):
    task = RELEASE_TASK if lie is false_sum else TAKE_TASK
    grid, _ = federation(8, {1: patched(lie, task=task)})
    stage = secure_sum(committee=Committee(7, 3))
    result, seen, strategy = run(grid, stage, federation.gate)
    measured = seen.rounds[-1].stages["secure_sum"]
    assert measured["member 1"] == -1.0
    assert measured["dropped"] == 0
    assert flat(result) == pytest.approx(weighted_mean(range(8)), abs=1e-8)
    assert 101 in strategy.states["secure_sum"]["seats"].gone


def test_a_lie_that_cannot_be_corrected_abandons_the_round(federation):
    """Nobody can tell who lies: the next committee has none of these members."""
    grid, _ = federation(10, {1: patched(false_sum, task=RELEASE_TASK)})
    result, seen, strategy = run(grid, secure_sum(), federation.gate, rounds=2)
    assert "lie on no polynomial of degree 3" in seen.rounds[1].skipped
    assert strategy.states["secure_sum"]["seats"].members == ("5", "6", "7", "8", "9")
    assert flat(result) == pytest.approx(weighted_mean(range(10)), abs=1e-8)


def test_values_out_of_range_do_not_wrap_the_sum(federation):
    grid, _ = federation(7, {6: patched(beyond_range)})
    result, seen, _ = run(grid, secure_sum(), federation.gate)
    assert "out-of-range" in seen.rounds[-1].skipped
    assert result is None
    stage = secure_sum(enforce_norm=True, committee=Committee(6, 3))
    result, seen, _ = run(federation(7, {6: patched(beyond_range)})[0], stage, federation.gate)
    assert seen.rows[-1]["6"].status == "norm-too-large"
    assert flat(result) == pytest.approx(weighted_mean(range(6)), abs=1e-8)


def test_a_lie_about_the_weight_cannot_blow_up_the_mean(federation):
    """Minus the weight of all others: the sum of the weights is nearly 0."""
    take = client_side.Tally.take

    def bad(self, metrics):
        _, integers = take(self, metrics)
        others = sum(round(examples_of(n) / 1000 * 2**20) for n in range(6))
        return 1.0, [100 - others, *integers[1:]]

    lie = patched(lambda: patch.object(client_side.Tally, "take", bad))
    result, seen, _ = run(federation(7, {6: lie})[0], secure_sum(), federation.gate)
    assert result is None
    assert "the mean has norm" in seen.rounds[-1].skipped
    alike = secure_sum(weighted=False, metrics=())
    result, _, _ = run(federation(7)[0], alike, federation.gate)
    mean = sum(np.rint(update_of(n) * 2.0**24) for n in range(7)) / 2.0**24 / 7
    assert flat(result) == pytest.approx(mean, abs=1e-8)


def test_a_node_may_insist_on_more_than_the_server_offers(federation):
    grid, devices = federation(7)
    devices[106].context.node_config["qsfl-min-cohort"] = 6
    devices[105].context.node_config["qsfl-min-threshold"] = 4
    _, seen, _ = run(grid, secure_sum(committee=Committee(min_clients=5)), federation.gate)
    assert seen.rounds[-1].rejected == {"policy-cohort": 1, "policy-threshold": 1}
    details = {row.detail for row in seen.rows[-1].values() if row.status == "policy-cohort"}
    assert any("this node asks for 6" in detail for detail in details)


def test_an_update_that_is_too_long_is_clipped_or_dropped(federation):
    long = {6: np.full(WIDTH, 9.0, np.float32)}
    stage = secure_sum(enforce_norm=True, committee=Committee(6, 3))
    result, seen, _ = run(federation(7, updates=long)[0], stage, federation.gate)
    assert seen.rounds[-1].accepted == 7
    assert np.abs(flat(result)).max() < 4.0
    # A client that does not clip, but stays within the bound of every coordinate.
    unclipped = patched(lambda: patch.dict("qsfl_flower.node.steps.STEPS", clip=lambda u, p, c: u))
    stage = secure_sum(enforce_norm=True, bound=16.0, committee=Committee(6, 3))
    grid, _ = federation(7, {6: unclipped}, long)
    result, seen, _ = run(grid, stage, federation.gate)
    assert seen.rows[-1]["6"].status == "norm-too-large"
    assert flat(result) == pytest.approx(weighted_mean(range(6)), abs=1e-8)


def test_members_do_not_answer_a_server_that_asks_for_two_sums(federation, keys):
    """A server that knows the protocol asks for S, and then for S without one client."""
    grid, devices = federation(6)
    stage = secure_sum()
    _, _, strategy = run(grid, stage, federation.gate)
    released = [m for m in grid.pushed if task_of(m) == RELEASE_TASK]
    exchange = replace(strategy.engine.opened["train"].assignment.exchange)

    def ask(content):
        contents, strategy.engine.states = strategy.chain.instruct(
            {100: content}, strategy.states, exchange
        )
        return devices[100](Message(contents[100], 100, "train"))

    def content_of(message, **changes):
        record = ConfigRecord({**message.content[SECURE_RECORD], **changes})
        kept = {k: v for k, v in message.content.items() if k not in ("qsfl-auth", SECURE_RECORD)}
        return RecordDict({**kept, SECURE_RECORD: record})

    again = ask(content_of(released[0], clients=["0", "1", "2"]))
    assert "released" in refusal_of(again)
    # Nor does it take the shares of the round once more, or train for it once more.
    taken = next(m for m in grid.pushed if task_of(m) == TAKE_TASK)
    assert "no way back" in refusal_of(ask(content_of(taken)))
    trained = next(m for m in grid.pushed if task_of(m) == "train")
    kept = {k: v for k, v in trained.content.items() if k != "qsfl-auth"}
    assert "has been dealt" in refusal_of(ask(RecordDict(kept)))


# --- Multi-Krum -----------------------------------------------------------------------------------


def krum(f=2, **options):
    committee = options.pop("committee", Committee(5, 3))
    return SecureKrum(4.0, f, committee, clock=lambda: NOW, **options)


def plain_selection(vectors, f, count):
    """Multi-Krum by its definition, on the encoded values."""
    encoded = [np.rint(np.asarray(v, np.float64) * 2.0**24).astype(object) for v in vectors]
    scores = []
    for i, a in enumerate(encoded):
        apart = sorted(((a - b) ** 2).sum() for j, b in enumerate(encoded) if j != i)
        scores.append(sum(apart[: len(encoded) - f - 2]))
    return sorted(sorted(range(len(encoded)), key=lambda i: (scores[i], i))[:count])


@pytest.mark.parametrize("selected", [None, 3])
def test_hidden_multi_krum_selects_what_plaintext_multi_krum_selects(federation, selected):
    poison = {n: np.full(WIDTH, 0.5 + 0.01 * n, np.float32) for n in (2, 5)}
    vectors = [poison.get(n, update_of(n)) for n in range(9)]
    stage = krum(num_selected=selected, committee=Committee(5, 3))
    result, seen, _ = run(federation(9, updates=poison)[0], stage, federation.gate)
    expected = plain_selection(vectors, 2, selected or 5)
    chosen = [int(n) for n, row in seen.rows[-1].items() if row.status == "accepted"]
    assert chosen == expected
    assert not {2, 5} & set(chosen)
    weights = [row.weight for _, row in sorted(seen.rows[-1].items())]
    assert weights == [1 / len(chosen) if n in chosen else 0.0 for n in range(9)]
    encoded = [np.rint(vectors[n].astype(np.float64) * 2.0**24) for n in chosen]
    assert flat(result) == pytest.approx(sum(encoded) / 2.0**24 / len(chosen), abs=1e-8)


def test_multi_krum_with_a_vanished_and_a_lying_member_and_a_bad_client(federation):
    attacks = {
        0: silent(TAKE_TASK),
        1: patched(false_sum, task=RELEASE_TASK),
        8: patched(bad_shares(7)),
        9: patched(beyond_range),
    }

    def stage():
        return krum(f=2, committee=Committee(7, 3, quorum=5))

    result, seen, _ = run(federation(11, attacks)[0], stage(), federation.gate)
    measured = seen.rounds[-1].stages["secure_krum"]
    # Five of the six that answered determine the sum; the sixth shows the lie, but not the liar.
    assert (measured["member 0"], result) == (0.0, None)
    assert "no polynomial of degree 4" in seen.rounds[-1].skipped
    del attacks[0]
    result, seen, _ = run(federation(11, attacks)[0], stage(), federation.gate)
    measured = seen.rounds[-1].stages["secure_krum"]
    assert measured["member 1"] == -1.0
    assert seen.rows[-1]["8"].status == "inconsistent-shares"
    assert seen.rows[-1]["9"].status == "not-selected"
    kept = [n for n in range(11) if n not in (8, 9)]
    chosen = [int(n) for n, row in seen.rows[-1].items() if row.status == "accepted"]
    assert set(chosen) <= set(kept)
    assert len(chosen) == 6
    assert np.abs(flat(result)).max() < 0.3


def test_too_few_clients_for_krum(federation):
    _, seen, _ = run(federation(7, {0: silent("train")})[0], krum(f=2), federation.gate)
    assert "at least 7 clients, there are 6" in seen.rounds[-1].skipped


# --- what reaches the server ----------------------------------------------------------------------


def everything_in(message) -> tuple[bytes, list[float], list[str]]:
    """Return all bytes, numbers and names of a reply."""
    data, numbers, names = [], [], []
    for name, record in message.content.items():
        names.append(name)
        for key, value in record.items():
            names.append(key)
            if isinstance(value, Array):
                data.append(value.data)
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, bytes):
                    data.append(part)
                elif isinstance(part, str):
                    names.append(part)
                else:
                    numbers.append(float(part))
    return b"\0".join(data), numbers, names


def leaks(pushed_replies, numbers) -> list[str]:
    """Return what of the clients' updates, norms, counts and metrics can be found in replies.

    Everything looked for has eight bytes, so that ciphertexts hold it by chance once in 1e11 runs;
    four bytes were once found in a few megabytes of them.
    """
    found = []
    for number in numbers:
        update = update_of(number)
        secrets_ = {
            "update": [*update, *update.astype(np.float64)],
            "norm": [np.linalg.norm(update.astype(np.float64)), float(np.linalg.norm(update))],
            "loss": [loss_of(number)],
            "examples": [float(examples_of(number))],
        }
        encoded = np.rint(update.astype(np.float64) * 2.0**24).astype(np.int64) % P
        needles = {
            "update": [update[:2].astype("<f4").tobytes(), struct.pack("<d", float(update[0]))]
            + [struct.pack("<q", int(e)) for e in encoded],
            "norm": [struct.pack("<d", float(np.linalg.norm(update.astype(np.float64))))],
            "loss": [struct.pack("<d", loss_of(number))],
            "examples": [],
        }
        for reply in pushed_replies:
            data, plain, _ = everything_in(reply)
            for kind, values in secrets_.items():
                close = any(abs(p - v) <= 1e-7 * abs(v) for p in plain for v in map(float, values))
                if close or any(needle in data for needle in needles[kind]):
                    found.append(f"{kind} of {number}")
    return found


class Tap:
    """A grid that keeps every reply that reaches the ServerApp."""

    def __init__(self, grid, change=None):
        self.grid, self.change, self.replies, self.run = grid, change, [], grid.run

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def pull_messages(self, ids):
        found = self.grid.pull_messages(ids)
        self.replies += [m for m in found if m.has_content()]
        return found


@pytest.mark.parametrize("kind", ["sum", "krum"])
def test_no_update_norm_or_statistic_reaches_the_server(federation, kind):
    grid, _ = federation(9)
    tap = Tap(grid)
    stage = secure_sum() if kind == "sum" else krum()
    run(tap, stage, federation.gate, rounds=2)
    assert len(tap.replies) == 5 + 2 * (9 + 5 + 5)
    assert leaks(tap.replies, range(9)) == []
    # Every reply consists of what the protocol names, and of nothing else.
    kinds = {frozenset(m.content) for m in tap.replies}
    assert kinds == {
        frozenset({"qsfl-auth", "qsfl", "qsfl-payload"}),
        frozenset({"qsfl-auth", "qsfl-secure"}),
    }


@pytest.mark.parametrize("leak", ["plain", "metrics", "norm", "unmasked"])
def test_the_recorder_finds_a_planted_leak(federation, leak):
    def step(update, parameters, context):
        made = client_side.shares_step(update, parameters, context)
        vector = update.vector
        if leak == "plain":
            made.payload["more"] = Array(vector.astype(np.float32))
        elif leak == "norm":
            made.payload["more"] = Array(np.array([np.linalg.norm(vector)]))
        elif leak == "metrics":
            return replace(made, hidden=False)
        return made

    def unencrypted(out, key, payload, binding):
        view = memoryview(out)
        view[:] = bytes(len(view))
        view[: payload.nbytes] = payload.cast("B")

    def constant(secret, sharing, seeds=None, out=None):
        shares = dealing_share(secret, sharing, seeds, out)
        shares.vectors[:] = secret
        return shares

    dealing_share = dealing.share

    def planted():
        if leak == "unmasked":
            return patch.multiple(dealing, seal_into=unencrypted, share=constant)
        return patch.dict("qsfl_flower.node.steps.STEPS", {SHARES: step})

    grid, _ = federation(9, {4: patched(planted)})
    tap = Tap(grid)
    stage = krum() if leak != "metrics" else secure_sum()
    run(tap, stage, federation.gate)
    found = set(leaks(tap.replies, range(9)))
    assert found & {f"{what} of 4" for what in ("update", "norm", "loss", "examples")}
    assert not [f for f in found if not f.endswith("of 4")]


# --- composition ----------------------------------------------------------------------------------


def test_refused_compositions(federation):
    with pytest.raises(CompositionError, match="secure_sum needs authenticate"):
        StableFedAvg(stages=[secure_sum()], fraction_evaluate=0.0)
    with pytest.raises(CompositionError, match="evaluation metrics would arrive one by one"):
        StableFedAvg(stages=[secure_sum(), federation.gate])
    with pytest.raises(CompositionError, match="both combine the updates"):
        StableFedAvg(stages=[secure_sum(), krum(), federation.gate])

    class TopK(DecodeStage):
        name = encoding = "top-k"

        def decode(self, payload, context):
            raise NotImplementedError

    with pytest.raises(CompositionError, match="top-k and secure_sum: every client"):
        StableFedAvg(stages=[secure_sum(), TopK(), federation.gate], fraction_evaluate=0.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: SecureSum(0.0), "clip_norm is 0.0; it must be a number > 0"),
        (lambda: SecureSum(4.0, Committee(4, 3), enforce_norm=True), "at least 5"),
        (lambda: SecureKrum(4.0, 1, Committee(4, 3)), "at least 5"),
        (lambda: SecureKrum(64.0, 1), "the field has 61"),
        (lambda: SecureKrum(4.0, -1), "num_byzantine"),
        (lambda: SecureKrum(4.0, 1, num_selected=0), "num_selected"),
        (lambda: SecureKrum(4.0, 1, num_selected=2), "of fewer than 3"),
        (lambda: Committee(5, 3, 3), "allowed are 4 to 5 .* could open two different sums"),
        (lambda: Committee(17, 3), "members is 17; it must be a whole number >= 2 and <= 16"),
        (lambda: Committee("5"), "members is '5'"),
        (lambda: Committee(members=5, threshold=6), "threshold is 6; allowed are 2 to 5"),
        (lambda: Committee(5, True), "threshold is True"),
        (lambda: Committee(5, 3, 6), "quorum is 6; allowed are 4 to 5"),
        (lambda: Committee(min_clients=1), "min_clients is 1; it must be a whole number >= 2"),
        (lambda: MaskedSum(1.0), "credentials='1.0': give Credentials, or the path"),
        (lambda: Authenticate(1.0), "give Credentials, or the path"),
    ],
)
def test_impossible_parameters_are_refused_at_construction(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()


def test_clip_and_server_optimizers_go_along(federation):
    seen = Recorder()
    strategy = StableFedAvg(
        stages=[federation.gate, secure_sum(), Clip(0.01)], fraction_evaluate=0.0, observer=seen
    )
    result = strategy.start(federation(6)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
    assert np.linalg.norm(flat(result)) <= 0.0101


@pytest.mark.parametrize("stage", ["sum", "krum"])
def test_public_coordinates_are_shared_alone(federation, stage):
    stages = [federation.gate, SharedMask(Mask(ratio=0.5, feedback=False), seed=1)]
    stages.append(secure_sum(weighted=False) if stage == "sum" else krum(f=1))
    seen = Recorder()
    strategy = StableFedAvg(stages=stages, fraction_evaluate=0.0, observer=seen)
    result = strategy.start(federation(6)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
    chosen = [int(n) for n, row in seen.rows[-1].items() if row.status == "accepted"]
    assert len(chosen) == (6 if stage == "sum" else 3)
    support = strategy.engine.opened["train"].assignment.context.support
    assert support.size == 4
    expected = np.zeros(WIDTH)
    # Without memory of what is left out, the mask scales by d / k.
    expected[support] = 2 * sum(update_of(n)[support].astype(float) for n in chosen) / len(chosen)
    assert flat(result) == pytest.approx(expected, abs=1e-7)


def test_ready_strategies_take_flowers_arguments(federation):
    seen = Recorder()
    strategy = SecureFedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=5,
        credentials=federation.credentials,
        clip_norm=2.0,
        committee=Committee(3, 2),
        sums={"bits": 26, "metrics": (), "clock": lambda: NOW},
        observer=seen,
        stages=[],
    )
    strategy.chain.stages[0]._clock = lambda: NOW
    result = strategy.start(federation(5)[0], to_record(MODEL), num_rounds=1, timeout=0.2)
    assert np.any(flat(result))
    krum = SecureMultiKrum(credentials=federation.credentials, num_byzantine=1, num_selected=3)
    assert krum.fraction_evaluate == 0.0
    assert krum.chain.combiner.num_selected == 3


def test_the_plan_of_a_round_is_one_canonical_text(federation):
    grid, _ = federation(5)
    run(grid, secure_sum(), federation.gate)
    plan = json.loads(next(m for m in grid.pushed if task_of(m) == "train").content["qsfl"]["plan"])
    assert [step["name"] for step in plan["steps"]] == ["clip", SHARES]
    assert plan["steps"][1]["parameters"]["terms"]["members"] == ["0", "1", "2", "3", "4"]
