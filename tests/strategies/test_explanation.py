"""What a chain says of itself: bytes as they are measured, and no silence about gaps."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.client import NumPyClient

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.privacy.server import LocalDP
from qsfl_flower.numerics import Layout
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.events import Event
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.explanation import explain
from qsfl_flower.rounds.facts import Topic
from qsfl_flower.stages import Authenticate, MaskedSum, SecureKrum, SecureSum, Validate
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.strategies.checks import arguments_of
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import content_bytes
from tests.strategies.support import NAMES, keys, stages_of

SIZE = 60_000
LAYOUT = Layout(("0",), ((SIZE,),), ("float32",))
ENCODERS = ("clip", "compress", "shared_mask", "secure_sum", "secure_krum", "masked_sum")


class Noise(NumPyClient):
    def fit(self, parameters, config):
        noise = np.random.default_rng(config["server-round"]).normal(0, 1e-3, SIZE)
        return [parameters[0] + noise.astype(np.float32)], 100, {"train-loss": 1.0}


class Scales(LocalGrid):
    """Weighs everything that the last client sends, which is no member of a committee."""

    bytes_up = 0

    def pull_messages(self, message_ids):
        pulled = super().pull_messages(message_ids)
        own = [m for m in pulled if m.metadata.src_node_id == 7 and m.has_content()]
        self.bytes_up += sum(content_bytes(message.content) for message in own)
        return pulled


def explained(*names, **arguments):
    stages = [Validate(), *stages_of(names)]
    chain = Chain(stages, arguments_of(None, **arguments))
    support = SIZE // 2 if "shared_mask" in names else None
    return explain(chain, LAYOUT, 10, 7, support)


@pytest.mark.parametrize("name", [*ENCODERS, "shared_mask+secure_sum", "shared_mask+masked_sum"])
def test_bytes_are_those_of_the_messages(name):
    names = name.split("+")
    made, roster = keys()

    def credentials(context):
        return Credentials(made.clients[NAMES[int(context.node_config["partition-id"])]], roster)

    stages = stages_of(names)
    signed = any(stage.name == "authenticate" for stage in stages)
    mods = [auth_mod(credentials), qsfl_mod] if signed else [qsfl_mod]
    app = numpy_client_app(lambda context: Noise(), mods=mods)
    strategy = StableFedAvg(fraction_evaluate=0.0, stages=stages, min_available_nodes=7)
    start = ArrayRecord({"0": Array(np.zeros(SIZE, np.float32))})
    grid = Scales(app, 7)
    strategy.start(grid, start, 1, timeout=30)
    told = explained(*names).bytes_up
    assert 0.95 * told <= grid.bytes_up <= 1.05 * told + 12_000


def test_hidden_updates_are_not_said_to_be_seen():
    server = explained("secure_sum").sentences[Topic.SERVER]
    assert not [s for s in server if s.startswith("every client's update")]
    assert [s for s in explained().sentences[Topic.SERVER] if s.startswith("every client's update")]
    assert Topic.MEMBER in explained("secure_krum").sentences
    assert Topic.MEMBER not in explained("masked_sum").sentences
    apart = [s for s in explained("secure_krum").sentences[Topic.SERVER] if "how far apart" in s]
    assert apart
    assert not [s for s in server if "how far apart" in s]
    assert "how fast each client is" in explained(asynchronous=True).sentences[Topic.SERVER]


SUMS = {
    "secure_sum": lambda server: SecureSum(2.0),
    "secure_krum": lambda server: SecureKrum(2.0, 1),
    "masked_sum": lambda server: MaskedSum(server, bound=8.0),
}


@pytest.mark.parametrize("name", SUMS)
def test_no_sum_is_announced_of_metrics_that_stay_on_the_devices(name):
    made, roster = keys()
    server = Credentials(made.server, roster)
    for others, seen in (([], True), (stages_of(["record_dp"]), False)):
        chain = Chain([Authenticate(server), *others, SUMS[name](server)])
        told = " ".join(explain(chain, LAYOUT, 10, 7).sentences[Topic.SERVER])
        assert ("train-loss" in told) == seen
        assert "one sum a round" in told


@pytest.mark.parametrize(
    ("names", "gone"),
    [
        ((), ()),
        (("authenticate",), ("impostors",)),
        (("secure_sum",), ("impostors", "curious server")),
        (("robust",), ("poison the model together",)),
        (("secure_krum",), ("impostors", "curious server", "poison the model together")),
        (("record_dp",), ("membership",)),
        (("local_dp",), ("membership", "curious server")),
    ],
)
def test_gaps_are_named_until_something_closes_them(names, gone):
    gaps = " ".join(explained(*names).sentences[Topic.GAPS])
    for gap in ("impostors", "curious server", "poison the model together", "membership"):
        assert (gap not in gaps) == (gap in gone)
    assert "looks like honest updates" in gaps


def test_epsilon_is_the_accountants():
    (told,) = explain(Chain([LocalDP(1.0, 30.0)]), LAYOUT, 10, 7).sentences[Topic.PRIVACY]
    epsilon = Accountant([Event(30.0, 1.0, 10)]).epsilon(1e-5)
    assert told.startswith(f"({epsilon:.3g}, 1e-05)-DP for one client")
