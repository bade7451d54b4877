"""A stock Flower client around numpy: every training adds a step that depends on the partition."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from qsfl_flower.clients import auth_mod, qsfl_mod

app = ClientApp(mods=[auth_mod(), qsfl_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add the step to every array, and give one value of each kind back."""
    step = 1.0 + int(context.node_config["partition-id"])
    arrays = ArrayRecord(
        {name: Array(array.numpy() + step) for name, array in message.content["arrays"].items()}
    )
    metrics = MetricRecord({"num-examples": 10, "train-loss": step, "history": [0.5, 0.25]})
    # Values of every kind: what is signed must be the same before and after the wire.
    echo = ConfigRecord({**message.content["config"], "list": [1, -2], "names": ["a", "ä"]})
    return Message(
        RecordDict({"arrays": arrays, "metrics": metrics, "echo": echo}), reply_to=message
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Call the sum of all parameters the loss."""
    loss = float(sum(np.sum(array.numpy()) for array in message.content["arrays"].values()))
    metrics = MetricRecord({"num-examples": 10, "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
