"""What a strategy achieves, in plain words: who learns what, which attacks it meets, what it sends.

The sentences of a stage stand in the stage (`Stage.explain`); here is what holds without any, and
what follows from traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.composition import Part, Trait
from qsfl_flower.rounds.facts import Sentences, Topic


@dataclass(frozen=True)
class Explanation:
    """What a chain achieves.

    Parameters
    ----------
    sentences : Mapping[Topic, Sequence[str]]
        By topic, in order; a topic without anything to say is left out.
    bytes_up : int
        About the size of a client's training reply.
    """

    sentences: Sentences
    bytes_up: int


def explain(
    chain: Chain, layout: Layout, rounds: int, clients: int, support: int | None = None
) -> Explanation:
    """Explain a chain.

    Parameters
    ----------
    chain : Chain
        The stages and arguments.
    layout : Layout
        The model's layout.
    rounds : int
        How many rounds are planned, >= 1.
    clients : int
        How many clients a round has, >= 1.
    support : int, optional
        To how many public coordinates a round is restricted, if it is.

    Returns
    -------
    Explanation
        What follows from the traits of all parts, and what each stage says of itself.
    """
    told: dict[Topic, list[str]] = {topic: [] for topic in Topic}
    parts: tuple[Part, ...] = (*chain.stages, *chain.arguments)
    traits = {trait for part in parts for trait in part.traits}
    for topic, sentence in _from_traits(traits, support):
        told[topic].append(sentence)
    for stage in chain.stages:
        for topic, sentences in stage.explain(layout, rounds).items():
            told[topic] += sentences
    told[Topic.GAPS] += _gaps(traits, told)
    size = layout.size if support is None else support
    bytes_up = 4 * size
    for stage in chain.stages:
        if (needed := stage.upload(size, clients)) is not None:
            bytes_up = needed
    return Explanation({t: tuple(s) for t, s in told.items() if s}, bytes_up)


def _from_traits(traits: set[Trait], support: int | None) -> list[tuple[Topic, str]]:
    found = []
    if Trait.HIDES_UPDATES in traits:
        found.append((Topic.SERVER, "nothing of a single update but what is named here"))
    else:
        noise = ", all noise already in it" if Trait.NOISES_UPDATES in traits else ""
        what = "" if support is None else f" on the round's {support:,} public coordinates"
        if Trait.OWN_SUPPORT in traits:
            what = " on the coordinates that the client has chosen"
        told = "" if Trait.NOISES_UPDATES in traits else ", its number of examples and its metrics"
        found.append((Topic.SERVER, f"every client's update{what}{noise}{told}"))
    if Trait.OVERLAPS_VERSIONS in traits:
        found.append((Topic.SERVER, "how fast each client is"))
    found.append((Topic.SERVER, "who answered, when, and how large the answers were"))
    found.append((Topic.CLIENT, "the models that it is sent, and nothing else of other clients"))
    if Trait.PROVES_NAMES not in traits:
        found.append(
            (
                Topic.NETWORK,
                "whatever Flower's transport lets out: without its TLS everything, and with it "
                "everything once a quantum computer opens the recording",
            )
        )
    return found


def _gaps(traits: set[Trait], told: Mapping[Topic, Sequence[str]]) -> list[str]:
    gaps = []
    if Trait.PROVES_NAMES not in traits:
        gaps.append("impostors, altered and replayed messages: add authenticate")
    if Trait.HIDES_UPDATES not in traits and Trait.NOISES_UPDATES not in traits:
        gaps.append("a curious server: add secure_sum, secure_krum or masked_sum")
    if not told[Topic.PRIVACY]:
        gaps.append(
            "what the models themselves give away (membership inference, reconstruction): add "
            "record_dp or another kind of differential privacy"
        )
    if Trait.WITHSTANDS_LIARS not in traits:
        gaps.append(
            "clients that poison the model together: add robust, or secure_krum where updates are "
            "hidden"
        )
    gaps.append("poison that looks like honest updates; a server that sends bad models")
    return gaps
