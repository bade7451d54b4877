"""What composes with what: every refusal in one table.

Each part of a strategy - a stage, or an argument that matters to the stages - declares its traits.
A `Refusal` names traits that must not meet, or one that must not be alone, with the reason and an
alternative. What depends on numbers (sensitivity, room in a field) is checked where these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from qsfl_flower.errors import CompositionError
from qsfl_flower.traits import Trait

__all__ = ["REFUSALS", "Argument", "Part", "Refusal", "Trait", "refuse"]


class Part(Protocol):
    """A stage, or an argument that matters to the stages."""

    @property
    def name(self) -> str:
        """What an error calls it."""

    @property
    def traits(self) -> frozenset[Trait]:
        """What it does."""


@dataclass(frozen=True)
class Argument:
    """An argument of a strategy that matters to the stages."""

    name: str
    traits: frozenset[Trait]


@dataclass(frozen=True)
class Refusal:
    """Traits that void a guarantee.

    Parameters
    ----------
    together : tuple of Trait
        Of different parts: one, two or three of them.
    why : str
        The reason and an alternative; ``{0}`` is the name of the first part, and so on.
    unless : Trait, optional
        All is well if another part has this trait.
    """

    together: tuple[Trait, ...]
    why: str
    unless: Trait | None = None

    def found(self, parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
        """Yield the parts that must not meet."""
        if self.unless is None or not any(self.unless in part.traits for part in parts):
            yield from self._choose(parts, ())

    def _choose(
        self, parts: Sequence[Part], chosen: tuple[Part, ...]
    ) -> Iterator[tuple[Part, ...]]:
        if len(chosen) == len(self.together):
            yield chosen
            return
        for part in parts:
            if self.together[len(chosen)] in part.traits and part not in chosen:
                yield from self._choose(parts, (*chosen, part))


T = Trait
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        (T.OPTIMISES, T.OPTIMISES), "stages: {0} and {1} are both server optimizers; choose one"
    ),
    Refusal(
        (T.HANDLES_MESSAGES, T.HANDLES_MESSAGES),
        "stages: {0} and {1} both work on whole messages; choose one",
    ),
    Refusal((T.ENCODES, T.ENCODES), "stages: {0} and {1} both encode the updates; choose one"),
    Refusal(
        (T.NEEDS_EVERYBODY, T.COMBINES),
        "stages: {1} cannot be combined with {0}: pairwise masks cancel only in the sum over "
        "all clients, so none can be selected or excluded; use secure_krum, which has a committee, "
        "or clip to a norm only",
    ),
    Refusal((T.COMBINES, T.COMBINES), "stages: {0} and {1} both combine the updates; choose one"),
    Refusal(
        (T.TRUSTS_KEYS,),
        "stages: {0} needs authenticate: without signed keys the server could put its own in the "
        "place of the receivers'; add stage authenticate: Authenticate(credentials)",
        unless=T.PROVES_NAMES,
    ),
    Refusal(
        (T.SEES_UPDATES, T.HIDES_UPDATES),
        "stages: {0} has to look at single updates, which {1} hides from the server; leave one of "
        "them out",
    ),
    Refusal(
        (T.OWN_SUPPORT, T.HIDES_UPDATES),
        "stages: {0} and {1}: every client chooses coordinates of its own, which cannot be added "
        "up unseen and would reveal its data; use shared_mask, whose coordinates are public "
        "and the same for all",
    ),
    Refusal(
        (T.OWN_SUPPORT, T.NOISES_UPDATES),
        "stages: {0} and {1}: which coordinates a client chooses would reveal its data without any "
        "noise; use shared_mask, whose coordinates are public",
    ),
    Refusal(
        (T.TELLS_TRAINING, T.NOISES_UPDATES),
        "stages: {0} and {1}: {1} keeps on the device what clients would report about "
        "their training, and hides each record with the rest of the update; leave {0} out",
    ),
    Refusal(
        (T.OUTGROWS_BOUND, T.HIDES_UPDATES),
        "stages: {0} and {1}: the noise makes updates longer than {1} has room for, and beneath "
        "a sum so much of it is not needed; use distributed_dp, or record_dp",
    ),
    Refusal(
        (T.FLAT, T.PER_LAYER),
        "stages: {0} and {1} with per_layer: clients hold k coordinates that belong to no layer; "
        "set per_layer: false",
    ),
    Refusal(
        (T.SENDS_CONTROLS, T.OPTIMISES),
        "stages: {1} would move control variates as if they were weights; leave it out or use "
        "FedAvg",
    ),
    Refusal(
        (T.SPENDS_ON_CLIENTS,),
        "stages: {0}: the quantile of the norms is a query on private data, which only central_dp "
        "pays for; add CentralDP, or use Clip",
        unless=T.PROTECTS_CLIENTS,
    ),
    Refusal(
        (T.PROTECTS_CLIENTS, T.HIDES_UPDATES),
        "stages: {0} and {1}: {1} divides by what the hidden clients claim, not by a fixed number, "
        "and the server would see the sum without noise; use distributed_dp, whose noise is in the "
        "sum before it is opened",
    ),
    Refusal(
        (T.PROTECTS_CLIENTS, T.SETS_LENGTH),
        "stages: {1} gives the result the length of the server's own update, which the clip norm "
        "of {0} does not bound, so no noise is known to be enough; use record_dp, or another rule",
    ),
    Refusal(
        (T.SHARES_NOISE, T.OPENS_DISTANCES),
        "stages: {0} and {1}: the noise of the sum does not cover the distances, and who is "
        "selected depends on the very noise, so that one client can change all of the sum; use "
        "record_dp, which holds under any rule, or secure_sum",
    ),
    Refusal(
        (T.OVERLAPS_VERSIONS, T.SHARES_NOISE),
        "stages: {1} sizes the noise for a round in which every client counts once and alike; use "
        "a synchronous strategy, or record_dp",
    ),
    Refusal(
        (T.HIDES_UPDATES, T.READS_REPLIES),
        "{1}: the replies of single clients are hidden from the server by {0}; leave it out, the "
        "metrics are averaged under the same protection",
    ),
    Refusal(
        (T.HIDES_UPDATES, T.WITHOUT_MOD),
        "{1}: legacy apps without mods send their updates in the clear, which {0} must not see; "
        "add qsfl_mod and legacy_mod to the ClientApp and leave client_api at 'message'",
    ),
    Refusal(
        (T.HIDES_UPDATES, T.TELLS_SINGLY),
        "{1}: the clients' evaluation metrics would arrive one by one, while their updates are "
        "hidden by {0}; set it to 0 and evaluate on the server (evaluate_fn)",
    ),
    Refusal(
        (T.COVERS_METRICS, T.TELLS_SINGLY),
        "{1}: evaluation metrics of clients depend on their data, without the noise of {0}; set it "
        "to 0 and evaluate on the server (evaluate_fn)",
    ),
    Refusal(
        (T.CHOOSES_CLIENTS, T.DRAWS_CLIENTS),
        "{0}: {1} samples the clients itself, independently at random, so that {0} would select "
        "none; leave it out, or set the sampling_rate to 1",
    ),
    Refusal(
        (T.ASKS_ABOUT_DATA, T.HIDES_UPDATES),
        "{0} chooses by what clients say about their data, while {1} hides their updates; choose "
        "fair, fast, available or random",
    ),
    Refusal(
        (T.ASKS_ABOUT_DATA, T.PROTECTS_CLIENTS),
        "{0} chooses by what clients say about their data, whose budget {1} counts without it; "
        "choose fair, fast, available or random",
    ),
    Refusal(
        (T.OVERLAPS_VERSIONS, T.ONE_MODEL),
        "stages: {1} hides single updates, and what was masked for different versions of the "
        "model does not add up; use secure_sum or secure_krum, whose shares do, or a synchronous "
        "strategy with over_selection",
    ),
    Refusal(
        (T.OVERLAPS_VERSIONS, T.DRAWS_CLIENTS),
        "stages: {1} needs clients that are sampled independently at random, and who arrives first "
        "is not; set its sampling_rate to 1, so that every update is accounted for in full",
    ),
    Refusal(
        (T.OVERLAPS_VERSIONS, T.ROUND_SUPPORT),
        "stages: {1} has other coordinates in every round, so that updates from different versions "
        "of the model have little in common; set its epoch to more than max_staleness, or use "
        "compress",
    ),
    Refusal(
        (T.EXCLUDES,),
        "stages: {0} excludes clients without a budget, and nothing but authenticate proves whose "
        "account a reply belongs to; add Authenticate(credentials), or set exhausted to 'stop'",
        unless=T.PROVES_NAMES,
    ),
    Refusal(
        (T.OVERLAPS_VERSIONS, T.CHARGES_ROUNDS),
        "stages: {1} excludes clients without a budget, while their updates of earlier rounds may "
        "still arrive and count in rounds that nobody has charged to them; use a synchronous "
        "strategy, or set exhausted to 'stop'",
    ),
    Refusal(
        (T.CUTS_OFF, T.DRAWS_CLIENTS),
        "{0}: {1} needs clients that are sampled independently at random, and who is cut off is "
        "not random; set over_selection to 0 or its sampling_rate to 1",
    ),
)
"""In the order in which they are checked."""


def refuse(parts: Sequence[Part]) -> None:
    """Refuse parts that void each other's guarantees.

    Parameters
    ----------
    parts : Sequence[Part]
        The stages of a chain, and the arguments that matter to them.

    Raises
    ------
    CompositionError
        With the reason and an alternative.
    """
    for refusal in REFUSALS:
        for found in refusal.found(parts):
            raise CompositionError(refusal.why.format(*(part.name for part in found)))
