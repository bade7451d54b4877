"""A loop of the app's own over messages, without a strategy: a straight line by least squares."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()

TRUE = np.array([2.0, -1.0, 0.5])


@client.train()
def train(msg: Message, context: Context):
    """Take ten steps downhill on points of one's own."""
    rng = np.random.default_rng(context.node_config["partition-id"])
    x = rng.normal(size=(50, 3))
    y = x @ TRUE + rng.normal(scale=0.1, size=50)
    w = msg.content["arrays"]["w"].numpy().copy()
    for _ in range(10):
        w -= msg.content["config"]["lr"] * x.T @ (x @ w - y) / len(y)
    metrics = MetricRecord({"num-examples": len(y)})
    content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": metrics}
    return Message(RecordDict(content), reply_to=msg)


def average(replies):
    """The mean of the clients' models."""
    models = [r.content["arrays"]["w"].numpy() for r in replies if r.has_content()]
    return ArrayRecord({"w": Array(np.mean(models, axis=0))})


@server.main()
def main(grid: Grid, context: Context):
    """Ask all nodes, round by round."""
    arrays, config = ArrayRecord({"w": Array(np.zeros(3))}), ConfigRecord({"lr": 0.1})
    for server_round in range(1, context.run_config["num-server-rounds"] + 1):
        content = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = grid.send_and_receive(messages)
        arrays = average(replies)
        print(f"round {server_round}")
    away = np.linalg.norm(arrays["w"].numpy() - TRUE) / np.linalg.norm(TRUE)
    print(f"final accuracy {1 - away:.4f}")
