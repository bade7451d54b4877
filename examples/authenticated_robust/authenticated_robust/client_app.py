"""The client: trains on its own pictures, unless it is one of the attackers."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from authenticated_robust.task import load_data, train
from qsfl_flower.clients import auth_mod, qsfl_mod

app = ClientApp(mods=[auth_mod(), qsfl_mod])


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the model; the first `attackers` clients return its negation, ten times as large."""
    config, partition = context.run_config, int(context.node_config["partition-id"])
    x, y = load_data(partition, int(context.node_config["num-partitions"]))
    model = message.content["arrays"].to_numpy_ndarrays()
    trained = train(model, x, y, float(config["learning-rate"]))
    if partition < int(config["attackers"]):
        trained = [-10 * array for array in trained]
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(content), reply_to=message)
