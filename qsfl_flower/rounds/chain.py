"""The chain: stages in canonical order, applied to the messages, updates and sum of a round."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.numerics import Layout, Vector, measure
from qsfl_flower.rounds.charges import Charge
from qsfl_flower.rounds.composition import Argument, Trait, refuse
from qsfl_flower.rounds.context import Exchange, Measurements, Phase, RoundContext, State
from qsfl_flower.rounds.spending import NO_BUDGET, Spending
from qsfl_flower.rounds.stages import (
    CohortStage,
    CombineStage,
    DecodeStage,
    MessageStage,
    Stage,
    VectorStage,
)
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Weighting, catch
from qsfl_flower.wire import Plan, content_bytes


class Chain:
    """Stages in canonical order, and their states as one value.

    Parameters
    ----------
    stages : Sequence[Stage]
        At most one of each name, in any order.
    arguments : Sequence[Argument]
        Arguments of the strategy that matter to them.

    Raises
    ------
    CompositionError
        If two stages have the same name, two exclude each other, or a stage's guarantee would not
        hold in this chain.
    """

    def __init__(self, stages: Sequence[Stage], arguments: Sequence[Argument] = ()) -> None:
        for stage in stages:
            if not isinstance(stage, Stage):
                raise ConfigError(
                    f"stages: {stage!r} is not a stage; give objects such as Clip(clip_norm=1.0)"
                )
        names = [s.name for s in stages]
        double = {n for n in names if names.count(n) > 1}
        if double:
            raise CompositionError(f"stages: {', '.join(sorted(double))} is given more than once")
        given = tuple(sorted(stages, key=lambda s: (s.phase, s.name)))
        self.arguments = tuple(arguments)
        refuse((*given, *arguments))
        bound: list[Stage] = []
        for stage in given:
            stage.check(given)
            bound.append(stage.bind(given))
        self.stages = tuple(bound)
        self.decoder = next((s for s in self.stages if isinstance(s, DecodeStage)), None)
        self.combiner = next((s for s in self.stages if isinstance(s, CombineStage)), None)
        vectors = [s for s in self.stages if isinstance(s, VectorStage)]
        self.drawer = next((s for s in vectors if s.poisson_rate is not None), None)
        self.denominator = next((s.denominator for s in vectors if s.denominator), None)
        self._seconds: dict[str, float] = {}

    @property
    def hides(self) -> bool:
        """Whether single updates are hidden from the server."""
        return self.combiner is not None and self.combiner.hides

    @property
    def bounds_hidden(self) -> str:
        """Name of the stage that bounds or compares hidden updates, but no statistics; if any."""
        if self.combiner is None or not self.combiner.hides or self.combiner.sums_statistics:
            return ""
        return self.combiner.name

    @property
    def protects_clients(self) -> bool:
        """Whether noise is to hide from the models' readers what single clients did."""
        return any(Trait.PROTECTS_CLIENTS in stage.traits for stage in self.stages)

    @property
    def withstands_liars(self) -> bool:
        """Whether a rule combines the updates that some of them cannot mislead."""
        return any(Trait.WITHSTANDS_LIARS in stage.traits for stage in self.stages)

    @property
    def bounds_clients(self) -> bool:
        """Whether some stage limits what one client can do to the model."""
        return self.withstands_liars or any(stage.phase is Phase.BOUND for stage in self.stages)

    @property
    def keeps_carried(self) -> bool:
        """Whether buffers stay the server's own: nothing is noisy about them."""
        noisy = {Trait.COVERS_METRICS, Trait.SHARES_NOISE}
        return self.protects_clients or any(noisy & stage.traits for stage in self.stages)

    @property
    def needs_norms(self) -> bool:
        """Whether some stage needs the norm of every update."""
        kinds = CohortStage | CombineStage
        return any(isinstance(s, kinds) and s.needs_norms for s in self.stages)

    @property
    def gates(self) -> tuple[MessageStage, ...]:
        """The stages on whole messages."""
        return tuple(stage for stage in self.stages if isinstance(stage, MessageStage))

    def after(self, states: Mapping[str, State], asked: Mapping[str, State]) -> dict[str, State]:
        """Return the states after stages have asked nodes: those of the gates are from `asked`."""
        return {**states, **{gate.name: asked[gate.name] for gate in self.gates}}

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time of what is done inside for a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._seconds[stage.name] = self._seconds.get(stage.name, 0.0) + spent

    def take_seconds(self) -> dict[str, float]:
        """Return how long each stage has worked, or waited for its clients, since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken

    def prepare(self, states: Mapping[str, State], context: RoundContext) -> dict[str, State]:
        """Let every stage get ready for the round."""
        prepared = {}
        for stage in self.stages:
            with self.timed(stage):
                prepared[stage.name] = stage.prepare(states[stage.name], context)
        return prepared

    def plan(self, states: Mapping[str, State], context: RoundContext) -> Plan:
        """Return what the clients' mods have to do in this round, in the order of `ClientPhase`."""
        steps = [x for s in self.stages for x in s.client_steps(states[s.name], context)]
        return Plan(tuple(item for _, item in sorted(steps, key=lambda step: step[0])))

    def support(
        self, states: Mapping[str, State], context: RoundContext
    ) -> NDArray[np.int64] | None:
        """Return the public coordinates to which this round is restricted, if it is."""
        decoder = self.decoder
        return None if decoder is None else decoder.support(states[decoder.name], context)

    def init(self, layout: Layout, known: Mapping[str, State]) -> dict[str, State]:
        """Return the states of all stages: the known ones, and those before the first round."""
        return {s.name: known[s.name] if s.name in known else s.init(layout) for s in self.stages}

    def least_clients(self, weighting: Weighting) -> int:
        """Return how many clients the smallest federation has with which a round can succeed."""
        return 1 if self.combiner is None else self.combiner.least_clients(weighting)

    def needs(self, weighting: Weighting) -> dict[str, int]:
        """Return how many clients must be there, by what needs them."""
        least, combiner = self.least_clients(weighting), self.combiner
        if combiner is None or least <= 1:
            return {}
        return {f"the smallest federation of stage {combiner.name}": least}

    def unready(self, states: Mapping[str, State]) -> str | None:
        """Return why nobody needs to train in this round, if so."""
        combiner = self.combiner
        return None if combiner is None else combiner.unready(states[combiner.name])

    def check_origin(self, states: Mapping[str, State], origin: int) -> None:
        """Refuse an update from an earlier round that cannot come together with this one's."""
        for stage in self.stages:
            stage.joins(states[stage.name], origin)

    def saved(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return the states that belong into a checkpoint."""
        return {s.name: states[s.name] for s in self.stages if not s.volatile and s.name in states}

    def charged(self, states: Mapping[str, State]) -> dict[str, Charge]:
        """Return what the stages have charged, the round that is prepared included."""
        return {s.name: s.spending.charged(states[s.name]) for s in self.stages if s.spending}

    def recover(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return the states with which a new process goes on after one that has ended."""
        spending = {s.name: s.spending for s in self.stages if s.spending}
        recovered = {n: spending[n].recover(v) for n, v in states.items() if n in spending}
        return {**states, **recovered}

    def address(
        self,
        contents: Mapping[int, RecordDict],
        states: Mapping[str, State],
        exchange: Exchange,
    ) -> tuple[dict[int, RecordDict], dict[str, State]]:
        """Return what each node is told to train on or to evaluate."""
        states, contents = dict(states), dict(contents)
        for stage in self.stages:
            with self.timed(stage):
                contents, states[stage.name] = stage.address(contents, states[stage.name], exchange)
        return contents, states

    def instruct(
        self,
        contents: Mapping[int, RecordDict],
        states: Mapping[str, State],
        exchange: Exchange,
    ) -> tuple[dict[int, RecordDict], dict[str, State]]:
        """Return what each node is sent."""
        states, contents = dict(states), dict(contents)
        for gate in self.gates:
            with self.timed(gate):
                contents, states[gate.name] = gate.instruct(contents, states[gate.name], exchange)
        return contents, states

    def admit(
        self,
        matched: Sequence[tuple[Sender, RecordDict | Rejection]],
        states: Mapping[str, State],
        exchange: Exchange,
    ) -> tuple[
        list[tuple[Sender, RecordDict | Rejection]], dict[str, State], dict[str, Measurements]
    ]:
        """Let replies in, one after the other in canonical order."""
        states, entries = dict(states), list(matched)
        for gate in self.gates:
            for index, (sender, content) in enumerate(entries):
                if isinstance(content, Rejection):
                    continue
                # The name in a reply that is not let in is anybody's; the node is certain.
                node = replace(sender, name=f"node {sender.rank}")
                state = states[gate.name]
                with self.timed(gate):
                    found = catch(
                        node, partial(gate.admit, sender, content, state, exchange), content
                    )
                if isinstance(found, Rejection):
                    entries[index] = node, found
                else:
                    sender, content, states[gate.name] = found
                    entries[index] = sender, content
        for stage, spending in self._excluding:
            for index, (sender, content) in enumerate(entries):
                if isinstance(content, Rejection):
                    continue
                states[stage.name], why = spending.meet(states[stage.name], sender)
                if why is not None:
                    size = content_bytes(content)
                    entries[index] = sender, Rejection(sender, NO_BUDGET, why, size)
        answered = {sender.node_id: isinstance(c, RecordDict) for sender, c in entries}
        for stage in self.stages:
            states[stage.name] = stage.heard(answered, states[stage.name])
        return entries, states, {gate.name: gate.measure(states[gate.name]) for gate in self.gates}

    def withheld(
        self, senders: Sequence[Sender], states: Mapping[str, State]
    ) -> tuple[Rejection, ...]:
        """Return which of the sampled nodes are not asked, since their clients have no budget."""
        found = (
            spending.withheld(states[stage.name], sender)
            for stage, spending in self._excluding
            for sender in senders
        )
        return tuple(rejection for rejection in found if rejection is not None)

    @property
    def _excluding(self) -> list[tuple[Stage, Spending]]:
        pairs = [(s, s.spending) for s in self.stages if s.spending is not None]
        return [(stage, spending) for stage, spending in pairs if spending.budget.excludes]

    def epsilon(self, states: Mapping[str, State]) -> float | None:
        """Return the largest loss of privacy that a stage has accounted for, if any does."""
        spent = [s.spent(states[s.name]) for s in self.stages]
        return max((epsilon for epsilon in spent if epsilon is not None), default=None)

    def on_cohort(
        self, cohort: Cohort, states: Mapping[str, State], context: RoundContext
    ) -> tuple[Cohort, dict[str, State], dict[str, Measurements]]:
        """Apply the stages that work on single updates."""
        states, measured = dict(states), {}
        for stage in self.stages:
            if isinstance(stage, CohortStage) and not self.hides:
                with self.timed(stage):
                    cohort, states[stage.name], measured[stage.name] = stage.apply(
                        cohort, states[stage.name], context
                    )
            elif isinstance(stage, CohortStage) and stage.spending is not None:
                measured[stage.name] = {"epsilon": stage.spending.epsilon(states[stage.name])}
        return cohort, states, measured

    def too_long(
        self, step: NDArray[np.float64], clients: int, context: RoundContext
    ) -> str | None:
        """Return why the combined difference of so many clients cannot be honest, if it cannot."""
        limits = [s.limit(clients, context) for s in self.stages if isinstance(s, VectorStage)]
        if (limit := min(limits, default=math.inf)) == math.inf:
            return None
        norm = measure(Vector.dense(step)).norm
        if norm <= limit:
            return None
        return (
            f"the step of {clients} clients has norm {norm:.4g}, with all of their noise at most "
            f"{limit:.4g} is possible: some client did not keep to its bound"
        )

    def on_vector(
        self, vector: NDArray[np.float64], states: Mapping[str, State], context: RoundContext
    ) -> tuple[NDArray[np.float64], dict[str, State], dict[str, Measurements]]:
        """Apply the stages that work on the combined difference."""
        states, measured = dict(states), {}
        for stage in self.stages:
            if isinstance(stage, VectorStage):
                with self.timed(stage):
                    vector, states[stage.name], measured[stage.name] = stage.apply(
                        vector, states[stage.name], replace(context, states=states)
                    )
        return vector, states, measured
