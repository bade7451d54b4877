"""legacy: the client."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context

from legacy_digits.task import load_data, test, train


class DigitsClient(NumPyClient):
    """Trains and evaluates on local data."""

    def __init__(self, data, epochs, lr):
        self.x_train, self.y_train, self.x_test, self.y_test = data
        self.epochs, self.lr = epochs, lr

    def fit(self, parameters, config):
        params = train(parameters, self.x_train, self.y_train, self.epochs, self.lr)
        loss, _ = test(params, self.x_train, self.y_train)
        return params, len(self.y_train), {"train_loss": loss}

    def evaluate(self, parameters, config):
        loss, accuracy = test(parameters, self.x_test, self.y_test)
        return loss, len(self.y_test), {"accuracy": accuracy}


def client_fn(context: Context):
    """Make the client of one partition."""
    data = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    config = context.run_config
    return DigitsClient(data, config["local-epochs"], config["learning-rate"]).to_client()


app = ClientApp(client_fn=client_fn)
