"""A ClientApp that answers questions about the node's table, hidden and noisy or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.clients.tables import checked, read_table
from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.analytics.client import answer
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.node.steps import refuse
from qsfl_flower.privacy.policy import MinimumPolicy

TABLE_FILE = "qsfl-table"
"""Entry of the node's configuration that names the table."""

HIDDEN = ("distributed", "distributed-record")
"""Placements in which nobody but the client sees its sums without noise."""

Table = Callable[[Context, Mapping[str, type]], Mapping[str, NDArray[Any]]]


def analytics_app(
    privacy: MinimumPolicy,
    table: Table | None = None,
    *,
    columns: Collection[str] | None = None,
    least_cohort: int = 3,
    mods: list[Mod] | None = None,
) -> ClientApp:
    """Make a ClientApp for `FederatedAnalytics`.

    It answers only under a secure sum, and only if every client of the sum adds noise that keeps
    the run within `privacy`. With ``days`` in the node's policy file that counts over all runs.

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
    mods : list[Mod], optional
        What comes before the suite's own mods: ``[auth_mod()]``.

    Notes
    -----
    Who sees what: nobody sees the table. The server and the analyst see sums over at least
    `least_cohort` clients with noise, who took part, and that a client could not read its table.

    Examples
    --------
    >>> import numpy as np
    >>> from qsfl_flower.privacy.policy import MinimumPolicy
    >>> app = analytics_app(
    ...     MinimumPolicy(epsilon=1.0),
    ...     lambda context, needs: {"age": np.array([31.0, 54.0])},
    ...     columns=["age"],
    ...     mods=[auth_mod()],
    ... )
    """
    own = MinimumPolicy(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        placements=tuple(p for p in privacy.placements if p in HIDDEN),
    )
    # Sums of counts need few bits behind the point; their noise is sized for the grid.
    policy = NodePolicy(privacy=own, hidden_only=True, least_cohort=least_cohort, least_bits=1)
    app = ClientApp(mods=[*(mods or []), policy_mod(policy), qsfl_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def read(needs: Mapping[str, type]) -> Mapping[str, NDArray[Any]]:
            if table is not None:
                return checked(table(context, needs), needs, "the table")
            path = context.node_config.get(TABLE_FILE)
            if not isinstance(path, str) or not Path(path).is_absolute():
                raise ConfigError(
                    f"node config: {TABLE_FILE} is {path!r}; give the absolute path of a table"
                )
            return read_table(Path(path), needs)

        try:
            return answer(message, read, columns)
        except Refusal as refused:
            return refuse(refused, message)

    return app
