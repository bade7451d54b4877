"""Every stage keeps the rules that a chain relies on; one that is not registered here fails.

Each sample stage runs in a strategy, over real messages, with clients that have both mods. Clients
are scripted: client n adds n + 1 hundredths to every floating-point array.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient

import qsfl_flower.mechanisms
import qsfl_flower.rounds
import qsfl_flower.strategies
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import CompositionError, ConfigError, TooFewReplies
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.broadcast.server import Broadcast
from qsfl_flower.mechanisms.compression.server import Compress, SharedMask
from qsfl_flower.mechanisms.detection.server import Detect
from qsfl_flower.mechanisms.privacy.server import AdaptiveClip, CentralDP, DistributedDP, LocalDP
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.mechanisms.secure_sum.server import SecureKrum, SecureSum
from qsfl_flower.mechanisms.server_optimizers.stale import StaleStep
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.rounds.guard import Guard
from qsfl_flower.stages import (
    Authenticate,
    Clip,
    MaskedSum,
    ServerAdam,
    ServerMomentum,
    ServerYogi,
    Stage,
    Validate,
)
from qsfl_flower.strategies import CheckpointStore, RunObserver, StableFedAvg
from qsfl_flower.strategies.scaffold import ControlVariates
from qsfl_flower.wire import from_record, to_record

NOW = int(time.time())
NAMES = tuple(str(n) for n in range(7))
MODEL = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(0.5),
    "steps": np.array([3, 4]),
    "half": np.zeros((0, 2), np.float16),
}
FLOATS = ("w", "scale", "half")


@dataclass(frozen=True)
class Sample:
    """How a stage is tried.

    Parameters
    ----------
    make : Callable[[Credentials], list of Stage]
        The stage, and what it needs beside it.
    neutral : float or None
        With these parameters the result is FedAvg's within this relative tolerance; None if the
        stage has no neutral parameters.
    random : bool
        It adds noise, or draws secrets that may change which client is named first.
    """

    make: Callable[[Credentials], list[Stage]]
    neutral: float | None = None
    random: bool = False


SAMPLES: dict[type[Stage], Sample] = {
    Authenticate: Sample(lambda c: [Authenticate(c)], neutral=0.0),
    Validate: Sample(lambda c: [Validate(max_norm=1e6)], neutral=0.0),
    Clip: Sample(lambda c: [Clip(100.0)], neutral=0.0),
    ServerMomentum: Sample(lambda c: [ServerMomentum(1.0, 0.0)], neutral=0.0),
    ServerAdam: Sample(lambda c: [ServerAdam()]),
    ServerYogi: Sample(lambda c: [ServerYogi()]),
    StaleStep: Sample(lambda c: [StaleStep(1.0, 0.0)], neutral=0.0),
    Guard: Sample(lambda c: [Guard()], neutral=0.0),
    ControlVariates: Sample(lambda c: [ControlVariates(1.0)], neutral=0.0),
    Detect: Sample(lambda c: [Detect(quarantine=False)]),
    Robust: Sample(lambda c: [Robust("multi_krum", 1)]),
    Compress: Sample(lambda c: [Compress()]),
    SharedMask: Sample(lambda c: [SharedMask()]),
    Broadcast: Sample(lambda c: [Broadcast(ratio=1.0, values="float32")], neutral=1e-6),
    AdaptiveClip: Sample(
        lambda c: [
            AdaptiveClip(AdaptiveParameters(initial=1.0, bit_noise=2.0), 7),
            CentralDP(1.5, 7, accept_worst_case=True),
        ],
        random=True,
    ),
    CentralDP: Sample(lambda c: [Clip(1.0), CentralDP(1.0, 7)], random=True),
    DistributedDP: Sample(
        lambda c: [
            Authenticate(c),
            SecureSum(1.0, weighted=False, metrics=(), bound=60.0),
            DistributedDP(1.0, 7),
        ],
        random=True,
    ),
    LocalDP: Sample(lambda c: [LocalDP(1.0, 1.0)], random=True),
    MaskedSum: Sample(
        lambda c: [Authenticate(c), MaskedSum(c, bound=4.0, colluding=0.0)], neutral=1e-5
    ),
    SecureSum: Sample(lambda c: [Authenticate(c), SecureSum(4.0)], neutral=1e-5),
    SecureKrum: Sample(lambda c: [Authenticate(c), SecureKrum(4.0, 1)]),
}

ELSEWHERE = {"RecordDP": "trains with Opacus; see test_privacy.py"}
"""Stages that scripted clients cannot serve, and where they are tested instead."""


class Add(NumPyClient):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def fit(self, parameters, config):
        step = 0.01 * (self.number + 1) if self.step is None else self.step
        arrays = [p + p.dtype.type(step) if p.dtype.kind == "f" else p for p in parameters]
        return arrays, 1000, {"train-loss": 1.0}


class Device:
    def __init__(self, name, credentials, step):
        self.context = Context(1, 100 + int(name), {"partition-id": int(name)}, RecordDict(), {})
        self.app = numpy_client_app(
            lambda context: Add(int(name), step),
            mods=[auth_mod(lambda context: credentials), qsfl_mod],
        )

    def __call__(self, message):
        try:
            return self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)


class Unsigned(Device):
    """A client of a federation without authentication."""

    def __init__(self, name, credentials, step):
        super().__init__(name, credentials, step)
        self.app = numpy_client_app(lambda context: Add(int(name), step), mods=[qsfl_mod])


class Recorder(RunObserver):
    def __init__(self):
        self.rounds = []

    def on_round(self, record, clients):
        self.rounds.append(record)


@pytest.fixture(scope="module")
def keys():
    made = create_federation(NAMES, now=NOW)
    return made, open_roster(made.roster, made.authority)


@pytest.fixture
def federation(fake_grid, keys):
    """Run a sample for some rounds; `steps` gives single clients another step."""
    made, roster = keys

    def run(
        sample,
        rounds=1,
        clients=NAMES,
        steps=None,
        seed=0,
        store=None,
        resume=None,
        grid=None,
        model=MODEL,
        roles=None,
        beside=(),
        twin=False,
    ):
        server = Credentials(made.server, roster)
        recorder = Recorder()

        def build(stages):
            return StableFedAvg(
                fraction_evaluate=0.0, stages=stages, observer=recorder, checkpoints=store,
                min_train_nodes=1, min_available_nodes=len(clients), max_failed_rounds=9,
                roles=roles,
            )  # fmt: skip

        if isinstance(sample, StableFedAvg):
            strategy, strategy.engine.observer = sample, recorder
        else:
            stages = [*(sample.make(server) if sample else []), *beside]
            strategy = build(stages)
        other = None
        if twin:
            unlike = [Clip(0.01), *(s for s in stages if not isinstance(s, Clip))]
            other = build(unlike)
        named = any(isinstance(s, Authenticate) for s in strategy.chain.stages)
        kind = Device if named else Unsigned
        devices = {
            100 + int(n): kind(n, Credentials(made.clients[n], roster), (steps or {}).get(n))
            for n in clients
        }
        grid = grid or fake_grid(devices, seed=seed)
        result = strategy.start(grid, to_record(model), rounds, timeout=0.2, resume=resume)
        return SimpleNamespace(
            arrays=from_record(result.arrays), rounds=recorder.rounds, strategy=strategy, grid=grid,
            twin=other,
        )  # fmt: skip

    return run


def stages_of_the_package():
    """All concrete stages of the suite."""
    for package in (qsfl_flower.rounds, qsfl_flower.mechanisms, qsfl_flower.strategies):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found, open_kinds = set(), [Stage]
    while open_kinds:
        kind = open_kinds.pop()
        open_kinds += kind.__subclasses__()
        ours = kind.__module__.startswith("qsfl_flower.")
        if ours and not inspect.isabstract(kind) and isinstance(getattr(kind, "name", None), str):
            found.add(kind)
    return found


def same(one, other):
    return all(
        one[name].shape == other[name].shape and one[name].tobytes() == other[name].tobytes()
        for name in MODEL
    )


each = pytest.mark.parametrize(
    "sample", SAMPLES.values(), ids=[kind.__name__ for kind in SAMPLES]
)  # fmt: skip


def test_every_stage_is_registered():
    missing = {kind.__name__ for kind in stages_of_the_package()} - {k.__name__ for k in SAMPLES}
    assert missing == set(ELSEWHERE), "register a sample of every new stage in SAMPLES"


@each
def test_dtypes_shapes_and_carried_arrays_are_kept(federation, sample):
    arrays = federation(sample).arrays
    assert {n: (a.dtype, a.shape) for n, a in arrays.items()} == {
        n: (a.dtype, a.shape) for n, a in MODEL.items()
    }
    np.testing.assert_array_equal(arrays["steps"], MODEL["steps"])
    assert all(np.isfinite(arrays[name]).all() for name in FLOATS)


ROLES = {"back": "frozen", "again": "tied:w", "mean": "buffer", "var": "buffer"}
WITH_ROLES = {
    "back": np.linspace(-1, 1, 5, dtype=np.float32),
    **MODEL,
    "again": MODEL["w"],
    "mean": np.full(3, 0.25, np.float32),
    "var": np.full((), 0.05),
}


@each
@pytest.mark.parametrize("optimizer", [None, ServerAdam, ServerYogi, ServerMomentum])
def test_every_array_keeps_its_role(federation, sample, optimizer):
    """Clients move all floats, the frozen ones included; the variance falls below its step."""
    beside = [] if optimizer is None else [optimizer()]
    try:
        run = federation(
            sample, rounds=2, model=WITH_ROLES, roles=ROLES, beside=beside,
            steps=dict.fromkeys(NAMES, -0.02),
        )  # fmt: skip
    except CompositionError:
        return  # the sample has an optimizer of its own, or goes with none
    assert not run.rounds[-1].skipped
    arrays = run.arrays
    assert arrays["back"].tobytes() == WITH_ROLES["back"].tobytes()
    assert arrays["again"].tobytes() == arrays["w"].tobytes()
    chain = run.strategy.chain
    if chain.keeps_carried or chain.bounds_hidden:
        assert arrays["var"] == WITH_ROLES["var"]
        assert arrays["mean"].tobytes() == WITH_ROLES["mean"].tobytes()
    else:
        np.testing.assert_allclose(arrays["var"], 0.01, atol=1e-6 if chain.hides else 1e-9)
        np.testing.assert_allclose(arrays["mean"], 0.21, atol=1e-6)
    assert {n: (a.dtype, a.shape) for n, a in arrays.items()} == {
        n: (a.dtype, a.shape) for n, a in WITH_ROLES.items()
    }


@each
def test_one_client_gives_a_model_or_a_reason(federation, sample):
    try:
        run = federation(sample, clients=NAMES[:1])
    except (TooFewReplies, ConfigError):
        return  # the round, or the run, ended with a reason
    assert all(np.isfinite(run.arrays[name]).all() for name in FLOATS)


@each
def test_zero_updates_move_nothing(federation, sample):
    run = federation(sample, steps=dict.fromkeys(NAMES, 0.0))
    assert all(np.isfinite(run.arrays[name]).all() for name in FLOATS)
    if not sample.random:
        for name in FLOATS:
            np.testing.assert_allclose(run.arrays[name], MODEL[name], atol=1e-7)


@each
def test_an_empty_round_leaves_model_and_state(federation, fake_grid, sample):
    silent = fake_grid({100 + int(n): lambda message: None for n in NAMES})
    with pytest.raises(TooFewReplies, match="no-reply"):
        federation(sample, grid=silent)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e30])
def test_what_is_not_a_number_harms_nothing(federation, sample, bad):
    run = federation(sample, steps={"3": bad})
    assert all(np.isfinite(run.arrays[name]).all() for name in FLOATS)
    assert np.abs(run.arrays["w"]).max() < 100
    assert run.rounds[-1].rejected or run.rounds[-1].skipped or bad == -1e30


@each
def test_the_order_of_replies_does_not_matter(federation, sample):
    if sample.random:
        pytest.skip("adds fresh noise")
    assert same(federation(sample, seed=1).arrays, federation(sample, seed=2).arrays)


@each
def test_neutral_parameters_give_fedavg(federation, sample):
    if sample.neutral is None:
        pytest.skip("this stage changes the result by design")
    plain, run = federation(None), federation(sample)
    for name in FLOATS:
        np.testing.assert_allclose(run.arrays[name], plain.arrays[name], rtol=sample.neutral)


@each
def test_a_checkpoint_continues_as_if_nothing_had_happened(federation, sample, tmp_path):
    whole = federation(sample, rounds=2)
    store = CheckpointStore(tmp_path)
    first = federation(sample, rounds=1, store=store)
    snapshot = store.latest()
    assert snapshot.server_round == 1
    resumed = federation(sample, rounds=2, resume=snapshot, grid=first.grid)
    assert resumed.rounds[-1].round == 2
    if not sample.random:
        assert same(whole.arrays, resumed.arrays)


@each
def test_one_stage_object_works_in_two_strategies(federation, sample):
    """Both are built before one runs, the second with another clip norm; stages stay as made."""
    made = []

    def once(credentials):
        made.extend([] if made else sample.make(credentials))
        return made

    alone = federation(sample, rounds=2).arrays
    first = federation(replace(sample, make=once), rounds=2, twin=True)
    known = [dict(vars(stage)) for stage in made]
    second = federation(first.twin, rounds=2)
    again = federation(replace(sample, make=once), rounds=2)
    assert [vars(stage) for stage in made] == known
    for run in (first, second, again):
        assert not run.rounds[-1].skipped
        assert all(np.isfinite(run.arrays[name]).all() for name in FLOATS)
    if not sample.random:
        assert same(first.arrays, alone)
        assert same(again.arrays, alone)
