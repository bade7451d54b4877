"""The client: trains by DP-SGD, and takes part only if epsilon is at most 4."""

from flwr.app import Context
from flwr.client import NumPyClient

from qsfl_flower.clients import (
    PrivateTrainingClient,
    TrainConfig,
    numpy_client_app,
    privacy_mod,
    qsfl_mod,
)
from qsfl_flower.privacy.policy import MinimumPolicy
from record_privacy.task import DELTA, load_data, new_model, privacy_of

LEAST = MinimumPolicy(epsilon=4.0, delta=DELTA, placements=("record",))


def client_fn(context: Context) -> NumPyClient:
    """Return the client of one partition."""
    config, partition = context.run_config, int(context.node_config["partition-id"])
    return PrivateTrainingClient(
        new_model(),
        load_data(partition, int(context.node_config["num-partitions"])),
        TrainConfig(learning_rate=0.5),
        privacy_of(float(config["epsilon"]), int(config["num-server-rounds"])),
        seed=1,
        client_id=partition,
    )


app = numpy_client_app(client_fn, mods=[privacy_mod(LEAST), qsfl_mod])
