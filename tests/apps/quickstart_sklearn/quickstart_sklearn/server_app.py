"""quickstart-sklearn: the server."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import log_loss

from quickstart_sklearn.task import (
    create_model,
    get_model_params,
    load_test_data,
    set_model_params,
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Fit a model with everybody's help."""
    model = create_model(context.run_config["penalty-c"], context.run_config["local-epochs"])
    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_model_params(model)),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    final = global_evaluate(context.run_config["num-server-rounds"], result.arrays)
    print(f"final accuracy {final['accuracy']:.4f}")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the model on pictures that no client has."""
    model = create_model(1.0, 1)
    set_model_params(model, arrays.to_numpy_ndarrays())
    x, y = load_test_data()
    loss = log_loss(y, model.predict_proba(x))
    return MetricRecord({"loss": loss, "accuracy": model.score(x, y)})
