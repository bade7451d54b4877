"""The client: trains on its own pictures."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from qsfl_flower.clients import auth_mod, qsfl_mod
from secure_sum.task import load_data, train

app = ClientApp(mods=[auth_mod(), qsfl_mod])


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the model, and return it whole."""
    node = context.node_config
    x, y = load_data(int(node["partition-id"]), int(node["num-partitions"]))
    model = message.content["arrays"].to_numpy_ndarrays()
    trained = train(model, x, y, float(context.run_config["learning-rate"]))
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(content), reply_to=message)
