"""A small app as users write it for Flower's Message API; it knows nothing of the suite."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    step = 1.0 + int(context.node_config["partition-id"])
    arrays = ArrayRecord(
        {k: Array(np.asarray(a.numpy() + step)) for k, a in message.content["arrays"].items()}
    )
    metrics = MetricRecord({"num-examples": 10, "train-loss": step})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    loss = float(sum(np.sum(a.numpy()) for a in message.content["arrays"].values()))
    metrics = MetricRecord({"num-examples": 10, "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
