"""quickstart-sklearn: model and data."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


def create_model(penalty_c: float, local_epochs: int) -> LogisticRegression:
    """A logistic regression that goes on from where it is."""
    model = LogisticRegression(C=penalty_c, max_iter=local_epochs, warm_start=True)
    model.classes_ = np.arange(10)
    set_model_params(model, [np.zeros((10, 64)), np.zeros(10)])
    return model


def get_model_params(model: LogisticRegression) -> list[np.ndarray]:
    """Coefficients and intercepts."""
    return [model.coef_, model.intercept_]


def set_model_params(model: LogisticRegression, params: list[np.ndarray]) -> None:
    """Set coefficients and intercepts."""
    model.coef_, model.intercept_ = params


def load_all() -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels in a fixed random order."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order] / 16, y[order]


def load_data(partition_id: int, num_partitions: int):
    """One client's training and test pictures."""
    x, y = (values[300:][partition_id::num_partitions] for values in load_all())
    cut = len(y) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def load_test_data():
    """300 pictures that no client has."""
    x, y = load_all()
    return x[:300], y[:300]
