"""XGBoost: bagging of boosted trees, whose model is the bytes of a file."""

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedXgbBagging
from sklearn.datasets import load_breast_cancer

client = ClientApp()
server = ServerApp()

PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3, "nthread": 1}


def load(part, parts):
    """One client's records."""
    x, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[part::parts]
    return xgb.DMatrix(x[rows], label=y[rows])


@client.train()
def train(msg: Message, context: Context):
    """Grow one more tree."""
    node, booster = context.node_config, None
    data = load(node["partition-id"], node["num-partitions"] + 1)
    model = bytearray(msg.content["arrays"]["0"].numpy().tobytes())
    if model:
        booster = xgb.Booster(params=PARAMS)
        booster.load_model(model)
        booster.update(data, booster.num_boosted_rounds())
        booster = booster[booster.num_boosted_rounds() - 1 : booster.num_boosted_rounds()]
    else:
        booster = xgb.train(PARAMS, data, num_boost_round=1)
    trees = np.frombuffer(bytes(booster.save_raw("json")), dtype=np.uint8)
    metrics = MetricRecord({"num-examples": data.num_row()})
    content = RecordDict({"arrays": ArrayRecord([trees]), "metrics": metrics})
    return Message(content, reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Grow a forest together."""
    strategy = FedXgbBagging(fraction_evaluate=0.0)
    first = ArrayRecord([np.frombuffer(b"", dtype=np.uint8)])
    rounds = context.run_config["num-server-rounds"]
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    booster = xgb.Booster(params=PARAMS)
    booster.load_model(bytearray(result.arrays["0"].numpy().tobytes()))
    data = load(8, 9)
    right = (booster.predict(data) > 0.5) == data.get_label()
    print(f"final accuracy {right.mean():.4f}")
