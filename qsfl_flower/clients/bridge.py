"""A ClientApp around a ``NumPyClient``, for strategies of Flower's Message API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.role_check import check_roles
from qsfl_flower.errors import QSFLError
from qsfl_flower.wire import (
    QSFL_RECORD,
    REFUSED_KEY,
    from_record,
    numbers_only,
    refusal,
)
from qsfl_flower.wire.arrays import to_mods

NUM_EXAMPLES = "num-examples"


def numpy_client_app(
    client_fn: Callable[[Context], NumPyClient], mods: list[Mod] | None = None
) -> ClientApp:
    """Make a ClientApp that trains and evaluates with a ``NumPyClient``.

    Unlike ``ClientApp(client_fn=...)`` it answers to Message-API strategies, and the parameters
    keep their names. A ``fit`` whose metrics contain the text ``refused`` refuses the round: the
    reply carries the reason and no arrays. If the client has a torch module as its `model`, the
    roles that the strategy tells are held against it, see `check_roles`.

    Parameters
    ----------
    client_fn : Callable[[Context], NumPyClient]
        Called for every message.
    mods : list[Mod], optional
        Flower mods; by default the suite's own, `qsfl_mod`.

    Returns
    -------
    ClientApp
        With a ``train`` and an ``evaluate`` function.

    Examples
    --------
    >>> from flwr.client import NumPyClient
    >>> class Mine(NumPyClient):
    ...     def fit(self, parameters, config):
    ...         return [array + 1 for array in parameters], 10, {"train-loss": 0.5}
    >>> app = numpy_client_app(lambda context: Mine())
    """
    app = ClientApp(mods=[qsfl_mod] if mods is None else mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        key, record = _model(message)
        client = client_fn(context)
        torch = sys.modules.get("torch")
        if torch and isinstance(model := getattr(client, "model", None), torch.nn.Module):
            check_roles(model)
        new, examples, metrics = client.fit(
            [np.array(a) for a in from_record(record).values()], _config(message)
        )
        if REFUSED_KEY in metrics:
            return Message(RecordDict({QSFL_RECORD: refusal(metrics)}), reply_to=message)
        if len(new) != len(record):
            raise QSFLError(f"fit returned {len(new)} arrays; the model has {len(record)}")
        arrays = to_mods(dict(zip(record, new, strict=True)))
        return Message(
            RecordDict({key: arrays, "metrics": _metrics(examples, metrics)}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        _, record = _model(message)
        loss, examples, metrics = client_fn(context).evaluate(
            [np.array(a) for a in from_record(record).values()], _config(message)
        )
        told = _metrics(examples, {"loss": float(loss), **metrics})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    return app


def _model(message: Message) -> tuple[str, ArrayRecord]:
    records = message.content.array_records
    if len(records) != 1:
        raise QSFLError(f"the instruction has {len(records)} ArrayRecords; expected one")
    return next(iter(records.items()))


def _config(message: Message) -> dict[str, Any]:
    return dict(next(iter(message.content.config_records.values()), {}))


def _metrics(examples: int, metrics: Mapping[str, Any]) -> MetricRecord:
    return MetricRecord({**numbers_only(metrics), NUM_EXAMPLES: examples})
