"""Sample counts and metrics as integers that are summed under the same protection as the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics import example_count

BITS = 20
MAX_METRIC = float(1 << 20)
_UNIT = 1 << BITS


@dataclass(frozen=True)
class Tally:
    """What is added up besides the update: a weight, and metrics times that weight.

    A client's weight is its number of examples over `max_examples`, at most 1 and rounded to a
    multiple of 2^-20, so that the update can be multiplied by exactly what is added up. A metric
    goes with the weight of the clients that have it, so that its mean is right where others do not.

    Parameters
    ----------
    max_examples : int
        No client counts for more examples than this, >= 1.
    metrics : sequence of str
        Metrics to average; all others stay on the devices.
    weighted_by : str
        Name of the metric that counts the examples.
    """

    max_examples: int = 1000
    metrics: Sequence[str] = ("train-loss", "train-accuracy")
    weighted_by: str = "num-examples"

    def __post_init__(self) -> None:
        if self.max_examples < 1 or len(set(self.metrics)) != len(self.metrics):
            raise ConfigError(
                f"tally: max_examples {self.max_examples!r} must be at least 1, and the metrics "
                f"{list(self.metrics)} distinct"
            )

    @property
    def size(self) -> int:
        """How many integers there are."""
        return 1 + 2 * len(self.metrics)

    def take(self, metrics: Mapping[str, float]) -> tuple[float, list[int]]:
        """Return a client's weight in (0, 1], and its integers.

        Parameters
        ----------
        metrics : Mapping[str, float]
            What the app reports, the number of examples included.

        Returns
        -------
        tuple[float, list[int]]
            The integers are below 2^41 in magnitude and in units of 2^-20: the weight, then for
            each metric its value times the weight, and the weight if there is a value.

        Raises
        ------
        RejectedUpdate
            ``bad-num-examples`` if the client has no examples. How many it has is not said: the
            text reaches the server, which chooses the metric and the limit.
        """
        try:
            examples = example_count(metrics.get(self.weighted_by))
        except RejectedUpdate:
            examples = 0.0
        if examples == 0:
            raise RejectedUpdate(
                "bad-num-examples", f"{self.weighted_by!r:.40} is no number of examples above 0"
            )
        weight = max(1, round(min(examples / self.max_examples, 1.0) * _UNIT))
        integers = [weight]
        for name in self.metrics:
            value = metrics.get(name, math.nan)
            known = math.isfinite(value) and abs(value) <= MAX_METRIC
            integers += [round(value * weight), weight] if known else [0, 0]
        return weight / _UNIT, integers

    def read(self, sums: Sequence[int], clients: int) -> tuple[float, dict[str, float]]:
        """Return the sum of the weights, and the mean metrics, from the sums over `clients`.

        Raises
        ------
        RejectedUpdate
            ``implausible-sum`` if the weights cannot be those of so many clients.
        """
        total = sums[0]
        if not 0 < total <= clients * _UNIT:
            raise RejectedUpdate(
                "implausible-sum", f"the weights of {clients} clients add up to {total / _UNIT:g}"
            )
        pairs = zip(self.metrics, sums[1::2], sums[2::2], strict=True)
        means = {name: value / weight for name, value, weight in pairs if weight > 0}
        return total / _UNIT, means
