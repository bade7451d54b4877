"""A server that lies when it asks for sums of evaluation: what differences and openings tell it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from qsfl_flower.clients import policy_mod, qsfl_mod
from qsfl_flower.mechanisms.evaluation.core import Metric, size_of, take
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.rounds.session import Session
from qsfl_flower.stages import Clip, Committee, DistributedDP, MaskedSum, SecureSum
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing import LocalFederation, Tap, drop
from qsfl_flower.wire import QSFL_RECORD, REFUSED_KEY, PlanItem
from qsfl_flower.wire.kinds import Purpose

CLIENTS = 6
RIGHT = (Metric(name="right", kind="count", most=128.0),)
STRICT = NodePolicy(hidden_only=True)


def own(client: int) -> dict:
    return {"num-examples": 100 + 10 * client, "right": 60 + client, "accuracy": 0.1 * client}


def app(message, context, call_next):
    del call_next
    told = MetricRecord(own(context.node_config["partition-id"]))
    return Message(RecordDict({"m": told}), reply_to=message)


class Server:
    """One that may use any stages for any question; it signs what it likes."""

    def __init__(self, policy=STRICT):
        self.there = LocalFederation(CLIENTS, mods=(policy_mod(policy), qsfl_mod, app))
        self.view = self.there.watch()
        strategy = StableFedAvg(fraction_evaluate=0.0, stages=[self.there.authenticate()])
        self.engine = strategy.engine

    def session(self, *stages):
        return Session(self.engine, Purpose.EVALUATE, stages)

    def shared(self, *noise, clip=2.0, bound=2.0, **options):
        clock = self.there.grid_time
        return self.session(
            SecureSum(
                clip, Committee(3, 2), bound=bound, weighted=False, metrics=(), clock=clock,
                **options,
            ),
            *noise,
        )  # fmt: skip

    def masked(self, clip=2.0, bound=2.0):
        clock = self.there.grid_time
        keys = self.there.credentials
        return self.session(Clip(clip), MaskedSum(keys, bound=bound, clock=clock, metrics=()))

    def ask(self, session, number, metrics=RIGHT, without=None):
        """Ask for a sum, of all clients or without one."""
        told = {
            "metrics": [m.to_dict() for m in metrics],
            "size": size_of(metrics),
            "weighted_by": "num-examples",
            "unit": "client",
        }
        kept = dict(self.there.grid.taps)
        if without is not None:
            self.there.grid.taps[100 + without] = Tap(down=drop)
        with self.there.grid.time.for_strategies():
            source = PlanItem("measure", told)
            released = session.ask(self.there.grid, number, source, size_of(metrics))
        self.there.grid.taps.update(kept)
        return released

    @property
    def refusals(self):
        sent = [m.content.config_records for m in self.view.up if m.has_content()]
        told = [records.get(QSFL_RECORD) or {} for records in sent]
        return {str(one[REFUSED_KEY]) for one in told if REFUSED_KEY in one}


def part(client, metrics=RIGHT):
    return take(metrics, own(client))


def total(clients=range(CLIENTS)):
    return pytest.approx(np.sum([take(RIGHT, own(n)) for n in clients], axis=0).tolist())


def test_norms_of_evaluation_stay_closed():
    """The norm of a vector of one number is that number."""
    server = Server()
    assert server.ask(server.shared(enforce_norm=True), 1).sums is None
    assert server.refusals == {"policy-openings"}


@pytest.mark.parametrize("last", ["shared", "masked"])
def test_one_way_of_hiding_does_not_get_around_the_memory_of_the_other(last):
    """A committee does not know whom masks have added up, nor the other way round."""
    server = Server()
    sessions = [server.masked(), server.shared()]
    if last == "masked":
        sessions.reverse()
    whole = server.ask(sessions[0], 1)
    assert whole.sums.tolist() == total()
    assert server.ask(sessions[1], 2, without=5).sums is None
    assert server.refusals == {"policy-committee"}
    assert server.ask(sessions[0], 3).sums.tolist() == total()


def test_noise_that_hides_nothing_does_not_free_the_cohort():
    """Of one ten-thousandth of what a client can add, and, below, of a fitting size, too often."""
    server = Server()
    noise = DistributedDP(1e-4, CLIENTS, rounds=2)
    assert server.ask(server.shared(noise, bits=30, bound=3.0), 1).sums is None
    assert server.refusals == {"privacy-epsilon-too-large"}


def test_noise_does_not_average_out_over_many_questions():
    server = Server()
    session = server.shared(DistributedDP(0.15, CLIENTS, rounds=2), bound=60.0)
    assert server.ask(session, 1).clients == CLIENTS
    assert server.ask(session, 12, without=5).clients == CLIENTS - 1
    assert server.ask(session, 60).sums is None  # epsilon is 77 after two, 107 after three
    assert server.refusals == {"privacy-epsilon-too-large"}


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        # Every client is a group of its own.
        ((Metric(name="accuracy", by="num-examples", groups=256),), "policy-plan"),
        # A made-up model gives one client a large loss, and so all of the weight.
        ((Metric(name="accuracy", weighted_by="loss"),), "policy-weights"),
        (2 * RIGHT, "policy-plan"),
    ],
)
def test_exact_sums_do_not_single_out_a_client(metrics, reason):
    server = Server()
    assert server.ask(server.shared(), 1, metrics).sums is None
    assert server.refusals == {reason}


def test_exact_sums_within_ever_other_bounds_are_refused():
    """Their differences tell how many numbers lie between two bounds: all of them in the end."""
    server = Server()
    session = server.shared()
    assert server.ask(session, 1).sums.tolist() == total()
    lower = (Metric(name="right", kind="count", most=62.5),)
    assert server.ask(session, 2, lower).sums is None
    assert server.refusals == {"policy-second-answer"}
    assert server.ask(session, 3).sums.tolist() == total()


@pytest.mark.parametrize("kind", ["shared", "masked"])
@pytest.mark.parametrize("other", [{"clip": 0.49}, {"bound": 3.0}])
def test_exact_sums_of_what_is_clipped_ever_more_are_refused(kind, other):
    """Clipping on the way does what other bounds of a metric would do."""
    server = Server()
    assert server.ask(getattr(server, kind)(), 1).sums.tolist() == total()
    assert server.ask(getattr(server, kind)(**other), 2).sums is None
    assert server.refusals == {"policy-second-answer"}


def test_numbers_beyond_the_room_of_a_sum_do_not_tell_on_their_client():
    """Without clipping those of 63 and more, of 128, have no room: they alone could not answer."""
    server = Server()
    assert server.ask(server.masked(bound=0.49), 1).sums is None
    assert server.refusals == {"policy-plan"}
    assert not any(message.has_error() for message in server.view.up)
