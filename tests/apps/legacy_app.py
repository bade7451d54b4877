"""A small app as users wrote it before the Message API; it knows nothing of the suite."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, step: float) -> None:
        self.step = step

    def fit(self, parameters, config):
        return [p + self.step for p in parameters], 10, {"train-loss": self.step}

    def evaluate(self, parameters, config):
        return float(sum(p.sum() for p in parameters)), 10, {}


def client_fn(context: Context):
    return Client(1.0 + int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)
