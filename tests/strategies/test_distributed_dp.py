"""Noise in shares over real messages, mods and secure sums: only the noisy sum ever exists.

Each statistical comparison fails falsely once in 1e6 (`distributions.ALPHA`); secret noise is drawn
from the operating system, so the whole file does about once in 100,000 runs.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client import NumPyClient
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import set_arrays
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.per_example import clipped_gradient_sum
from qsfl_flower.clients.privacy import privacy_mod
from qsfl_flower.clients.private_training import GradientSumClient
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import CompositionError, ConfigError, QSFLError, TooFewReplies
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.node.steps import STEPS, ClientUpdate, StepContext
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.numerics.roles import LOCAL
from qsfl_flower.privacy.calibration import epsilon_of_events, rounds_for
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.stages import (
    Authenticate,
    CentralDP,
    Clip,
    Committee,
    DistributedDP,
    MaskedSum,
    RecordDP,
    SecureKrum,
    SecureSum,
    SharedMask,
)
from qsfl_flower.strategies import BufferedAsync, PrivacyBudget, RunObserver, StableFedAvg
from qsfl_flower.wire import PLAN_KEY, QSFL_RECORD, Plan, PlanItem, to_record
from qsfl_flower.wire.keys import DISTRIBUTED_DP, MASKED_SUM, SHARES, TASK_KEY

_spec = importlib.util.spec_from_file_location(
    "distributions", Path(__file__).parents[1] / "privacy" / "distributions.py"
)
distributions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(distributions)

NOW = 1_800_000_000
SIZE = 6000
CLIENTS, FEWEST, SILENT_NOISE = 6, 4, 1
CLIP, NOISE, COHORT = 1.0, 2.0, 10.0


def update_of(number: int) -> np.ndarray:
    """Return the difference of client `number`: of norm below the clip norm."""
    return np.random.default_rng(number).normal(size=SIZE).astype(np.float32) / 100


def in_ball(vector, radius):
    return vector * min(1.0, radius / max(float(np.linalg.norm(vector)), 1e-300))


class Add(NumPyClient):
    """Adds a vector of its own, and tells about its data."""

    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        return [parameters[0] + update_of(self.number)], 10**self.number, {"train-loss": 0.5}


def task_of(message) -> str:
    return (message.content.config_records.get(QSFL_RECORD) or {}).get(TASK_KEY, "train")


class Device:
    """A client with keys; `gone` from the first task on, or with something in its code replaced."""

    def __init__(self, number, identity, roster, mods=(), gone=False, patches=(), make=Add):
        self.context = Context(1, 100 + number, {"partition-id": number}, RecordDict(), {})
        credentials = Credentials(identity, roster)
        self.app = numpy_client_app(
            lambda context: make(number),
            mods=[auth_mod(lambda context: credentials, lambda: NOW), *mods, qsfl_mod],
        )
        self.gone, self.patches = gone, patches

    def __call__(self, message):
        if self.gone(message) if callable(self.gone) else self.gone:
            return None
        with ExitStack() as stack:
            for one in self.patches:
                stack.enter_context(one())
            try:
                return self.app(message, self.context)
            except Exception as error:
                return Message(Error(2, str(error)), reply_to=message)


class Watch(RunObserver):
    def __init__(self):
        self.records, self.ended = [], []

    def on_round(self, record, clients):
        self.records.append(record)

    def on_end(self, server_round, reason):
        self.ended.append((server_round, reason))


def committee_sum(credentials, **options):
    sizes = options.pop("sizes", Committee(3, 2, min_clients=FEWEST))
    settings = {"bound": 80.0, "weighted": False, "metrics": (), **options}
    return [SecureSum(CLIP, sizes, clock=lambda: NOW, **settings)]


def masked_sum(credentials, **options):
    settings = {"bound": 80.0, "metrics": (), "min_clients": FEWEST, "colluding": 0.0, **options}
    return [Clip(CLIP), MaskedSum(credentials, clock=lambda: NOW, **settings)]


SUMS = {"secure_sum": committee_sum, "masked_sum": masked_sum}
both = pytest.mark.parametrize("summed", SUMS.values(), ids=list(SUMS))


@pytest.fixture(scope="module")
def keys():
    return create_federation((str(n) for n in range(CLIENTS)), now=NOW)


@pytest.fixture
def federation(fake_grid, keys):
    """Run some rounds; `devices` says what is special about single clients."""
    roster = open_roster(keys.roster, keys.authority)

    def run(summed, stage, rounds=1, devices=None, mods=(), model=None, **options):
        credentials = Credentials(keys.server, roster)
        stages = [Authenticate(credentials, clock=lambda: NOW), *summed(credentials), stage]
        clients = {
            100 + n: Device(n, keys.clients[str(n)], roster, mods, **(devices or {}).get(n, {}))
            for n in range(CLIENTS)
        }
        watch = Watch()
        strategy = StableFedAvg(
            fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=CLIENTS,
            stages=stages, observer=watch, **options,
        )  # fmt: skip
        start = to_record(model or {"w": np.zeros(SIZE, np.float32)})
        result = strategy.start(fake_grid(clients), start, rounds, timeout=0.2)
        flat = [a.numpy().ravel().astype(np.float64) for a in result.arrays.values()]
        return np.concatenate(flat), watch, strategy

    return run


def no_noise():
    """Leave the noise out: a client that lies."""
    return patch(
        "qsfl_flower.privacy.distributed.discrete_gaussian",
        lambda scale, count, source: np.zeros(count, np.int64),
    )


def less_noise():
    """Add a tenth less."""
    plain = NoiseShare._share
    return patch.object(NoiseShare, "_share", lambda self, grid: 0.9 * plain(self, grid))


def noise_of(model, present, denominator=COHORT):
    """Return the noise in the sum over the clients that were present."""
    return model * denominator - sum(update_of(n).astype(float) for n in present)


def stage(**options):
    return DistributedDP(NOISE, COHORT, **{"non_contributors": SILENT_NOISE, **options})


def promised(honest):
    """Return the standard deviation of so many honest shares: FEWEST - 1 of them carry NOISE."""
    return NOISE * CLIP * math.sqrt(honest / (FEWEST - SILENT_NOISE))


@both
@pytest.mark.parametrize("gone", [(), (5,), (4, 5)])
def test_every_sum_carries_the_noise_whoever_drops_out_or_adds_none(federation, summed, gone):
    devices = {n: {"gone": True} for n in gone} | {3: {"patches": [no_noise]}}
    model, watch, _ = federation(summed, stage(), devices=devices)
    present = [n for n in range(CLIENTS) if n not in gone]
    noise = noise_of(model, present)
    assert distributions.fits_normal(noise, promised(len(present) - 1))
    assert promised(len(present) - 1) >= NOISE * CLIP
    assert watch.records[1].stages["distributed_dp"]["noise_std"] == pytest.approx(
        NOISE * CLIP / COHORT, rel=1e-3
    )


@both
def test_too_little_noise_is_noticed(federation, summed):
    devices = {n: {"patches": [less_noise]} for n in range(CLIENTS)}
    model, _, _ = federation(summed, stage(), devices=devices)
    assert not distributions.fits_normal(noise_of(model, range(CLIENTS)), promised(CLIENTS))


@both
def test_a_wrong_denominator_is_noticed(federation, summed):
    model, _, _ = federation(summed, stage())
    noise = noise_of(model, range(CLIENTS))
    assert distributions.fits_normal(noise, promised(CLIENTS))
    counted = noise_of(model, range(CLIENTS), denominator=CLIENTS)
    assert not distributions.fits_normal(counted, promised(CLIENTS))


@both
@pytest.mark.parametrize("share", [0.3, 1.1, 30.0])
def test_one_client_moves_the_step_no_further_than_its_bound_and_the_room_for_noise(
    federation, summed, share
):
    """`share` of the room is what the liar fills; the sum's own bound of 80 would let 2,000 in."""
    made = stage()
    attacked = []

    def lie():
        """Fill a share of what honest sums may reach, which the plan tells."""
        attacked.append(True)
        real = NoiseShare.reach

        def privatize(self, values, bound, source):
            size = min(share * real(self, bound, CLIENTS) / math.sqrt(values.size), 75.0)
            return np.full(values.size, round(size / self.resolution), np.int64)

        return patch.object(NoiseShare, "privatize", privatize)

    devices = {2: {"patches": [lie]}}
    if share > 1:
        with pytest.raises(TooFewReplies, match="did not keep to its bound"):
            federation(summed, made, devices=devices)
        assert attacked
        return
    model, _, strategy = federation(summed, made, devices=devices)
    bound = next(s for s in strategy.chain.stages if s.name == made.name)
    noise = bound._share(SIZE, 0.0, CLIENTS)
    room = noise.reach(CLIP, CLIENTS) / COHORT
    assert attacked
    assert 0 < np.linalg.norm(model) <= room
    honest = (noise.std(CLIENTS) * math.sqrt(SIZE) + CLIENTS * CLIP) / COHORT
    assert room < 1.1 * honest, "the room is hardly more than the noise takes"


@given(st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=10)
def test_honest_sums_stay_within_the_reach(size, clients):
    """Noise without the values: longer than allowed at most as often as `failure` says.

    Of 400 sums, more than 40 beyond a failure probability of 0.05 happen once in 100,000 times.
    """
    share = NoiseShare(clip_norm=1.0, noise_multiplier=1.0, fewest=1, size=size)
    rng = np.random.default_rng((size, clients))
    sums = rng.normal(size=(400, size)) * share.std(clients)
    longer = np.linalg.norm(sums, axis=1) > share.reach(1e-9, clients, 0.05)
    assert longer.sum() <= 40
    assert share.reach(1.0, clients) > share.reach(1.0, clients, 0.05)


@both
def test_fewer_contributions_than_the_noise_is_sized_for_are_never_opened(federation, summed):
    devices = {n: {"gone": True} for n in (3, 4, 5)}
    with pytest.raises(TooFewReplies):
        federation(summed, stage(), devices=devices, max_failed_rounds=1)


@both
def test_neither_counts_nor_metrics_leave_the_clients(federation, summed):
    _, watch, strategy = federation(summed, stage())
    assert watch.records[1].train_loss is None
    assert {u.num_examples for u in strategy.outcome.cohort.updates} == {1.0}


@both
@pytest.mark.parametrize("select", ["randomk", "topk"])
def test_under_a_shared_mask_the_noise_is_on_the_public_coordinates(federation, summed, select):
    mask = SharedMask(Mask(select, ratio=0.5, feedback=False))

    def with_mask(credentials):
        return [mask, *summed(credentials)]

    model, _, strategy = federation(with_mask, stage())
    support = strategy.engine.opened["train"].assignment.context.support
    factor = mask.mask.scale(SIZE)
    assert set(np.flatnonzero(model)) <= set(support)
    sent = sum(in_ball(factor * update_of(n).astype(float)[support], CLIP) for n in range(CLIENTS))
    assert distributions.fits_normal(model[support] * COHORT - sent, promised(CLIENTS))


def test_budget_and_ledger_end_the_run(federation, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.grant("fed", Budget(10.0))
    allowed = rounds_for(4.0, 1e-5, NOISE)
    accounts = [f"fed/{n}" for n in range(CLIENTS)]
    budget = PrivacyBudget(epsilon=4.0, ledger=ledger, accounts=accounts)
    _, watch, _ = federation(committee_sum, stage(budget=budget), rounds=allowed + 3)
    assert watch.records[-1].round == allowed
    ((server_round, reason),) = watch.ended
    assert server_round == allowed + 1
    assert "epsilon" in reason
    expected = epsilon_of_events([Event(NOISE, 1.0, allowed)], 1e-5)
    assert watch.records[-1].epsilon == pytest.approx(expected, rel=1e-4)
    assert [row["status"] for row in ledger.history("fed/2")] == ["committed"] * allowed


def test_a_round_that_fails_is_paid_since_the_server_may_have_seen_the_sum(federation):
    gone = itertools.count()

    def only_in_the_second_round(message):
        return task_of(message) == "train" and next(gone) // 3 == 1

    devices = {n: {"gone": only_in_the_second_round} for n in (3, 4, 5)}
    _, watch, _ = federation(committee_sum, stage(), rounds=2, devices=devices)
    assert watch.records[1].skipped is None
    assert watch.records[2].skipped is not None
    expected = epsilon_of_events([Event(NOISE, 1.0, 2)], 1e-5)
    assert watch.records[2].epsilon == pytest.approx(expected, rel=1e-4)


def test_noise_on_records_is_told_beneath_a_secure_sum_too(federation):
    privacy = RecordPrivacy(clip_norm=1, noise_multiplier=2, sampling_rate=0.1, steps=3)

    class Private(Add):
        def fit(self, parameters, config):
            arrays, count, metrics = super().fit(parameters, config)
            return arrays, count, metrics | privacy.told()

    devices = {n: {"make": Private} for n in range(CLIENTS)}
    _, watch, _ = federation(committee_sum, RecordDP(privacy), devices=devices)
    expected = epsilon_of_events([privacy.event(SIZE)], 1e-5)
    assert watch.records[1].epsilon == pytest.approx(expected, rel=1e-4)


def test_clients_compute_what_the_offer_comes_to(federation):
    epsilon = epsilon_of_events([Event(NOISE)], 1e-5)
    enough = privacy_mod(MinimumPolicy(epsilon=1.01 * epsilon, placements=("distributed",)))
    _, watch, _ = federation(committee_sum, stage(), mods=[enough])
    assert watch.records[1].accepted == CLIENTS
    for policy in (
        MinimumPolicy(epsilon=0.99 * epsilon),
        MinimumPolicy(epsilon=100.0, placements=("record",)),
    ):
        with pytest.raises(TooFewReplies, match="privacy-"):
            federation(committee_sum, stage(), mods=[privacy_mod(policy)], max_failed_rounds=1)


RECORDS = RecordBatch(clip_norm=0.5, sampling_rate=0.1, sum_norm=1.0)


FEATURES, LABELS, PER_CLIENT = 700, 8, 20


def silo(number):
    """Return the records of one client."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(PER_CLIENT, FEATURES)).astype(np.float32)
    return x, rng.integers(0, LABELS, PER_CLIENT)


def gradient_client(number):
    torch.manual_seed(0)
    x, y = silo(number)
    plain = Normalization((0.0,), (1.0,))
    data = Dataset("toy", x, y, x[:0], y[:0], (FEATURES,), LABELS, None, "toy", plain)
    layer = torch.nn.Linear(FEATURES, LABELS)
    return GradientSumClient(layer, data, EVERY_RECORD, seed=0, client_id=number)


def zeros():
    weight = np.zeros((LABELS, FEATURES), np.float32)
    return {"weight": weight, "bias": np.zeros(LABELS, np.float32)}


EVERY_RECORD = RecordBatch(clip_norm=0.5, sampling_rate=1.0, sum_norm=1.0)


@both
@pytest.mark.parametrize("gone", [(), (5,)])
def test_a_round_is_one_step_of_central_dp_sgd_on_all_records(federation, summed, gone):
    model = zeros()
    devices = {n: {"make": gradient_client, "gone": n in gone} for n in range(CLIENTS)}
    one = stage(batch=EVERY_RECORD)
    found, watch, _ = federation(summed, one, devices=devices, model=model)
    layer, total = torch.nn.Linear(FEATURES, LABELS), np.zeros(FEATURES * LABELS + LABELS)
    set_arrays(layer, model)
    present = [n for n in range(CLIENTS) if n not in gone]
    for number in present:
        x, y = (torch.tensor(v) for v in silo(number))
        clipped = clipped_gradient_sum(layer, x, y, 0.5).gradients
        flat = np.concatenate([g.numpy().ravel().astype(float) for g in clipped])
        total += in_ball(flat, 1.0)
    noise = found * COHORT + total
    assert distributions.fits_normal(noise, 0.5 * promised(len(present)))
    record = watch.records[1]
    assert record.epsilon == pytest.approx(epsilon_of_events([Event(NOISE)], 1e-5), rel=1e-4)


@pytest.mark.parametrize("make", [Add, gradient_client])
def test_an_app_that_does_not_clip_records_enough_sends_nothing(federation, make):
    batch = replace(EVERY_RECORD, clip_norm=0.4)
    devices = {n: {"make": make} for n in range(CLIENTS)}
    model = None if make is Add else zeros()
    with pytest.raises(TooFewReplies, match="6 x client-error"):
        federation(
            committee_sum, stage(batch=batch), devices=devices, model=model, max_failed_rounds=1
        )


@pytest.mark.parametrize(
    ("stages", "match"),
    [
        pytest.param(lambda c: [Clip(1.0), stage()], "add secure_sum or masked_sum", id="plain"),
        pytest.param(
            lambda c: [SecureKrum(1.0, 1, metrics=()), stage()],
            "depends on the very noise.*record_dp",
            id="krum",
        ),
        pytest.param(
            lambda c: [*committee_sum(c, weighted=True), stage()], "count alike", id="weighted"
        ),
        pytest.param(
            lambda c: [*committee_sum(c, enforce_norm=True), stage()], "norms must", id="norms"
        ),
        pytest.param(
            lambda c: [*committee_sum(c, metrics=("train-loss",)), stage()],
            r"sums of train-loss without noise; set its metrics to \[\]",
            id="metrics",
        ),
        pytest.param(
            lambda c: [*masked_sum(c, metrics=("train-loss",)), stage()],
            "sums of train-loss",
            id="masked metrics",
        ),
        pytest.param(lambda c: [masked_sum(c)[1], stage()], "add clip", id="no clip"),
        pytest.param(
            lambda c: [*committee_sum(c, bound=20.0), stage()], "set bound to", id="no room"
        ),
        pytest.param(
            lambda c: [*committee_sum(c), CentralDP(1.0, 6), stage()],
            "distributed_dp",
            id="central",
        ),
        pytest.param(
            lambda c: [
                *committee_sum(c),
                RecordDP(
                    RecordPrivacy(clip_norm=1, noise_multiplier=1, sampling_rate=0.1, steps=1)
                ),
                stage(batch=RECORDS),
            ],
            "record_dp",
            id="two kinds of records",
        ),
        pytest.param(
            lambda c: [*committee_sum(c), SharedMask(), stage(batch=RECORDS)],
            "one record would count for more",
            id="records under a mask",
        ),
    ],
)
def test_chains_without_the_guarantee_are_refused(keys, stages, match):
    credentials = Credentials(keys.server, open_roster(keys.roster, keys.authority))
    gate = Authenticate(credentials)
    with pytest.raises(CompositionError, match=match):
        StableFedAvg(fraction_evaluate=0.0, stages=[gate, *stages(credentials)])


def test_overlapping_versions_are_refused(keys):
    credentials = Credentials(keys.server, open_roster(keys.roster, keys.authority))
    stages = [Authenticate(credentials), *committee_sum(credentials), stage()]
    with pytest.raises(CompositionError, match=r"secure_sum|distributed_dp"):
        BufferedAsync(fraction_evaluate=0.0, stages=stages)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: DistributedDP(0.0, 5),
        lambda: DistributedDP(1.0, math.inf),
        lambda: RecordBatch(clip_norm=2.0, sampling_rate=0.1, sum_norm=1.0),
        lambda: RecordBatch(clip_norm=1.0, sampling_rate=0.0, sum_norm=1.0),
    ],
)
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError):
        bad()


def test_everybody_adds_nothing_is_refused(keys):
    credentials = Credentials(keys.server, open_roster(keys.roster, keys.authority))
    stages = [Authenticate(credentials), *committee_sum(credentials)]
    with pytest.raises(ConfigError, match="some clients have to add the noise"):
        StableFedAvg(fraction_evaluate=0.0, stages=[*stages, stage(non_contributors=FEWEST)])


WITH_LOCAL = Layout.of({"w": np.zeros(3), "own": np.zeros(2)}, {"own": LOCAL})


def test_layers_that_stay_have_no_noise_in_sums_and_are_counted_with_noise_on_the_device():
    with pytest.raises(ConfigError, match="'own' would stay on the device"):
        stage(batch=EVERY_RECORD).init(WITH_LOCAL)
    stage().init(WITH_LOCAL)  # whole clients: the layer is the client's own
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, steps=2)
    (planned,) = RecordDP(privacy).planned(WITH_LOCAL, 3)
    assert planned == privacy.event(5, 3)


SHARE = NoiseShare(clip_norm=1.0, noise_multiplier=2.0, fewest=4, size=3)
OFFER = {
    "placement": "distributed", "clip_norm": 1.0, "noise_multiplier": 2.0, "sampling_rate": 1.0,
    "releases": 1, "delta": 1e-5,
}  # fmt: skip


def shares(**terms):
    """Return the step of a sum by a committee."""
    told = {
        "terms": {"min_clients": 4, "bits": 24, "bound": 200.0, **terms},
        "weighted_by": "num-examples",
    }
    return PlanItem(SHARES, told)


def instruction(offer=None, share=None, bound=1.0, batch=None, last=None):
    told = {"share": {**SHARE.__dict__, **(share or {})}, "bound": bound, "batch": batch}
    items = (
        PlanItem("protection", {**OFFER, **(offer or {})}),
        PlanItem(DISTRIBUTED_DP, told),
        last or shares(),
    )
    return told, RecordDict({QSFL_RECORD: ConfigRecord({PLAN_KEY: Plan(items).encode()})})


def take_step(metrics=None, layout=None, **options):
    told, content = instruction(**options)
    layout = layout or Layout.of({"w": np.zeros(3)})
    update = ClientUpdate(np.array([0.5, 0.0, -0.5]), layout, metrics or {"num-examples": 7})
    return STEPS[DISTRIBUTED_DP](update, told, StepContext(None, content, "train", Vector(())))


def test_what_a_client_sends_lies_on_the_grid_and_tells_no_counts():
    sent = take_step()
    np.testing.assert_array_equal(np.rint(sent.vector * 2**24), sent.vector * 2**24)
    assert sent.metrics == {"num-examples": 2**53}


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param({"offer": {"noise_multiplier": 4.0}}, id="promises more noise"),
        pytest.param({"offer": {"placement": "distributed-record"}}, id="another placement"),
        pytest.param({"offer": {"clip_norm": 0.5}}, id="promises a smaller clip norm"),
        pytest.param({"bound": 5.0, "offer": {"clip_norm": 5.0}}, id="noise for another clip norm"),
        pytest.param(
            {"last": shares(min_clients=3)},
            id="sum of fewer",
        ),
        pytest.param(
            {"last": shares(bits=2)},
            id="coarser sum",
        ),
        pytest.param({"last": shares(bound=2.0)}, id="sum without room for the noise"),
        pytest.param(
            {
                "last": PlanItem(
                    MASKED_SUM,
                    {"min_clients": 2, "bound": 64.0, "clients": 2, "weighted_by": "n"},
                )
            },
            id="masked sum of fewer",
        ),
        pytest.param({"last": PlanItem("clip", {"clip_norm": 1.0})}, id="in the clear"),
        pytest.param(
            {"last": PlanItem(SHARES, {"terms": None, "weighted_by": "n"})}, id="no committee"
        ),
        pytest.param(
            {
                "batch": {"clip_norm": 2.0, "sampling_rate": 0.1, "sum_norm": 2.0},
                "offer": {
                    "placement": "distributed-record", "clip_norm": 2.0, "sampling_rate": 0.1
                },
                "metrics": {"dp-clip-norm": 2.0, "dp-sampling-rate": 0.1, "dp-sum-norm": 2.0},
            },
            id="records longer than the noise covers",
        ),
        pytest.param(
            {
                "batch": {"clip_norm": 1.0, "sampling_rate": 0.1, "sum_norm": 1.0},
                "offer": {"placement": "distributed-record", "sampling_rate": 0.1},
                "metrics": {"dp-clip-norm": 1.0, "dp-sampling-rate": 0.1, "dp-sum-norm": 1.0},
                "layout": WITH_LOCAL,
            },
            id="layers that stay, which no noise covers",
        ),
        pytest.param(
            {
                "batch": {"clip_norm": 1.0, "sampling_rate": 0.1, "sum_norm": 1.0},
                "offer": {"placement": "distributed-record", "sampling_rate": 0.1},
            },
            id="an app without clipped records",
        ),
    ],
)  # fmt: skip
def test_a_client_adds_no_share_that_the_plan_would_betray(lie):
    with pytest.raises(QSFLError, match="distributed_dp"):
        take_step(**lie)


vectors = st.lists(st.floats(-10, 10), min_size=5, max_size=5).map(np.array)


@settings(max_examples=200)
@given(vectors, vectors, st.floats(0.01, 5.0), st.integers(10, 40))
def test_two_clients_never_differ_by_more_than_the_noise_is_sized_for(one, other, clip, bits):
    share = NoiseShare(
        clip_norm=clip, noise_multiplier=1e4, fewest=1, size=5, resolution=2.0**-bits
    )
    # The client's update, or nothing: what its absence leaves.
    sent = np.rint(in_ball(one, clip) / share.grid) * share.grid
    assert share.std(1) >= share.noise_multiplier * np.linalg.norm(sent)
    # Of records: any two sums that differ by at most clip, after scaling to the ball.
    step = in_ball(other - one, clip)
    a, b = (np.rint(in_ball(v, 2.0) / share.grid) * share.grid for v in (one, one + step))
    assert share.std(1) >= share.noise_multiplier * np.linalg.norm(a - b)


def test_an_update_that_is_too_long_is_refused_without_its_norm():
    share = NoiseShare(clip_norm=1.0, noise_multiplier=1.0, fewest=4, size=2)
    with pytest.raises(ConfigError, match="norm is not up to 1") as refused:
        share.privatize(np.array([1234.5, 0.0]), 1.0, None)
    assert "1234" not in str(refused.value)
