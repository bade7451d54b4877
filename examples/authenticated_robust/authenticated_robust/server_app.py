"""The server: counts enrolled clients only, and selects updates by Multi-Krum."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from authenticated_robust.task import accuracy, load_test_data, new_model
from qsfl_flower.stages import Robust
from qsfl_flower.strategies import AuthenticatedFedAvg, ClientRow, RoundRecord, RunObserver

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model with all clients, of whom two may send anything."""
    strategy = AuthenticatedFedAvg(
        fraction_evaluate=0.0,
        credentials=str(context.run_config["qsfl-keys"]),
        encrypt=True,  # what clients send is secret on its way to the server
        stages=[Robust("multi_krum", num_byzantine=2)],
        observer=Selected(),
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    last = max(result.evaluate_metrics_serverapp)
    print(f"final accuracy {result.evaluate_metrics_serverapp[last]['accuracy']:.4f}")


class Selected(RunObserver):
    """Prints whose updates each round is made of."""

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Print one line."""
        names = [row.client for row in clients if row.status == "accepted"]
        print(f"round {record.round}: {', '.join(sorted(names))}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the model on pictures that no client has."""
    return MetricRecord({"accuracy": accuracy(arrays.to_numpy_ndarrays(), *load_test_data())})
