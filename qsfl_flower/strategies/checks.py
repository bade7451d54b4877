"""What a strategy refuses when it is constructed, besides what its stages refuse."""

from __future__ import annotations

from collections.abc import Mapping

from qsfl_flower.asynchrony import Selection
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.strategies.chain import Chain
from qsfl_flower.strategies.policies import Policy
from qsfl_flower.strategies.stages import DecodeStage, Phase


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


def refuse_leaks(
    chain: Chain,
    selection: Selection | None,
    *,
    own_metrics: bool,
    legacy: bool,
    fraction_evaluate: float,
) -> None:
    """Refuse arguments that would let out what the chain protects.

    Parameters
    ----------
    chain : Chain
        The stages.
    selection : Selection, optional
        How clients are drawn.
    own_metrics : bool
        Whether a function of the user's reads the training replies.
    legacy : bool
        Whether the clients are apps without mods.
    fraction_evaluate : float
        Share of the clients that evaluate.

    Raises
    ------
    CompositionError
        With the reason and an alternative.
    """
    if chain.hides and own_metrics:
        raise CompositionError(
            "train_metrics_aggr_fn: the replies of single clients are hidden from the server; "
            "leave it out, the metrics are averaged under the same protection"
        )
    if chain.hides and legacy:
        raise CompositionError(
            "client_api: legacy apps without mods send their updates in the clear; add "
            "qsfl_mod and legacy_mod to the ClientApp and leave client_api at 'message'"
        )
    if chain.hides and fraction_evaluate > 0:
        raise CompositionError(
            f"fraction_evaluate is {fraction_evaluate}: the clients' evaluation metrics would "
            "arrive one by one, while their updates are hidden; set it to 0 and evaluate on "
            "the server (evaluate_fn)"
        )
    if selection is not None and chain.drawer is not None:
        raise CompositionError(
            f"selection: {chain.drawer.name} draws the clients itself, independently at random, so "
            f"that {type(selection).__name__} would choose nobody; leave it out, or set its "
            "sampling_rate to 1"
        )
    if not (isinstance(selection, Policy) and selection.looks_at_data):
        return
    noisy = [s.name for s in chain.stages if s.phase is Phase.PRIVATIZE]
    if chain.hides or noisy:
        why = f"whose budget {noisy[0]} counts without it" if noisy else "which are hidden"
        raise CompositionError(
            f"selection: {type(selection).__name__} chooses by what clients say about their data, "
            f"{why}; choose fair, fast, available or random"
        )


def refuse_overlap(chain: Chain) -> None:
    """Refuse stages whose promise needs all clients of a round to start together.

    Raises
    ------
    CompositionError
        With the reason and an alternative.
    """
    if chain.combiner is not None and chain.hides:
        raise CompositionError(
            f"stages: {chain.combiner.name} hides single updates, and what was masked for "
            "different versions of the model does not add up; use a synchronous strategy with "
            "over_selection"
        )
    if chain.drawer is not None:
        raise CompositionError(
            f"stages: {chain.drawer.name} counts on clients drawn independently at random, and "
            "who arrives first is not; set its sampling_rate to 1, so that every update is "
            "accounted for in full"
        )
    decoder = chain.decoder
    if decoder is not None and type(decoder).support is not DecodeStage.support:
        raise CompositionError(
            f"stages: {decoder.name} has other coordinates in every round, so that updates from "
            "different versions of the model have little in common; use compress"
        )


def refuse_cut_off(chain: Chain, over_selection: float) -> None:
    """Refuse to cut off clients whose random participation is accounted for.

    Raises
    ------
    CompositionError
        With the reason and an alternative.
    """
    if over_selection > 0 and chain.drawer is not None:
        raise CompositionError(
            f"over_selection: {chain.drawer.name} counts on clients drawn independently at "
            "random, and who is cut off is not random; set over_selection to 0 or its "
            "sampling_rate to 1"
        )


def _require(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")
