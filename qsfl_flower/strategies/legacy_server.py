"""Run the server function of an older app (``server_fn``) with a strategy of the suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.serverapp import Grid, ServerApp

from qsfl_flower.errors import ConfigError
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.wire import from_record, numbers_only, to_record
from qsfl_flower.wire.keys import KEY_FOLDER


def legacy_server_app(
    server_fn: Callable[[Context], ServerAppComponents],
    strategy: Callable[..., StableFedAvg],
    **options: Any,
) -> ServerApp:
    """Make a ServerApp that does what ``ServerApp(server_fn=server_fn)`` did, by another strategy.

    The clients are older apps as well; their ClientApp needs `legacy_mod`.

    Parameters
    ----------
    server_fn : Callable[[Context], ServerAppComponents]
        The app's own. Number of rounds, time limit, initial parameters, ``evaluate_fn``,
        ``fraction_fit``, ``min_fit_clients`` and ``min_available_clients`` of what it returns are
        kept; metrics of the clients are averaged by examples, and evaluation on the clients is left
        to `options`.
    strategy : Callable[..., StableFedAvg]
        A strategy of the suite, such as `cross_silo`. If the run's configuration has ``qsfl-keys``,
        it gets that folder as `credentials`.
    **options
        Further arguments of `strategy`.

    Returns
    -------
    ServerApp
        To be put in the place of the app's own.

    Raises
    ------
    ConfigError
        When the app starts, if `server_fn` returns a strategy other than ``FedAvg``, no initial
        parameters, or a configuration that changes from round to round.

    Examples
    --------
    >>> from flwr.server import ServerAppComponents
    >>> def server_fn(context):  # the app's own
    ...     return ServerAppComponents()
    >>> app = legacy_server_app(server_fn, cross_silo, num_byzantine=1, clip_norm=5.0)
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        components = server_fn(context)
        old = _averaging(components)
        config = components.config or ServerConfig()
        if (parameters := old.initialize_parameters(SimpleClientManager())) is None:
            raise ConfigError("server_fn: FedAvg has no initial_parameters; give them to it")
        settings = {
            "fraction_train": old.fraction_fit,
            "min_train_nodes": old.min_fit_clients,
            "min_available_nodes": old.min_available_clients,
            **options,
        }
        if KEY_FOLDER in context.run_config:
            settings = {"credentials": str(context.run_config[KEY_FOLDER]), **settings}
        arrays = enumerate(parameters_to_ndarrays(parameters))
        strategy(**settings).start(
            grid,
            to_record({str(index): array for index, array in arrays}),
            num_rounds=config.num_rounds,
            timeout=config.round_timeout or 3600,
            evaluate_fn=_evaluation(old),
        )

    return app


def _averaging(components: ServerAppComponents) -> FedAvg:
    """Return the older strategy, if everything that it does can be carried over."""
    old = components.strategy
    if type(old) is not FedAvg:
        raise ConfigError(
            f"server_fn: the strategy is {type(old).__name__}; only flwr.server.strategy.FedAvg is "
            "carried over: return that, and give the rest as stages (ServerAdam, Robust, ...)"
        )
    for name in ("on_fit_config_fn", "on_evaluate_config_fn"):
        if getattr(old, name) is not None:
            raise ConfigError(
                f"server_fn: {name} is not carried over; clients find the round as 'server-round' "
                "in their config, and other values in the run's configuration"
            )
    return old


def _evaluation(old: FedAvg) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        named = from_record(arrays)
        parameters = ndarrays_to_parameters([named[str(index)] for index in range(len(named))])
        if (told := old.evaluate(server_round, parameters)) is None:
            return None
        loss, metrics = told
        return MetricRecord({"loss": float(loss), **numbers_only(metrics)})

    return evaluate
