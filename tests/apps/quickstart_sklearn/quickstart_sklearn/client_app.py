"""quickstart-sklearn: the client."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from quickstart_sklearn.task import create_model, get_model_params, load_data, set_model_params

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Fit the model on local data."""
    config, node = context.run_config, context.node_config
    model = create_model(config["penalty-c"], config["local-epochs"])
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())
    x, y, _, _ = load_data(node["partition-id"], node["num-partitions"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few iterations do not converge
        model.fit(x, y)
    metrics = MetricRecord(
        {"train_loss": log_loss(y, model.predict_proba(x)), "num-examples": len(y)}
    )
    content = RecordDict({"arrays": ArrayRecord(get_model_params(model)), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the model on local data."""
    config, node = context.run_config, context.node_config
    model = create_model(config["penalty-c"], config["local-epochs"])
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())
    _, _, x, y = load_data(node["partition-id"], node["num-partitions"])
    metrics = MetricRecord(
        {
            "eval_loss": log_loss(y, model.predict_proba(x)),
            "eval_acc": model.score(x, y),
            "num-examples": len(y),
        }
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
