"""legacy: a network of one hidden layer in numpy, and its data."""

import numpy as np
from sklearn.datasets import load_digits


def init_params():
    """The first weights."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(0, 0.15, (64, 32)).astype(np.float32),
        np.zeros(32, np.float32),
        rng.normal(0, 0.2, (32, 10)).astype(np.float32),
        np.zeros(10, np.float32),
    ]


def forward(params, x):
    """Hidden activations and probabilities."""
    w1, b1, w2, b2 = params
    hidden = np.maximum(x @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, exp / exp.sum(axis=1, keepdims=True)


def train(params, x, y, epochs, lr):
    """Train by stochastic gradient descent, and return the new weights."""
    params = [p.copy() for p in params]
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(y)), max(1, len(y) // 16)):
            hidden, slope = forward(params, x[rows])
            slope[np.arange(len(rows)), y[rows]] -= 1
            slope /= len(rows)
            back = (slope @ params[2].T) * (hidden > 0)
            gradients = (x[rows].T @ back, back.sum(0), hidden.T @ slope, slope.sum(0))
            for param, gradient in zip(params, gradients, strict=True):
                param -= lr * gradient.astype(np.float32)
    return params


def test(params, x, y):
    """Return loss and accuracy."""
    _, p = forward(params, x)
    loss = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
    return float(loss), float((p.argmax(1) == y).mean())


def load_all():
    """Pictures and labels in a fixed random order."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return (x[order] / 16).astype(np.float32), y[order]


def load_data(partition_id, num_partitions):
    """One client's training and test pictures."""
    x, y = (values[300:][partition_id::num_partitions] for values in load_all())
    cut = len(y) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def load_test_data():
    """300 pictures that no client has."""
    x, y = load_all()
    return x[:300], y[:300]
