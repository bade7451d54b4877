"""What a stage says of itself: facts that other stages rely on, and sentences for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qsfl_flower.crypto.roster import Roster
from qsfl_flower.rounds.context import State


@dataclass(frozen=True, kw_only=True)
class HiddenSum:
    """The one number per coordinate that is opened of hidden updates.

    Parameters
    ----------
    min_clients : int
        Fewest clients in a sum, >= 2.
    bound : float
        Largest magnitude of a coordinate, > 0.
    bits : Callable[[int], int]
        From the number of clients to the fractional bits of the sum.
    metrics : Sequence[str]
        Metrics whose sums are opened too.
    alike : bool
        Whether all clients count alike, and nothing is opened of a single one.
    """

    min_clients: int
    bound: float
    bits: Callable[[int], int]
    metrics: Sequence[str] = ()
    alike: bool = True


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the other stages of a chain may rely on; None where a stage settles nothing.

    Parameters
    ----------
    clip_norm : Callable[[Mapping[str, State]], float], optional
        From the states of all stages, empty before the first round, to the bound on the L2 norm of
        every update.
    noise_left : Callable[[float], float], optional
        From the noise multiplier of a round to that which is left for the updates.
    sum : HiddenSum, optional
        What is opened of hidden updates.
    coordinates : Callable[[int], int], optional
        From the size of the model to how many public coordinates a round is restricted to.
    roster : Roster, optional
        Who is enrolled.
    metrics : Sequence[str], optional
        The only metrics of the app that leave a device.
    """

    clip_norm: Callable[[Mapping[str, State]], float] | None = None
    noise_left: Callable[[float], float] | None = None
    sum: HiddenSum | None = None
    coordinates: Callable[[int], int] | None = None
    roster: Roster | None = None
    metrics: Sequence[str] | None = None

    @staticmethod
    def left_of(metrics: Sequence[str], facts: Iterable[Facts]) -> tuple[str, ...]:
        """Return which metrics leave the devices beside stages with these facts."""
        allowed = [f.metrics for f in facts if f.metrics is not None]
        return tuple(m for m in metrics if all(m in names for names in allowed))


class Topic(StrEnum):
    """What is explained; the values are headings."""

    SERVER = "The server learns"
    MEMBER = "A member of the committee learns"
    CLIENT = "A client learns"
    NETWORK = "An eavesdropper on the network learns"
    PRIVACY = "Differential privacy"
    LIARS = "Against malicious clients"
    GAPS = "Not covered"


Sentences = Mapping[Topic, Sequence[str]]
