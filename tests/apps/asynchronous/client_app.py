"""A stock Flower client around numpy; the client of partition 3 is late with its first answer."""

import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add a step that depends on the partition, and leave a trace of having worked."""
    partition = int(context.node_config["partition-id"])
    trace = Path(str(context.run_config["output"])) / f"worked-{partition}"
    first = not trace.exists()
    with trace.open("a") as file:
        file.write("x")
    if partition == 3 and first:
        time.sleep(float(context.run_config["late-by"]))
    arrays = {
        name: Array(array.numpy() + 1.0 + partition)
        for name, array in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": 10, "partition": partition})
    return Message(
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )
