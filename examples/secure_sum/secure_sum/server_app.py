"""The server: averages the clients' models and tests the average."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from qsfl_flower.strategies import SecureFedAvg
from secure_sum.task import accuracy, load_test_data, new_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model with all clients."""
    strategy = SecureFedAvg(fraction_evaluate=0.0, credentials=context.run_config["qsfl-keys"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    last = max(result.evaluate_metrics_serverapp)
    print(f"final accuracy {result.evaluate_metrics_serverapp[last]['accuracy']:.4f}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the model on pictures that no client has."""
    return MetricRecord({"accuracy": accuracy(arrays.to_numpy_ndarrays(), *load_test_data())})
