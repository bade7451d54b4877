"""What lets a node answer questions about its table, hidden and noisy or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.clients.tables import checked, read_table
from qsfl_flower.errors import ConfigError, DataError, Refusal
from qsfl_flower.mechanisms.analytics.client import Opened, opening
from qsfl_flower.mechanisms.analytics.options import CANDIDATE, CURRENT, DIFFERENCE
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.node.steps import refuse
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.wire import from_record

TABLE_FILE = "qsfl-table"
"""Entry of the node's configuration that names the table."""

HIDDEN = ("distributed", "distributed-record")
"""Placements in which nobody but the client sees its sums without noise."""

Table = Callable[[Context, Mapping[str, type]], Mapping[str, NDArray[Any]]]
Score = Callable[[Mapping[str, NDArray[Any]], Context], NDArray[Any]]


def answered_by_mods(message: Message, context: Context) -> Message:
    """Stand for what `qsfl_mod` answers: Flower looks for a function before it runs the mods."""
    del context
    refused = Refusal("policy-questions", "no mod of this app answers questions")
    return refuse(refused, message)


class table_mod(policy_mod):
    """Answer questions about a table, beside whatever the app is for.

    Put it before `qsfl_mod`, and register `answered_by_mods`, without which Flower runs no mod:
    ``app.query("analytics")(answered_by_mods)``.

    Questions are answered only under a secure sum, and only if every client of the sum adds noise
    that keeps all answers of the run within `privacy`; with ``days`` in the table ``analytics`` of
    the node's policy file that counts over all runs. Training is as it was.

    Parameters
    ----------
    privacy : MinimumPolicy
        The most that all answers together may cost; `placements` is narrowed to `HIDDEN`.
    table : Callable, optional
        Takes Flower's context and the columns that are needed, and returns them; by default they
        are read from the file that ``qsfl-table`` in the node's configuration names.
    columns : collection of str, optional
        Columns that may be asked for; by default all.
    least_cohort : int
        Fewest clients in a sum, >= 2.

    Notes
    -----
    Who sees what: nobody sees the table. The server and the analyst see sums over at least
    `least_cohort` clients with noise, who took part, and that a client could not read its table.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr.clientapp import ClientApp
    >>> from qsfl_flower.clients.analytics import answered_by_mods
    >>> from qsfl_flower.privacy.policy import MinimumPolicy
    >>> def table(context, needs):
    ...     return {"age": np.array([31.0, 54.0])}
    >>> mod = table_mod(MinimumPolicy(epsilon=1.0), table, columns=["age"])
    >>> app = ClientApp(mods=[auth_mod(), mod, qsfl_mod])
    >>> handler = app.query("analytics")(answered_by_mods)
    """

    def __init__(
        self,
        privacy: MinimumPolicy,
        table: Table | None = None,
        *,
        columns: Collection[str] | None = None,
        least_cohort: int = 3,
    ) -> None:
        hidden = tuple(p for p in privacy.placements if p in HIDDEN)
        # Sums of counts need few bits behind the point; their noise is sized for the grid.
        own = NodePolicy(
            privacy=replace(privacy, placements=hidden),
            hidden_only=True,
            least_cohort=least_cohort,
            least_bits=1,
        )
        super().__init__(NodePolicy(analytics=own))
        self._table, self._columns = table, columns

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Open the table while the message is handled."""
        read = partial(self._read, message, context)
        with opening(Opened(read, self._columns)):
            return super().__call__(message, context, call_next)

    def _read(
        self, message: Message, context: Context, needs: Mapping[str, type]
    ) -> Mapping[str, NDArray[Any]]:
        del message
        if self._table is not None:
            return checked(self._table(context, needs), needs, "the table")
        path = context.node_config.get(TABLE_FILE)
        if not isinstance(path, str) or not Path(path).is_absolute():
            raise ConfigError(
                f"node config: {TABLE_FILE} is {path!r}; give the absolute path of a table"
            )
        return read_table(Path(path), needs)


class comparison_mod(table_mod):
    """Score two models on this node's records; only a noisy sum of the differences leaves.

    Parameters
    ----------
    privacy, least_cohort
        As for `table_mod`.
    score : Callable
        Takes a model's arrays and Flower's context, and returns a score for each record, always in
        one order: 1 or 0 for right or wrong, or a loss with its sign changed. A difference that is
        no number counts as 0: a model made so that some records have none would tell, by a client
        that does not answer, whether it has such records. For the same reason it must not raise.

    Notes
    -----
    Who sees what: as `table_mod`; a score of a record stays on the node.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr.clientapp import ClientApp
    >>> from qsfl_flower.clients.analytics import answered_by_mods, comparison_mod
    >>> from qsfl_flower.privacy.policy import MinimumPolicy
    >>> x, y = np.array([[1.0], [2.0]]), np.array([0, 1])
    >>> def score(arrays, context):
    ...     return (x @ arrays["w"] > 1.5) == y
    >>> mod = comparison_mod(MinimumPolicy(epsilon=1.0), score)
    >>> app = ClientApp(mods=[auth_mod(), mod, qsfl_mod])
    >>> handler = app.query("analytics")(answered_by_mods)
    """

    def __init__(self, privacy: MinimumPolicy, score: Score, *, least_cohort: int = 3) -> None:
        super().__init__(privacy, columns=[DIFFERENCE], least_cohort=least_cohort)
        self._score = score

    def _read(
        self, message: Message, context: Context, needs: Mapping[str, type]
    ) -> Mapping[str, NDArray[Any]]:
        models = message.content.array_records
        if not {CURRENT, CANDIDATE} <= models.keys():
            raise ConfigError(f"a comparison comes with the models {CURRENT} and {CANDIDATE}")
        new, old = (
            np.asarray(self._score(from_record(models[name]), context), np.float64)
            for name in (CANDIDATE, CURRENT)
        )
        if new.shape != old.shape:
            raise DataError(
                f"the scores have the shapes {new.shape} and {old.shape}; they must agree"
            )
        with np.errstate(invalid="ignore", over="ignore"):
            found = np.nan_to_num(new - old, nan=0.0)
        return checked({DIFFERENCE: found}, needs, "the scores")


def analytics_app(
    privacy: MinimumPolicy,
    table: Table | None = None,
    *,
    mods: list[Mod] | None = None,
    **options: Any,
) -> ClientApp:
    """Make a ClientApp that answers questions about a table and does nothing else.

    Parameters
    ----------
    privacy, table, **options
        As for `table_mod`.
    mods : list[Mod], optional
        What comes before the suite's own mods: ``[auth_mod()]``.

    Notes
    -----
    Who sees what: as `table_mod`.

    Examples
    --------
    >>> from qsfl_flower.privacy.policy import MinimumPolicy
    >>> app = analytics_app(MinimumPolicy(epsilon=1.0), columns=["age"], mods=[auth_mod()])
    """
    app = ClientApp(mods=[*(mods or []), table_mod(privacy, table, **options), qsfl_mod])
    app.query("analytics")(answered_by_mods)
    return app
