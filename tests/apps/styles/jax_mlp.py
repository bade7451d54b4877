"""JAX: digits by a small network, whose parameters are a tree of arrays."""

import jax
import jax.numpy as jnp
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
    return jnp.asarray(x[rows] / 16, jnp.float32), jnp.asarray(y[rows])


def new_params():
    """The first weights."""
    one, two = jax.random.split(jax.random.PRNGKey(0))
    return {
        "hidden": {"w": 0.15 * jax.random.normal(one, (64, 32)), "b": jnp.zeros(32)},
        "out": {"w": 0.2 * jax.random.normal(two, (32, 10)), "b": jnp.zeros(10)},
    }


TREE = jax.tree.structure(new_params())


def scores(params, x):
    """What the network says."""
    hidden = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]


@jax.jit
def step(params, x, y):
    """One step downhill."""

    def loss(p):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores(p, x)), y[:, None], 1))

    value, slope = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, slope), value


def arrays_of(params):
    """The leaves of the tree."""
    return ArrayRecord([np.asarray(leaf) for leaf in jax.tree.leaves(params)])


def params_of(arrays):
    """The tree of these leaves."""
    return jax.tree.unflatten(TREE, [jnp.asarray(a) for a in arrays.to_numpy_ndarrays()])


@client.train()
def train(msg: Message, context: Context):
    """Train on one's own pictures."""
    node = context.node_config
    x, y = load(node["partition-id"], node["num-partitions"] + 1)
    params = params_of(msg.content["arrays"])
    for _ in range(20):
        params, loss = step(params, x, y)
    metrics = MetricRecord({"train_loss": float(loss), "num-examples": len(y)})
    return Message(RecordDict({"arrays": arrays_of(params), "metrics": metrics}), reply_to=msg)


@server.main()
def main(grid: Grid, context: Context):
    """Train together."""
    strategy = FedAvg()
    rounds, first = context.run_config["num-server-rounds"], arrays_of(new_params())
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    x, y = load(8, 9)
    right = scores(params_of(result.arrays), x).argmax(1) == y
    print(f"final accuracy {float(right.mean()):.4f}")
