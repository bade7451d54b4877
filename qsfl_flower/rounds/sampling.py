"""Whom a strategy asks next."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qsfl_flower.asynchrony import Draw, Latencies, Selection
from qsfl_flower.rounds.policies import History, Policy


@dataclass(frozen=True)
class Wanted:
    """Who is asked in an exchange.

    Parameters
    ----------
    fraction : float
        Share of the connected nodes, in [0, 1].
    minimum : int
        Fewest nodes that are asked.
    available : int
        Fewest nodes that are connected.
    """

    fraction: float
    minimum: int
    available: int


class Sampling:
    """Draws clients, the same ones whenever the seed and the past are the same.

    Clients are known by their rank: the order in which their nodes registered. Flower's node ids
    are random. A node keeps its rank when others come and go.

    Parameters
    ----------
    selection : Selection, optional
        How to draw; by default everybody alike.
    seed : int, optional
        Makes the draws reproducible.
    """

    def __init__(self, selection: Selection | None, seed: int | None) -> None:
        self.selection, self.seed = selection, seed
        self.ranks: dict[int, int] = {}
        self.nodes: dict[int, int] = {}
        self.history = History()

    def meet(self, nodes: Iterable[int]) -> None:
        """Give new nodes their ranks; `nodes` are in order of registration."""
        for node in nodes:
            rank = self.ranks.setdefault(node, len(self.ranks))
            self.nodes[rank] = node

    def draw(
        self, purpose: str, clients: Sequence[int], size: int, latencies: Latencies
    ) -> list[int]:
        """Draw ranks in ascending order.

        Parameters
        ----------
        purpose : str
            What the draw is for; with the seed, it determines the draw.
        clients : Sequence[int]
            Ranks that can be asked, at least `size`, ascending.
        size : int
            How many.
        latencies : Latencies
            What is known about their speed.
        """
        generator = random.Random(None if self.seed is None else f"{self.seed}/{purpose}")
        if self.selection is None or not size:
            return sorted(generator.sample(list(clients), size))
        numbers = np.random.default_rng(generator.getrandbits(128))
        draw = Draw(clients, size, latencies, numbers)
        if isinstance(self.selection, Policy):
            return sorted(self.selection.pick(draw, self.history))
        return sorted(self.selection.choose(draw))
