"""The same client as it was written before the Message API."""

from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

from qsfl_flower.clients import auth_mod, legacy_mod, qsfl_mod


class Adder(NumPyClient):
    """Every training adds a step."""

    def __init__(self, step: float) -> None:
        self.step = step

    def fit(self, parameters, config):
        """Add the step to every array."""
        return [array + self.step for array in parameters], 10, {"train-loss": self.step}

    def evaluate(self, parameters, config):
        """Call the sum of all parameters the loss."""
        return float(sum(array.sum() for array in parameters)), 10, {}


def client_fn(context: Context) -> Client:
    """Make the client of one partition."""
    return Adder(1.0 + int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn, mods=[auth_mod(), qsfl_mod, legacy_mod])
