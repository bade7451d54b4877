"""A lying server writes the instructions: what a device sends although its policy forbids it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod, privacy_mod
from qsfl_flower.errors import REFUSALS, ConfigError, Refusal
from qsfl_flower.node.instructions import PHASES, check_instruction
from qsfl_flower.node.policy import NodePolicy, policy_of
from qsfl_flower.node.steps import PARAMETERS, check_parameters
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.policy import MinimumPolicy, Protection
from qsfl_flower.privacy.record import RecordBatch
from qsfl_flower.secure.terms import Terms
from qsfl_flower.stages import Clip, MaskedSum
from qsfl_flower.testing import LocalFederation, learned
from qsfl_flower.wire import (
    DETAIL_KEY,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    TASK_KEY,
    Plan,
    PlanItem,
    from_record,
    to_record,
)
from qsfl_flower.wire.content import AUTH_RECORD
from qsfl_flower.wire.keys import MASKED_SUM, SECURE_RECORD, SHARES
from tests.adversary.devices import valid_steps

D = 64
UPDATE = np.random.default_rng(5).normal(size=D)
NOISE = 50.0
OWN = ("record", "distributed-record", "local", "distributed")
DEMANDS = MinimumPolicy(epsilon=1.0, placements=OWN)


@pytest.fixture(autouse=True)
def _inside(inside_run):
    """Messages can be made."""


class Device:
    """A node with one app, whose raw update is known; counts how often it trains."""

    def __init__(self, demands=DEMANDS, mods=None, **config):
        self.trained = 0
        self.context = Context(1, 99, {"partition-id": 0, **config}, RecordDict(), {})
        mods = [privacy_mod(demands), qsfl_mod] if mods is None else mods
        self.app = ClientApp(mods=mods)
        for action in ("default", "lora"):
            self.app.train(action)(self._train)
        self.app.evaluate()(self._evaluate)
        self.app.query()(self._evaluate)

    def _train(self, message, context):
        self.trained += 1
        ((key, sent),) = message.content.array_records.items()
        model = from_record(sent)
        told = {"num-examples": 9, "train-loss": 0.5, "dp-clip-norm": 1.0, "dp-steps": 1}
        told |= {"dp-noise-multiplier": NOISE, "dp-sampling-rate": 1.0}
        content = {
            key: to_record({"w": model["w"] + UPDATE}),
            "metrics": MetricRecord(told),
            "confusion": ConfigRecord({"counts": [777, 3, 4], "note": "777"}),
        }
        return Message(RecordDict(content), reply_to=message)

    def _evaluate(self, message, context):
        told = MetricRecord({"num-examples": 9, "loss": float(UPDATE[0])})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    def ask(self, *asked, **more):
        return self.answer(*asked, **more).content

    def answer(self, plan=None, kind="train", run=1, task=None, key="arrays"):
        self.context.run_id = run
        content = RecordDict({key: to_record({"w": np.zeros(D)}), "config": ConfigRecord()})
        if plan is not None:
            content[QSFL_RECORD] = ConfigRecord({PLAN_KEY: plan.encode()})
        if task is not None:
            content[QSFL_RECORD] = ConfigRecord({TASK_KEY: task})
        message = Message(content, 5, kind)
        message.metadata.__dict__["_message_id"] = "m"
        return self.app(message, self.context)


def reason(content):
    """Why nothing was sent, or None."""
    told = content.config_records.get(QSFL_RECORD) or {}
    if REFUSED_KEY not in told:
        return None
    assert told[REFUSED_KEY] in REFUSALS
    assert not content.array_records
    assert not content.metric_records
    return told[REFUSED_KEY]


def leaked(content):
    """How well the reply's bytes tell the raw update: the largest correlation of any array."""
    found = [
        abs(np.corrcoef(a.ravel().astype(float), UPDATE)[0, 1])
        for record in content.array_records.values()
        for a in from_record(record).values()
        if a.size == D and np.ptp(a) > 0
    ]
    return max(found, default=0.0)


def promise(placement="local", noise=NOISE, releases=1, rate=1.0, clip=1.0):
    offer = Protection(
        placement=placement, clip_norm=clip, noise_multiplier=noise, sampling_rate=rate,
        releases=releases, delta=1e-5,
    )  # fmt: skip
    return PlanItem("protection", offer.to_dict())


def local(noise=NOISE, clip=1.0):
    return PlanItem("local_dp", {"clip_norm": clip, "noise_multiplier": noise})


def record(noise=NOISE, public=("num-examples",), rate=1.0):
    told = {"clip_norm": 1.0, "noise_multiplier": noise, "sampling_rate": rate, "steps": 1}
    return PlanItem("record_dp", {**told, "public_metrics": list(public)})


SHARE = NoiseShare(clip_norm=1.0, noise_multiplier=NOISE, fewest=4, size=D)
TERMS = Terms(
    run=1, round=1, members=tuple("abcde"), seats=tuple("12345"), threshold=3, quorum=4,
    min_clients=4, max_clients=12, bits=24, bound=1e4, clip_norm=1e4,
)  # fmt: skip
CLIP = PlanItem("clip", {"clip_norm": 1.0})


def distributed(share=SHARE, batch=None, bound=1.0):
    told = {"share": asdict(share), "bound": bound, "batch": batch and asdict(batch)}
    return PlanItem("distributed_dp", told)


def shares(**changes):
    told = {"terms": asdict(replace(TERMS, **changes)), "max_examples": 9, "metrics": []}
    return PlanItem(SHARES, {**told, "weighted_by": "num-examples", "weighted": False})


def plan(*items):
    return Plan(items)


def test_what_a_device_wants_is_answered_with_noise():
    device = Device()
    content = device.ask(plan(promise(), CLIP, local()))
    assert reason(content) is None
    assert device.trained == 1
    assert leaked(content) < 0.5
    assert dict(content["metrics"]) == {"num-examples": 1}
    assert reason(Device().ask(plan(promise("record"), record()))) is None


BATCH = RecordBatch(clip_norm=1.0, sampling_rate=1.0, sum_norm=5.0)
MASK = PlanItem("shared_mask", {"mask": {}, "seed": 1, "rounding": 1})
LIES = {
    "no plan": (None, "privacy-no-protection"),
    "no promise": (plan(CLIP, local()), "privacy-no-protection"),
    "promise without step": (plan(promise()), "privacy-not-carried-out"),
    "less noise": (plan(promise(), local(noise=1e-6)), "privacy-not-carried-out"),
    "a larger clip norm": (plan(promise(), local(clip=100.0)), "privacy-not-carried-out"),
    "a negative clip norm": (plan(promise(), local(clip=-1.0)), "privacy-not-carried-out"),
    "two noise steps": (plan(promise(), local(), local()), "policy-plan"),
    "noise before the clip": (plan(promise(), local(), CLIP), "policy-plan"),
    "another placement": (plan(promise("record"), local()), "privacy-not-carried-out"),
    "not a number": (plan(promise(), PlanItem("local_dp", {"clip_norm": 1.0})), "policy-plan"),
    "text": (
        plan(promise(), PlanItem("local_dp", {"clip_norm": "a", "noise_multiplier": 1})),
        "policy-plan",
    ),
    "own coordinates under noise": (
        plan(promise(), PlanItem("compress-choose", {}), local(), PlanItem("compress", {})),
        "privacy-not-carried-out",
    ),
    "an unknown step": (plan(promise(), local(), PlanItem("undo")), "privacy-not-carried-out"),
    "record: less noise": (
        plan(promise("record"), record(noise=0.1)),
        "privacy-not-carried-out",
    ),
    "record: larger batches": (
        plan(promise("record", rate=0.01), record(rate=0.5)),
        "privacy-not-carried-out",
    ),
    "record: the loss as a public metric": (
        plan(promise("record"), record(public=("num-examples", "train-loss"))),
        "privacy-not-carried-out",
    ),
    "shares of noise in the clear": (
        plan(promise("distributed"), CLIP, distributed()),
        "privacy-not-carried-out",
    ),
    "shares without a clip": (
        plan(promise("distributed"), distributed(), shares()),
        "privacy-not-carried-out",
    ),
    "shares with distances": (
        plan(promise("distributed"), CLIP, distributed(), shares(distances=True)),
        "policy-openings",
    ),
    "shares of less noise": (
        plan(
            promise("distributed"), CLIP, distributed(replace(SHARE, noise_multiplier=0.5)),
            shares(),
        ),
        "privacy-not-carried-out",
    ),
    "records promised, clients noised": (
        plan(promise("distributed-record"), CLIP, distributed(), shares()),
        "privacy-not-carried-out",
    ),
    "records under a mask that keeps the rest": (
        plan(promise("distributed-record"), MASK, CLIP, distributed(batch=BATCH), shares()),
        "privacy-not-carried-out",
    ),
    "a sum that is not the last step": (plan(shares(), promise(), local()), "policy-plan"),
    "no committee": (
        plan(promise("record"), record(), PlanItem(SHARES, {"terms": None})),
        "policy-terms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_promise_that_the_plan_does_not_keep_is_refused_before_training(lie):
    device, (asked, wanted) = Device(), LIES[lie]
    assert reason(device.ask(asked)) == wanted
    assert device.trained == 0


@pytest.mark.parametrize("kind", ["train.default", "train.lora"])
def test_every_action_of_training_is_training(kind):
    device = Device()
    assert reason(device.ask(kind=kind)) == "privacy-no-protection"
    assert device.trained == 0
    clipped = Device(mods=[qsfl_mod]).ask(plan(CLIP), kind)
    (sent,) = from_record(clipped["arrays"]).values()
    assert np.linalg.norm(sent) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["evaluate", "evaluate.default", "query", "query.default"])
def test_evaluation_and_queries_do_not_go_round_the_policy(kind):
    assert reason(Device().ask(kind=kind)) == "policy-in-the-clear"
    assert reason(Device(mods=[qsfl_mod]).ask(kind=kind)) is None
    hidden = Device(mods=[qsfl_mod], **{"qsfl-min-cohort": 3})
    assert reason(hidden.ask(kind=kind)) == "policy-in-the-clear"


def test_hidden_only_sends_nothing_in_the_clear():
    device = Device(mods=[qsfl_mod], **{"qsfl-min-cohort": 3})
    for asked in (None, plan(), plan(CLIP), plan(promise(), CLIP, local())):
        assert reason(device.ask(asked)) == "policy-in-the-clear"
    assert reason(device.ask(plan(CLIP, shares(min_clients=2)))) == "policy-cohort"
    assert device.trained == 0


def masked(**changes):
    told = {"round": 1, "terms": "", "clients": 6, "bound": 4.0, "min_clients": 4, "metrics": []}
    return PlanItem(
        MASKED_SUM, {**told, "max_examples": 9, "weighted_by": "num-examples", **changes}
    )


def weighed(**changes):
    return PlanItem(SHARES, {**shares().parameters, **changes})


@pytest.mark.parametrize("hidden", [masked, weighed])
@pytest.mark.parametrize(
    "weights",
    [
        {"weighted_by": "train-loss"},
        {"weighted_by": ["num-examples"]},
        {"max_examples": 1001},
        {"max_examples": 0},
        {"max_examples": 0.5},
        {"max_examples": True},
    ],
)
def test_a_server_does_not_choose_whose_update_a_hidden_sum_shows(hidden, weights):
    """A head that is made for it has a loss on one client's records alone; a sum by it is hers."""
    device = Device(mods=[qsfl_mod])
    assert reason(device.ask(plan(CLIP, hidden(**weights)))) == "policy-weights"
    assert device.trained == 0


@pytest.mark.parametrize("hidden", [masked, weighed])
def test_the_file_of_a_node_allows_other_hidden_weights(hidden, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text('weights = true\nmetrics = ["patients"]')
    context = Context(1, 1, {"qsfl-policy": str(file)}, RecordDict(), {})
    for changes in ({}, {"weighted_by": "patients"}, {"max_examples": 10**6}):
        content = RecordDict(
            {QSFL_RECORD: ConfigRecord({PLAN_KEY: plan(hidden(**changes)).encode()})}
        )
        check_instruction(Message(content, 1, "train"), context, policy_of(context))


def departures(values, into=True):
    """Yield parameters that differ in one place from those that a strategy writes."""
    yield {**values, "further": 1}
    for key, value in values.items():
        yield {k: v for k, v in values.items() if k != key}
        if isinstance(value, dict) and into and key != "terms":
            needed = {"clip_norm", "noise_multiplier", "fewest", "size"}  # others have defaults
            for other in departures(value, into=False):
                if set(value) - set(other) <= needed:
                    yield {**values, key: other}
        elif key != "terms":
            yield {**values, key: {"x": 1}}
            if value is not None:
                yield {**values, key: None}
            numbers = type(value) in (int, float)
            for other in ["1", float("nan"), float("inf"), True] if numbers else [1, True]:
                if type(other) is not type(value):
                    yield {**values, key: other}
            if type(value) is int:
                yield {**values, key: 1.5}
            if type(value) is float:
                yield {**values, key: float("nan")}


@pytest.mark.parametrize("name", sorted(PHASES))
def test_no_step_is_taken_with_parameters_of_another_kind(name):
    """Unknown, missing, text or a truth value for a number, no number, a fraction for a count."""
    valid = valid_steps(1, 3.0, 1)[name]
    device = Device(mods=[qsfl_mod])
    assert name in PARAMETERS
    check_parameters(name, valid)
    hiding = name in (MASKED_SUM, SHARES)
    for wrong in departures(valid):
        item = PlanItem(name, wrong)
        with pytest.raises(Refusal, match=r"policy-(plan|weights|terms|bits)"):
            check_instruction(instruction_of(item), device.context, NodePolicy())
        if not hiding:
            with pytest.raises(Refusal, match="policy-plan"):
                check_parameters(name, wrong)


def instruction_of(*items):
    body = {"version": 2, "steps": [{"name": i.name, "parameters": i.parameters} for i in items]}
    content = {QSFL_RECORD: ConfigRecord({PLAN_KEY: json.dumps(body)})}
    return Message(RecordDict(content), 1, "train")


def test_releases_are_counted_whatever_is_promised_anew():
    device = Device()
    answered = [device.ask(plan(promise(releases=3), CLIP, local())) for _ in range(300)]
    assert [reason(a) for a in answered[:3]] == [None] * 3
    assert {reason(a) for a in answered[3:]} == {"privacy-too-many-releases"}
    # Another promise does not buy another budget.
    accepted = []
    for noise in (20.0 + number / 7 for number in range(40)):
        content = device.ask(plan(promise(noise=noise, releases=9), CLIP, local(noise)))
        if reason(content) is None:
            accepted.append(Event(noise, 1.0, 9))
        else:
            assert reason(content) == "privacy-epsilon-too-large"
    assert 0 < len(accepted) < 40
    assert epsilon_of_events([Event(NOISE, 1.0, 3), *accepted], 1e-5) <= 1.0


def test_another_run_buys_another_budget_only_if_the_policy_says_so(tmp_path):
    asked = plan(promise(noise=6.0, releases=1), CLIP, local(6.0))
    assert (
        epsilon_of_events([Event(6.0)], 1e-5) < 1 < epsilon_of_events([Event(6.0, count=4)], 1e-5)
    )
    device = Device()
    assert [reason(device.ask(asked, run=r)) for r in range(1, 7)] == [None] * 6
    policy = tmp_path / "policy.toml"
    policy.write_text('days = 30\n[privacy]\nepsilon = 1.0\nplacements = ["local"]\n')
    config = {"qsfl-policy": str(policy), "qsfl-state": str(tmp_path / "memory")}
    answers = []
    for run in range(1, 7):
        # Each run meets a new process, and a client state that the server's side has made anew.
        answers.append(reason(Device(mods=[qsfl_mod], **config).ask(asked, run=run)))
    assert answers[0] is None
    assert answers[-1] == "privacy-epsilon-too-large"


def test_an_app_cannot_ask_for_less_than_the_file_of_the_node(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[privacy]\nepsilon = 0.01\nplacements = ["local", "record"]\n')
    device = Device(MinimumPolicy(epsilon=9.0, placements=OWN), **{"qsfl-policy": str(policy)})
    asked = plan(promise(), CLIP, local())
    assert reason(device.ask(asked)) == "privacy-epsilon-too-large"
    asked = plan(promise("distributed"), CLIP, distributed(), shares())
    assert reason(device.ask(asked)) == "privacy-placement-not-accepted"


def test_releases_in_a_period_end_also_without_noise(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("releases = 2\ndays = 1\n")
    config = {"qsfl-policy": str(policy), "qsfl-state": str(tmp_path / "memory")}
    answers = [reason(Device(mods=[qsfl_mod], **config).ask(run=run)) for run in range(4)]
    assert answers == [None, None, "policy-releases", "policy-releases"]


def test_an_app_without_qsfl_mod_sends_nothing_under_a_promise():
    device = Device(mods=[privacy_mod(DEMANDS)])
    assert reason(device.ask(plan(promise(), CLIP, local()))) == "privacy-not-carried-out"


def answers_with(content=None, error=None):
    """A mod next to the app that answers in its place: what it says quotes 777 records."""

    def mod(message, context, call_next):
        if error:
            return Message(Error(7, error), reply_to=message)
        return Message(
            RecordDict({**call_next(message, context).content, **content}), reply_to=message
        )

    return mod


@pytest.mark.parametrize("asked", [plan(CLIP, masked()), plan(promise(), CLIP, local())])
def test_an_app_that_refuses_or_fails_tells_its_reason_alone(asked):
    """A phone that pauses says how many batches are done of how many: its number of records."""
    for said in ("device-in-use", "777 records are too many"):
        told = ConfigRecord({REFUSED_KEY: said, DETAIL_KEY: "777 of 777 batches", "x": "777"})
        device = Device(mods=[qsfl_mod, answers_with({QSFL_RECORD: told})])
        content = device.ask(asked)
        assert reason(content) == (said if said in REFUSALS else "device-unknown")
        assert "777" not in str(content)
        assert set(content) == {QSFL_RECORD}
    device = Device(mods=[qsfl_mod, answers_with(error="777 records")])
    assert "777" not in device.answer(asked).error.reason
    # Where nothing is hidden, the sentences reach the server.
    told = ConfigRecord({REFUSED_KEY: "device-in-use", DETAIL_KEY: "777 of 777 batches"})
    content = Device(mods=[qsfl_mod, answers_with({QSFL_RECORD: told})]).ask(plan(CLIP))
    assert content[QSFL_RECORD][DETAIL_KEY] == "777 of 777 batches"


def test_no_policy_is_charged_for_what_nobody_has_verified():
    """Behind a policy_mod in front of auth_mod, anybody on the network could use releases up."""
    device = Device(mods=[policy_mod(NodePolicy(releases=1, days=1.0)), qsfl_mod])
    signed = instruction_of(CLIP)
    signed.content[AUTH_RECORD] = ConfigRecord({"instruction": b"forged"})
    with pytest.raises(ConfigError, match="auth_mod must check it before"):
        device.app(signed, device.context)
    assert reason(device.ask(plan(CLIP))) is None


@pytest.mark.parametrize("mods", [(), (policy_mod(NodePolicy()), qsfl_mod)])
@pytest.mark.parametrize("text", ["hidden_only = true", "releases = 1\ndays = 1"])
def test_the_file_of_a_node_counts_whatever_mods_its_app_has(tmp_path, text, mods):
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    config = {"qsfl-policy": str(policy)}
    federation = LocalFederation(clients=3, size=32, mods=mods, node_config=lambda n: config)
    view = federation.watch()
    outcome = federation.run([], rounds=2, max_failed_rounds=3)
    if "hidden_only" in text:
        assert learned(federation.updates, view.bytes_up()) == []
        assert outcome.rejected == {"policy-in-the-clear": 6}
    else:
        assert outcome.rejected == {"policy-releases": 3}


@pytest.mark.parametrize("how", ["file", "mod"])
def test_a_node_that_sends_hidden_updates_alone_takes_part_in_masked_sums(tmp_path, how):
    policy = tmp_path / "policy.toml"
    policy.write_text("hidden_only = true")
    config = {"qsfl-policy": str(policy)} if how == "file" else {}
    mods = (qsfl_mod,) if how == "file" else (policy_mod(NodePolicy(hidden_only=True)), qsfl_mod)
    federation = LocalFederation(clients=4, size=8, mods=mods, node_config=lambda n: config)
    masked = MaskedSum(federation.credentials, bound=1.0, clock=federation.grid_time)
    outcome = federation.run([Clip(1.0), masked])
    assert outcome.rejected == {}
    assert outcome.rounds[-1].accepted == 4


ITEMS = st.sampled_from(
    [
        promise(), promise("record"), promise("distributed"), promise(noise=0.01), CLIP, local(),
        local(noise=0.01), local(clip=1e6), record(), record(noise=0.01), distributed(), shares(),
        shares(distances=True), shares(min_clients=2), PlanItem("clip", {"clip_norm": 1e6}),
        PlanItem("clip", {"clip_norm": "x"}), PlanItem("masked_sum", {}), PlanItem("nothing"),
        PlanItem("protection", {"placement": "local"}),
    ]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ITEMS, max_size=5), st.sampled_from(["train", "train.lora", "evaluate", "query"]))
def test_no_plan_makes_a_device_send_its_update_without_noise(items, kind):
    device = Device()
    try:
        content = device.ask(plan(*items), kind)
    except Exception:  # Flower answers with an error, which carries no arrays
        return
    if reason(content) is None:
        # A record-level promise is kept by the app's own training, which is not noisy here.
        assert any(i.name == "record_dp" for i in items) or leaked(content) < 0.6
        assert "train-loss" not in dict(content.metric_records.get("metrics") or {})


@pytest.mark.parametrize("mod", [policy_mod(NodePolicy(hidden_only=True)), privacy_mod(DEMANDS)])
def test_a_task_gets_no_update_where_no_mod_carries_tasks_out(mod):
    device = Device(mods=[mod])
    for key in ("arrays", SECURE_RECORD):  # whatever the server calls the model
        assert reason(device.ask(task="secure.hello", key=key)) == "privacy-not-carried-out"


def test_apps_and_stacked_mods_loosen_nothing_and_count_once(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text("hidden_only = true")
    lax = policy_mod(NodePolicy(weights=True))
    device = Device(mods=[lax, qsfl_mod], **{"qsfl-policy": str(file)})
    assert reason(device.ask()) == "policy-in-the-clear"
    file.write_text("releases = 3\ndays = 1")
    for mods in ([lax, lax], [policy_mod(NodePolicy(releases=9, days=1.0)), lax], []):
        device = Device(mods=[*mods, qsfl_mod], **{"qsfl-policy": str(file)})
        reasons = [reason(device.ask()) for _ in range(5)]
        assert reasons == [None] * 3 + ["policy-releases"] * 2, mods


def test_stacked_mods_charge_a_promise_once():
    mods = [privacy_mod(DEMANDS), privacy_mod(replace(DEMANDS, epsilon=0.9)), qsfl_mod]
    device, asked = Device(mods=mods), plan(promise(releases=2), local())
    reasons = [reason(device.ask(asked)) for _ in range(3)]
    assert reasons == [None, None, "privacy-too-many-releases"]


@pytest.mark.parametrize("name", ["local", "record"])
def test_nothing_of_the_app_leaves_beside_the_noise(name):
    made = {"local": plan(promise(), local()), "record": plan(promise("record"), record())}
    content = Device().ask(made[name])
    assert reason(content) is None
    assert set(content) == {"arrays", "metrics", QSFL_RECORD}
    assert "train-loss" not in content["metrics"]
