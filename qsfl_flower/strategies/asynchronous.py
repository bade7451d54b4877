"""Buffered asynchronous aggregation: nobody waits for the slowest client."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from qsfl_flower.asynchrony import (
    Constant,
    Polynomial,
    StalenessLimit,
    StalenessWeight,
    integer_weights,
)
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.server_optimizers.stale import StaleStep
from qsfl_flower.rounds.buffered import SECOND_PLACE as SECOND_PLACE
from qsfl_flower.rounds.buffered import BufferedRounds, Buffering
from qsfl_flower.strategies.options import StrategyOptions
from qsfl_flower.strategies.stable import StableFedAvg


class BufferedAsync(StableFedAvg):
    r"""FedBuff: a new model after every K arrivals, while other clients train on.

    .. math:: x_{t+1} = x_t + U\!\left(\frac{1}{K} \sum_{i=1}^{K} v_i\, w(s_i)\, \Delta_i\right)

    A target number of clients is kept at work, each on the model that was the newest when it was
    asked. When K usable updates have arrived they go through the same chain of stages as a
    synchronous round. An update whose client started s versions ago counts with the weight
    :math:`w(s) \le 1`; :math:`v_i` is its share of the examples times K. The denominator K is
    fixed: neither staleness nor failures of others make an update count for more.

    A client holds at most one place in the buffer and has at most one task at a time; every task is
    counted once or given up. A client is a node, and with `Authenticate` an enrolled key as well: a
    key on several nodes holds one place, further answers are rejected (``second-place``). A "round"
    of the result, the checkpoints and the records is one aggregation, so that ``num_rounds`` times
    K updates are used.

    Parameters
    ----------
    buffer_size : int
        The number K of updates that make a new model, >= 1.
    concurrency : int, optional
        How many clients are kept at work, >= 1.
    staleness_weight : StalenessWeight, optional
        The rule w; by default `Polynomial`, and `Constant` where updates are hidden.
    max_staleness : int or StalenessLimit
        Older updates are rejected before anything in them is read. Clients so slow that all their
        updates are older are never heard: see docs/asynchrony.md for how to choose it.
    server_learning_rate, server_momentum, scale_by_staleness
        See `StaleStep`, which is added unless all three have their defaults.
    **options
        Further keyword arguments of `StableFedAvg`; `deadline` is the time for one task. Without
        `concurrency`, `fraction_train` and `min_train_nodes` say how many clients are kept at work.
        Evaluation asks only clients that are idle.

    Raises
    ------
    CompositionError
        If a stage needs all clients of a round to start together: it hides single updates under
        masks, counts on random participation, or restricts each round to coordinates of its own.
    ConfigError
        If an argument is out of range, or the buffer is too small for a stage.

    References
    ----------
    J. Nguyen et al., "Federated learning with buffered asynchronous aggregation", 2022.
    arXiv:2106.06639.

    Notes
    -----
    Who sees what: as in `StableFedAvg`; the server also learns how fast every client is. Staleness
    is reckoned from the server's own books, not from what clients say.

    Hidden updates (`SecureSum`, `SecureKrum`) are opened when the buffer is full. Nodes refuse sums
    over several rounds unless ``window`` in their policy is at least `max_staleness` and one: a
    lying server could send another model in each. Weights are multiples of 1/16, see
    `integer_weights`; nodes refuse those that differ unless their policy says ``weights = true``: a
    server can read residues of single updates out of such a sum. A committee member that is still
    training is asked after its reply has arrived; the server waits up to the task deadline.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run(kind=BufferedAsync, rounds=4, buffer_size=2)
    >>> [record.accepted for record in outcome.rounds]
    [0, 2, 2, 2, 2]
    """

    asynchronous = True

    def __init__(
        self,
        *,
        buffer_size: int = 10,
        concurrency: int | None = None,
        staleness_weight: StalenessWeight | None = None,
        max_staleness: int | StalenessLimit = 20,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        scale_by_staleness: bool = False,
        **options: Unpack[StrategyOptions],
    ) -> None:
        for hook in ("configure_train", "aggregate_train"):
            if getattr(type(self), hook) is not getattr(StableFedAvg, hook):
                raise ConfigError(
                    f"{type(self).__name__}.{hook} would never be called: clients are asked and "
                    "answer at any time, not once a round; write a stage or a selection policy, "
                    "or override it in a synchronous strategy"
                )
        step = (server_learning_rate, server_momentum, scale_by_staleness)
        if step != (1.0, 0.0, False):
            options["stages"] = (*options.get("stages", ()), StaleStep(*step))
        super().__init__(**options)
        for name, value in (("buffer_size", buffer_size), ("concurrency", concurrency)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be >= 1")
        if self.engine.over_selection:
            raise ConfigError("over_selection is for synchronous rounds; raise concurrency instead")
        if not isinstance(max_staleness, StalenessLimit):
            max_staleness = StalenessLimit(max_staleness)
        decoder = self.chain.decoder
        if decoder is not None and 1 < decoder.epoch <= max_staleness.maximum:
            raise ConfigError(
                f"{decoder.name}: epoch is {decoder.epoch}, but updates may be "
                f"{max_staleness.maximum} versions old (max_staleness), and those of the epoch "
                "before do not count; set epoch to more than max_staleness"
            )
        weighting = replace(self.engine.weighting, buffer_size=buffer_size)
        # Nodes refuse weights that differ in a sum unless their policy allows them.
        weight = staleness_weight or (Constant() if self.chain.hides else Polynomial())
        if self.chain.hides:
            weights = integer_weights(weight, max_staleness.maximum)
            weighting = replace(weighting, by_staleness=weights)
        if self.chain.combiner is not None:
            self.chain.combiner.check_buffer(weighting)
        self.engine.weighting, self.engine.window = weighting, max_staleness.maximum + 1
        self._buffering = Buffering(buffer_size, concurrency, weight, max_staleness)
        self.rounds = BufferedRounds(
            self.engine,
            self,
            self._buffering,
            lambda: self._wanted(self.fraction_train, self.min_train_nodes),
        )

    @property
    def buffer_size(self) -> int:
        """The number K of updates that make a new model."""
        return self._buffering.size

    @property
    def concurrency(self) -> int | None:
        """How many clients are kept at work, if that was given."""
        return self._buffering.concurrency


FedBuff = BufferedAsync
"""The name by which the method is known."""


class FedAsync(BufferedAsync):
    r"""A new model after every arrival: `BufferedAsync` with a buffer of one.

    .. math:: x_{t+1} = x_t + \alpha\, w(s)\, (x_i - x_{t-s})

    For s = 0 this is the mixing :math:`(1 - \alpha) x_t + \alpha x_i` of the paper. A stale model
    is not mixed in itself, which would take back what others have contributed since: its difference
    to the model that it started from is added.

    Parameters
    ----------
    mixing : float
        The rate :math:`\alpha` in (0, 1].
    **options
        Further keyword arguments of `BufferedAsync`.

    References
    ----------
    C. Xie, O. Koyejo, I. Gupta, "Asynchronous federated optimization", 2019. arXiv:1903.03934.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run(kind=FedAsync, rounds=3, mixing=0.5)
    >>> [record.accepted for record in outcome.rounds]  # a new model after every arrival
    [0, 1, 1, 1]
    """

    def __init__(self, *, mixing: float = 0.6, **options: Unpack[StrategyOptions]) -> None:
        if not 0 < mixing <= 1:
            raise ConfigError(f"mixing is {mixing!r}; it must be in (0, 1]")
        super().__init__(buffer_size=1, server_learning_rate=mixing, **options)
