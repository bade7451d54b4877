"""legacy: the server."""

from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from legacy_digits.task import init_params, load_test_data, test


def evaluate(server_round, parameters, config):
    """Evaluate the model on pictures that no client has."""
    loss, accuracy = test(parameters, *load_test_data())
    print(f"round {server_round}: accuracy {accuracy:.4f}")
    return loss, {"accuracy": accuracy}


def server_fn(context: Context):
    """Say how the server works."""
    strategy = FedAvg(
        fraction_evaluate=0.5,
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters(init_params()),
        evaluate_fn=evaluate,
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
