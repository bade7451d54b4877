"""Arguments of a strategy: which numbers are allowed, and which of them matter to the stages."""

from __future__ import annotations

from collections.abc import Mapping

from qsfl_flower.asynchrony import Selection
from qsfl_flower.errors import ConfigError
from qsfl_flower.rounds.composition import Argument, Trait
from qsfl_flower.rounds.policies import Policy


def check_numbers(
    shares: Mapping[str, float],
    at_least: Mapping[str, tuple[float, float]],
    positive: Mapping[str, float | None],
) -> None:
    """Check arguments by name.

    Parameters
    ----------
    shares : Mapping[str, float]
        Must be in [0, 1].
    at_least : Mapping[str, tuple[float, float]]
        Value and its smallest allowed one.
    positive : Mapping[str, float or None]
        Must be > 0 if given.

    Raises
    ------
    ConfigError
        With the name, the value and what is allowed.
    """
    for name, value in shares.items():
        _require(0 <= value <= 1, name, value, "in [0, 1]")
    for name, (value, least) in at_least.items():
        _require(value >= least, name, value, f">= {least:g}")
    for name, given in positive.items():
        _require(given is None or given > 0, name, given, "> 0")


def arguments_of(
    selection: Selection | None,
    *,
    own_metrics: bool = False,
    legacy: bool = False,
    fraction_evaluate: float = 0.0,
    over_selection: float = 0.0,
    asynchronous: bool = False,
) -> list[Argument]:
    """Return the arguments that matter to the stages.

    Parameters
    ----------
    selection : Selection, optional
        How clients are drawn.
    own_metrics : bool
        Whether a function of the user's reads the training replies.
    legacy : bool
        Whether the clients are apps without mods.
    fraction_evaluate : float
        Share of the clients that evaluate.
    over_selection : float
        Share of the clients that is asked for nothing but the cut-off.
    asynchronous : bool
        Whether updates to different models are combined.
    """
    found = [
        (own_metrics, "train_metrics_aggr_fn", Trait.READS_REPLIES),
        (legacy, "client_api = legacy", Trait.WITHOUT_MOD),
        (fraction_evaluate > 0, f"fraction_evaluate = {fraction_evaluate:g}", Trait.TELLS_SINGLY),
        (over_selection > 0, f"over_selection = {over_selection:g}", Trait.CUTS_OFF),
        (asynchronous, "asynchronous rounds", Trait.OVERLAPS_VERSIONS),
    ]
    arguments = [Argument(name, frozenset({trait})) for given, name, trait in found if given]
    if selection is not None:
        traits = {Trait.CHOOSES_CLIENTS}
        if isinstance(selection, Policy) and selection.looks_at_data:
            traits.add(Trait.ASKS_ABOUT_DATA)
        arguments.append(Argument(f"selection = {type(selection).__name__}", frozenset(traits)))
    return arguments


def _require(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")


def refuse_wrapper(strategy: object, caller: object) -> None:
    """Refuse to be run by one of Flower's wrappers for differential privacy.

    They clip and noise whole models that they expect in the replies, after this strategy has been
    told of the updates, and their noise is added to a step that the strategy does not know.

    Raises
    ------
    ConfigError
        With the stages to use instead.
    """
    names = {cls.__name__: cls.__module__ for cls in type(caller).__mro__}
    if caller is not strategy and any(
        name.startswith("DifferentialPrivacy") and module.startswith("flwr.")
        for name, module in names.items()
    ):
        raise ConfigError(
            f"{type(caller).__name__} cannot wrap {type(strategy).__name__}, which keeps its own "
            "account of updates, clipping and noise; give the strategy stages instead: "
            "stages=[Clip(clip_norm), CentralDP(noise_multiplier, expected_cohort)], or "
            "AdaptiveClip, or DistributedDP beside a secure sum (see the docs on privacy)"
        )


def refuse_unknown(strategy: object, options: Mapping[str, object]) -> None:
    """Refuse arguments that a strategy does not have.

    Raises
    ------
    ConfigError
        For those of stages that hide updates, with where they belong.
    TypeError
        For the others, as Python does.
    """
    kind = type(strategy).__name__
    for name in options:
        if name in ("committee", "metrics", "sums"):
            raise ConfigError(
                f"{name}: {kind} hides nothing by itself and averages every metric that clients "
                "report; leave it out, or give it to the stage that hides updates, such as "
                "SecureSum(..., metrics=...)"
            )
        raise TypeError(f"{kind}.__init__() got an unexpected keyword argument {name!r}")
