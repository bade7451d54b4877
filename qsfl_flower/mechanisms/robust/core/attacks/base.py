"""What an attack is: a pure function from what the attacker knows to what it sends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """What one attacker knows when it makes up its update of a round.

    Parameters
    ----------
    own : ndarray of float64, shape (d,)
        The update that it would send if it were honest.
    known : ndarray of float64, shape (k, d)
        Honest updates of this round that it has seen, k >= 1: those of all honest clients for an
        omniscient attacker, those that the colluders computed themselves otherwise.
    clients : int
        Clients n of the round.
    attackers : int
        Attackers f of the round that act together, this one included, 1 <= f < n.
    server_round : int
        The round, counted from 1.
    rng : numpy.random.Generator
        The attacker's own random numbers of this round.
    first : ndarray of float64, shape (d,), optional
        What `own` was in the first round in which this client attacked; None in that round.
    """

    own: Floats
    known: Floats
    clients: int
    attackers: int
    server_round: int
    rng: np.random.Generator
    first: Floats | None = None

    def __post_init__(self) -> None:
        if self.own.ndim != 1 or self.known.shape[1:] != self.own.shape or not len(self.known):
            raise ConfigError(
                f"view: own has shape {self.own.shape} and known {self.known.shape}; "
                "(d,) and (k, d) with k >= 1 are needed"
            )
        if not 1 <= self.attackers < self.clients:
            raise ConfigError(
                f"view: {self.attackers} attackers among {self.clients} clients; "
                "at least 1 and fewer than all are needed"
            )


class Attack(ABC):
    """A client's deviation from the protocol; parameters are the fields of a frozen dataclass.

    Subclasses override `craft`, `poison` or both.

    Notes
    -----
    Who sees what: a `Collusion` reads other clients' updates of the same round, which no real
    attacker sees under encryption; it is the worst case that defences are measured by.
    """

    name: ClassVar[str]

    def craft(self, view: View) -> Floats:
        """Return what is sent instead of the honest update, shape (d,); `view` is not changed."""
        return view.own

    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], classes: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the training examples that the attacker uses instead of its own.

        Parameters
        ----------
        x : ndarray, shape (N, ...)
            Examples; pictures are (N, C, H, W).
        y : ndarray of int64, shape (N,)
            Labels, 0..classes-1.
        classes : int
            Number of labels.
        rng : numpy.random.Generator
            The same in every round, so that the poisoned examples are.
        """
        del classes, rng
        return x, y


class Collusion(Attack):
    """An attack that is worked out from the honest updates of the round.

    All colluders know the same, so most of these send one vector from all of them.
    """

    @abstractmethod
    def craft(self, view: View) -> Floats:
        """Return what is sent, worked out from `View.known`."""
