"""Server optimizers against Flower's own classes, over several rounds."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower

from qsfl_flower.errors import ConfigError
from qsfl_flower.stages import ServerAdam, ServerMomentum, ServerYogi
from qsfl_flower.strategies import FedAdam, FedAvgM, FedYogi

PAIRS = [
    (FedAvgM(server_learning_rate=0.7, server_momentum=0.9), flower.FedAvgM(
        server_learning_rate=0.7, server_momentum=0.9)),
    (FedAdam(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2), flower.FedAdam(
        eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2)),
    (FedYogi(eta=0.03), flower.FedYogi(eta=0.03)),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "peer"), PAIRS, ids=lambda x: type(x).__name__)
def test_equals_flowers_own_class(fake_grid, trained, ours, peer):
    """Flower works in the dtype of the arrays; with float64 arrays both agree to rounding."""
    start = ArrayRecord({"w": Array(np.linspace(-1, 1, 7)), "b": Array(np.zeros((2, 2)))})
    models = {"ours": start, "peer": start}
    rng = np.random.default_rng(4)
    for server_round in range(1, 6):
        steps = rng.normal(size=3)
        clients = {n: trained(float(s), 10 * (n + 1)) for n, s in enumerate(steps)}
        for name, strategy in (("ours", ours), ("peer", peer)):
            grid = fake_grid(clients)
            config = ConfigRecord()
            messages = list(strategy.configure_train(server_round, models[name], config, grid))
            grid.push_messages(messages)
            replies = grid.pull_messages([m.metadata.message_id for m in messages])
            models[name], _ = strategy.aggregate_train(server_round, replies)
        for key in ("w", "b"):
            np.testing.assert_allclose(
                models["ours"][key].numpy(), models["peer"][key].numpy(), rtol=1e-9, atol=1e-12
            )


def test_defaults_are_flowers():
    for ours, theirs in (
        (ServerAdam(), flower.FedAdam()),
        (ServerYogi(), flower.FedYogi()),
    ):
        for name in ("eta", "beta_1", "beta_2", "tau"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert ServerMomentum().server_learning_rate == flower.FedAvgM().server_learning_rate
    assert ServerMomentum().server_momentum == flower.FedAvgM().server_momentum


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ServerMomentum(server_momentum=1.0),
            "ServerMomentum: server_momentum is 1.0; it must be",
        ),
        (
            lambda: ServerMomentum(0.0),
            "ServerMomentum: server_learning_rate is 0.0; it must be a number > 0",
        ),
        (lambda: ServerAdam(tau=0.0), "ServerAdam: tau is 0.0; it must be a number > 0"),
        (lambda: ServerAdam(beta_1=-0.1), "ServerAdam: beta_1 is -0.1"),
        (lambda: ServerYogi(beta_2=float("nan")), "ServerYogi: beta_2 is nan"),
        (lambda: ServerYogi(eta=float("inf")), "ServerYogi: eta is inf"),
        (lambda: FedAdam(eta_l=0.1), "eta_l is the clients' step size"),
        (lambda: FedAdam(stages=[FedYogi()]), "is not a stage"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
