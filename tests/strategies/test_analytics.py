"""Questions about tables over real messages, mods and secure sums, and those who break them.

Noise is secret and fresh: every comparison below is at eight standard deviations of it or more, so
a whole run of this file fails falsely less than once in 1e12 times.
"""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from qsfl_flower.asynchrony import WallClock
from qsfl_flower.clients.analytics import analytics_app, comparison_mod
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.errors import BudgetExceeded, ConfigError, RunError
from qsfl_flower.mechanisms.analytics.core.plan import Ask
from qsfl_flower.mechanisms.analytics.options import HeavyHitters, Histogram, Mean
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.secure.fixed_point import FixedPoint
from qsfl_flower.strategies import PrivacyBudget
from qsfl_flower.strategies.analytics import FederatedAnalytics, Guarantee, Inquiry
from qsfl_flower.strategies.comparison import compare_models, comparison_inquiry
from qsfl_flower.testing import LocalFederation, learned
from qsfl_flower.wire import PLAN_KEY, QSFL_RECORD, REFUSED_KEY, Plan, PlanItem
from qsfl_flower.wire.keys import QUESTIONS

CLIENTS, ROWS, EPSILON, DELTA = 6, 200, 4.0, 1e-6
MEAN = Mean(column="age", low=0, high=100)
BINS = Histogram(column="age", low=0, high=100, bins=4)
NAMES = HeavyHitters(column="name", max_length=2, letters="abno")


def table_of(client):
    rng = np.random.default_rng(client)
    names = rng.choice(["anna", "bob"], ROWS, p=[0.7, 0.3])
    return {"age": rng.uniform(0, 100, ROWS), "name": names}


WHOLE = {name: np.concatenate([table_of(n)[name] for n in range(CLIENTS)]) for name in table_of(0)}


def federation(liar=None, tables=table_of, **options):
    """Clients with tables; `liar` is a context manager around what client 0 does."""
    app = analytics_app(
        options.pop("privacy", MinimumPolicy(epsilon=EPSILON, delta=DELTA)),
        lambda context, needs: tables(context.node_config["partition-id"]),
        **options,
    )

    def answers(message, context, call_next):
        del call_next
        if liar is None or context.node_config["partition-id"]:
            return app(message, context)
        with liar():
            return app(message, context)

    return LocalFederation(clients=CLIENTS, mods=[answers])


def inquiry(*questions, epsilon=EPSILON, **options):
    budget = PrivacyBudget(epsilon=epsilon, delta=DELTA, **options.pop("budget", {}))
    settings = {"unit": "record", "most_rows": ROWS, "clients": CLIENTS, "fewest": 4, **options}
    return Inquiry(questions, Guarantee(budget, **settings))


def ask(there, asked):
    strategy = FederatedAnalytics(
        asked,
        credentials=there.credentials,
        sums={"clock": there.grid_time},
        clock=WallClock(there.grid.time.monotonic),
    )
    with there.grid.time.for_strategies():
        return strategy.ask(there.grid, 5.0)


def refusals(view):
    told = [m.content.config_records.get(QSFL_RECORD) or {} for m in view.up if m.has_content()]
    return {str(one[REFUSED_KEY]) for one in told if REFUSED_KEY in one}


def within(estimate, true, wider=4.0):
    """Return whether a number is within four times its interval of 95 %: eight deviations."""
    reach = wider * max(estimate["high"] - estimate["value"], estimate["value"] - estimate["low"])
    return abs(estimate["value"] - true) <= reach


@pytest.mark.parametrize("masks", [False, True], ids=["committee", "masks"])
def test_answers_are_those_of_all_tables_with_the_stated_noise(masks):
    there = federation()
    found = ask(there, inquiry(MEAN, BINS, NAMES, masks=masks))
    assert within(found["rows"]["rows"], CLIENTS * ROWS)
    assert within(found["mean of age"]["mean"], WHOLE["age"].mean())
    for one in found["histogram of age"]["bins"]:
        assert within(one, ((WHOLE["age"] >= one["from"]) & (WHOLE["age"] < one["to"])).sum())
    words = {w["text"]: w for w in found["heavy_hitters of name"]["words"]}
    assert set(words) >= {"an", "bo"}
    assert within(words["an"], (WHOLE["name"] == "anna").sum())
    assert found.epsilon <= EPSILON
    assert found.cohorts == [CLIENTS] * 2
    assert found.bytes_up > 0


def test_a_whole_client_is_protected_by_noise_for_all_its_rows():
    """`most_rows` times the noise of a row, and the same promise to every client."""
    row, client = (inquiry(MEAN, unit=unit) for unit in ("record", "client"))
    assert client.std(CLIENTS) == pytest.approx(ROWS * row.std(CLIENTS), rel=1e-3)
    found = ask(federation(), client)
    assert within(found["rows"]["rows"], CLIENTS * ROWS)


def test_nothing_of_one_table_reaches_the_server():
    there = federation()
    view = there.watch()
    asked = inquiry(Histogram(column="age", low=0, high=100, bins=24))
    ask(there, asked)
    own = np.stack([asked.plan.ask(1, {}).vector(table_of(n), ROWS)[1:] for n in range(CLIENTS)])
    own -= own.mean(axis=1, keepdims=True)  # counts alike, as what they are compared with
    assert learned(own, view.bytes_up()) == []


def test_a_client_that_claims_a_million_rows_gets_no_answer_through():
    """A program of its own: neither clipping, nor noise, nor fixed point hold it back."""

    def million():
        def encode(self, values, out):
            out[: values.size] = int(1e6) << self.bits

        return patch.object(FixedPoint, "encode", encode)

    with pytest.raises(RunError, match="not within its bound"):
        ask(federation(million), inquiry(MEAN))


def test_a_client_moves_an_answer_no_further_than_the_rows_that_it_may_have():
    """A table of a million rows counts as `most_rows` of them."""

    def tables(client):
        if client:
            return table_of(client)
        return {"age": np.full(1_000_000, 99.0), "name": np.full(1_000_000, "anna")}

    found = ask(federation(tables=tables), inquiry(BINS))
    others = (WHOLE["age"][ROWS:] >= 75).sum()
    last = found["histogram of age"]["bins"][3]
    factor = 1 / np.sqrt(inquiry(BINS).plan.parts[0][1].share)  # of a count in the vector's norm
    assert within({**last, "value": last["value"] - factor * ROWS}, others)


def test_the_same_question_again_is_refused_by_every_client():
    """In another run of the server too: the node adds up what it has answered."""
    there = federation()
    ask(there, inquiry(MEAN))
    view = there.watch()
    for other in (inquiry(MEAN), inquiry(BINS, epsilon=EPSILON / 4)):
        with pytest.raises(RunError, match="opened no sum"):
            ask(there, other)
    assert refusals(view) == {"privacy-too-many-releases", "privacy-epsilon-too-large"}


def test_a_shrinking_cohort_is_refused():
    """Sums of everybody and of all but one differ by one table and the noise of both."""
    there = federation(least_cohort=CLIENTS)
    view = there.watch(clients=range(1, CLIENTS))
    with pytest.raises(RunError, match=r"policy-cohort|opened no sum"):
        ask(there, inquiry(MEAN, clients=CLIENTS, fewest=CLIENTS - 1))
    assert refusals(view) == {"policy-cohort"}


def test_the_ledger_is_asked_first(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.grant("hospital", Budget(1.1 * EPSILON, DELTA))
    paths = [f"hospital/{n}" for n in range(CLIENTS)]
    asked = inquiry(MEAN, budget={"ledger": ledger, "accounts": paths})
    ask(federation(), asked)
    assert ledger.status("hospital").spent == pytest.approx(EPSILON, rel=1e-3)
    with pytest.raises(BudgetExceeded, match="hospital"):
        ask(federation(), asked)


def forged(**change):
    """Return an instruction with a plan of the server's choice, and no noise or sum in it."""
    asked = Ask((MEAN,), inquiry(MEAN).plan.parts[0], {})
    told = {"size": asked.size, "questions": asked.encode(), "most_rows": float(ROWS), **change}
    plan = Plan((PlanItem(QUESTIONS, told),))
    return RecordDict({QSFL_RECORD: ConfigRecord({PLAN_KEY: plan.encode()})})


@pytest.mark.parametrize("kind", ["query.analytics", "query", "evaluate", "train"])
def test_a_client_answers_nothing_without_noise_and_a_secure_sum(kind):
    reply = federation().ask(0, forged(), kind)
    assert reply.has_error() or not reply.content.array_records
    if reply.has_content():
        told = reply.content.config_records[QSFL_RECORD][REFUSED_KEY]
        assert told.startswith(("policy-", "privacy-"))


def test_a_client_answers_no_question_about_a_closed_column():
    there = federation(columns=["name"])
    view = there.watch()
    with pytest.raises(RunError, match="policy-questions"):
        ask(there, inquiry(MEAN))
    assert learned(WHOLE["age"][None, :128], view.bytes_up()) == []


def test_a_table_that_cannot_be_read_is_told_without_a_word_of_it():
    secret = "the diagnosis of Anna"

    def tables(client):
        return table_of(client) if client else {"age": np.array([secret] * ROWS, object)}

    there = federation(tables=tables)
    view = there.watch()
    found = ask(there, inquiry(MEAN))
    assert found.cohorts == [CLIENTS - 1]
    assert not any(secret.encode() in sent for sent in view.bytes_up())


@pytest.mark.parametrize("rows", [1, 10**4, 10**9])
def test_any_number_of_rows_has_room_in_a_committees_sum(rows):
    there = LocalFederation(clients=CLIENTS)
    asked = inquiry(MEAN, most_rows=rows)
    assert FederatedAnalytics(asked, credentials=there.credentials)
    assert asked.guarantee.bits(asked.noise_multiplier) >= 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"unit": "person"}, "record or client"),
        ({"most_rows": 0}, "most_rows is 0"),
        ({"fewest": 7}, "from 2 to clients = 6"),
        ({"non_contributors": 4}, "< fewest = 4"),
    ],
)
def test_errors_say_what_is_allowed(change, told):
    with pytest.raises(ConfigError, match=told):
        inquiry(MEAN, **change)
    many = inquiry(MEAN, most_rows=10**6, masks=True)
    with pytest.raises(ConfigError, match="lower most_rows, or hide the sums by a committee"):
        many.noise_multiplier  # noqa: B018


def test_it_trains_nothing():
    there = federation()
    strategy = FederatedAnalytics(inquiry(MEAN), credentials=there.credentials)
    with pytest.raises(ConfigError, match="call ask"):
        strategy.start(there.grid, ArrayRecord())


def compared(scores, **options):
    """Compare two models on 6 x 200 records; `scores` gives those of a client for a model."""
    mod = comparison_mod(
        MinimumPolicy(epsilon=EPSILON, delta=DELTA),
        lambda arrays, context: scores(arrays, context.node_config["partition-id"]),
    )
    there = LocalFederation(clients=CLIENTS, mods=[mod, qsfl_mod])
    asked = comparison_inquiry(inquiry(MEAN, **options).guarantee, level=0.999999)
    strategy = FederatedAnalytics(
        asked,
        credentials=there.credentials,
        sums={"clock": there.grid_time},
        clock=WallClock(there.grid.time.monotonic),
    )
    models = [{"w": np.full(3, value)} for value in (0.6, 0.8)]
    with there.grid.time.for_strategies():
        return compare_models(strategy, there.grid, *models, timeout=5.0)


def right(arrays, client):
    """Whether a model, right as often as its weights say, is right on each record."""
    return np.random.default_rng(client).uniform(size=ROWS) < arrays["w"][0]


def test_the_better_model_is_promoted():
    """The records are fixed; the noise is 1,000 times smaller than the room that is left."""
    verdict = compared(right)
    true = np.mean([right({"w": [0.8]}, n) * 1.0 - right({"w": [0.6]}, n) for n in range(CLIENTS)])
    assert verdict.decision == "promote"
    assert verdict.difference.low <= true <= verdict.difference.high
    assert verdict.expected.low < verdict.difference.low
    assert verdict.epsilon <= EPSILON


def test_a_worse_model_is_kept_out_and_equal_ones_stay_undecided():
    worse = compared(lambda arrays, client: ~right(arrays, client))
    assert worse.decision == "keep"
    equal = compared(lambda arrays, client: right({"w": [0.7]}, client))
    assert equal.decision == "undecided"


def test_a_client_moves_a_comparison_no_further_than_its_records():
    """It claims that the candidate is a million times worse on each of its 200 of 1,200 records."""

    def scores(arrays, client):
        return right(arrays, client) - (1e6 * arrays["w"][0] if client == 0 else 0.0)

    verdict = compared(scores)
    honest = [right({"w": [0.8]}, n) * 1.0 - right({"w": [0.6]}, n) for n in range(1, CLIENTS)]
    assert abs(verdict.difference.value - (np.sum(honest) - ROWS) / (CLIENTS * ROWS)) < 0.1


def test_a_model_made_to_fail_on_some_records_does_not_tell_who_has_them():
    """Its score is no number there: a client that sent nothing would tell that it has one."""

    def scores(arrays, client):
        found = right(arrays, client) * 1.0
        found[:1] = np.inf if client == 0 else 0.0
        return found

    verdict = compared(scores)
    honest = [right({"w": [0.8]}, n) * 1.0 - right({"w": [0.6]}, n) for n in range(CLIENTS)]
    assert abs(verdict.difference.value - np.sum(honest) / (CLIENTS * ROWS)) < 0.1
    assert abs(verdict.rows - CLIENTS * ROWS) < ROWS / 2  # all clients answered; 12 deviations
