"""The server: averages models that were trained privately, and refuses those that were not."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.clients.trainer import evaluate_model
from qsfl_flower.stages import RecordDP
from qsfl_flower.strategies import ClientRow, PrivacyBudget, RoundRecord, RunObserver, StableFedAvg
from record_privacy.task import DELTA, new_model, privacy_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model with all clients."""
    rounds = int(context.run_config["num-server-rounds"])
    epsilon = float(context.run_config["epsilon"])
    privacy, budget = privacy_of(epsilon, rounds), PrivacyBudget(epsilon=epsilon, delta=DELTA)
    torch.manual_seed(0)
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        stages=[RecordDP(privacy, budget, rounds=rounds)],
        observer=Spent(),
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model().state_dict()),
        num_rounds=rounds,
        evaluate_fn=evaluate,
    )
    last = max(result.evaluate_metrics_serverapp)
    print(f"final accuracy {result.evaluate_metrics_serverapp[last]['accuracy']:.4f}")


class Spent(RunObserver):
    """Prints what the rounds so far cost every picture."""

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Print one line."""
        if record.epsilon is not None:
            print(f"round {record.round}: epsilon {record.epsilon:.2f}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test the model on public pictures."""
    model, data = new_model(), load_dataset("digits")
    model.load_state_dict(arrays.to_torch_state_dict())
    _, accuracy = evaluate_model(model, data.x_test, data.y_test, data.normalization)
    return MetricRecord({"accuracy": accuracy})
