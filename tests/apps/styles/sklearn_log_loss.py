"""scikit-learn, with the log loss among the metrics: wine from measurements, by name."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

client = ClientApp()
server = ServerApp()


def load(part, parts):
    """One client's records; the last part is the server's."""
    x, y = load_wine(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[part::parts]
    return StandardScaler().fit_transform(x[rows]), y[rows]


def model_of(arrays):
    """A regression that goes on from these arrays."""
    model = LogisticRegression(max_iter=20, warm_start=True)
    model.classes_ = np.arange(3)
    model.coef_, model.intercept_ = arrays.to_numpy_ndarrays()
    return model


def arrays_of(model):
    """The two arrays of a regression."""
    return ArrayRecord([model.coef_, model.intercept_])


@client.train()
def train(msg: Message, context: Context):
    """Fit on local records."""
    node = context.node_config
    model = model_of(msg.content["arrays"])
    x, y = load(node["partition-id"], node["num-partitions"] + 1)
    model.fit(x, y)
    logloss = log_loss(y, model.predict_proba(x), labels=model.classes_)
    metrics = MetricRecord({"train_logloss": logloss, "num-examples": len(y)})
    return Message(RecordDict({"arrays": arrays_of(model), "metrics": metrics}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Fit together."""
    strategy = FedAvg()
    first = ArrayRecord([np.zeros((3, 13)), np.zeros(3)])
    rounds = context.run_config["num-server-rounds"]
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model = model_of(result.arrays)
    x, y = load(8, 9)
    loss = log_loss(y, model.predict_proba(x), labels=model.classes_)
    print(f"final log loss {loss:.4f}\nfinal accuracy {model.score(x, y):.4f}")
