"""Keras on TensorFlow: digits by convolutions and batch norm, weights as a list without names."""

import keras
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits

client = ClientApp()
server = ServerApp()


def load(part, parts):
    """One client's pictures."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[part::parts]
    return (x[rows] / 16).reshape(-1, 8, 8, 1).astype("float32"), y[rows]


def load_model():
    """A small convolutional network."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@client.train()
def train(msg: Message, context: Context):
    """Train on one's own pictures."""
    node = context.node_config
    x, y = load(node["partition-id"], node["num-partitions"] + 1)
    model = load_model()
    model.set_weights(msg.content["arrays"].to_numpy_ndarrays())
    history = model.fit(x, y, epochs=4, batch_size=32, verbose=0).history
    metrics = {"train_loss": history["loss"][-1], "train_acc": history["accuracy"][-1]}
    record = MetricRecord({**metrics, "num-examples": len(y)})
    arrays = ArrayRecord(model.get_weights())
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Train together."""
    model = load_model()
    strategy = FedAvg()
    rounds, first = context.run_config["num-server-rounds"], ArrayRecord(model.get_weights())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    model.set_weights(result.arrays.to_numpy_ndarrays())
    _, accuracy = model.evaluate(*load(8, 9), verbose=0)
    print(f"final accuracy {accuracy:.4f}")
