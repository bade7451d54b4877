"""The chain: stages in canonical order, applied to the messages, updates and sum of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import CompositionError, ConfigError, RejectedUpdate
from qsfl_flower.numerics import Layout
from qsfl_flower.strategies.stages import (
    CohortStage,
    Exchange,
    Measurements,
    MessageStage,
    Phase,
    RoundContext,
    Stage,
    State,
    VectorStage,
)
from qsfl_flower.strategies.update import Cohort, Rejection, Sender
from qsfl_flower.wire import Plan, content_bytes


class Chain:
    """Stages in canonical order, and their states as one value.

    Parameters
    ----------
    stages : Sequence[Stage]
        At most one of each name, in any order.

    Raises
    ------
    CompositionError
        If two stages have the same name, or there is more than one server optimiser or stage on
        whole messages.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            if not isinstance(stage, MessageStage | CohortStage | VectorStage):
                raise ConfigError(
                    f"stages: {stage!r} is not a stage; give objects such as Clip(clip_norm=1.0)"
                )
        names = [s.name for s in stages]
        double = {n for n in names if names.count(n) > 1}
        if double:
            raise CompositionError(f"stages: {', '.join(sorted(double))} is given more than once")
        optimisers = [s.name for s in stages if s.phase is Phase.UPDATE]
        if len(optimisers) > 1:
            raise CompositionError(
                f"stages: {' and '.join(optimisers)} are both server optimisers; choose one"
            )
        gates = [s.name for s in stages if isinstance(s, MessageStage)]
        if len(gates) > 1:
            raise CompositionError(
                f"stages: {' and '.join(gates)} both work on whole messages; choose one, since the "
                "second would not cover what the first adds"
            )
        self.stages = tuple(sorted(stages, key=lambda s: (s.phase, s.name)))

    @property
    def needs_norms(self) -> bool:
        """Whether some stage needs the norm of every update."""
        return any(isinstance(s, CohortStage) and s.needs_norms for s in self.stages)

    def plan(self) -> Plan:
        """Return what the clients' mods have to do, in canonical order."""
        steps = (stage.client_step() for stage in self.stages)
        return Plan(tuple(step for step in steps if step is not None))

    def init(self, layout: Layout, known: Mapping[str, State]) -> dict[str, State]:
        """Return the states of all stages: the known ones, and those before the first round."""
        return {s.name: known[s.name] if s.name in known else s.init(layout) for s in self.stages}

    def saved(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return the states that belong into a checkpoint."""
        return {s.name: states[s.name] for s in self.stages if not s.volatile and s.name in states}

    def instruct(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        states: Mapping[str, State],
        exchange: Exchange,
    ) -> tuple[dict[int, RecordDict], dict[str, State]]:
        """Return what each node is sent."""
        states = dict(states)
        contents = dict.fromkeys(nodes, content)
        for stage in self.stages:
            if isinstance(stage, MessageStage):
                contents, states[stage.name] = stage.instruct(
                    content, nodes, states[stage.name], exchange
                )
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
        gates = [stage for stage in self.stages if isinstance(stage, MessageStage)]
        for gate in gates:
            for index, (sender, content) in enumerate(entries):
                if isinstance(content, Rejection):
                    continue
                try:
                    sender, content, states[gate.name] = gate.admit(
                        sender, content, states[gate.name], exchange
                    )
                except RejectedUpdate as error:
                    # The name in a reply that was not let in is anybody's; the node is certain.
                    sender = replace(sender, name=f"node {sender.rank}")
                    size = content_bytes(content)
                    content = Rejection(sender, error.reason, error.detail, size)
                entries[index] = sender, content
        return entries, states, {gate.name: gate.measure(states[gate.name]) for gate in gates}

    def on_cohort(
        self, cohort: Cohort, states: Mapping[str, State], context: RoundContext
    ) -> tuple[Cohort, dict[str, State], dict[str, Measurements]]:
        """Apply the stages that work on single updates."""
        states, measured = dict(states), {}
        for stage in self.stages:
            if isinstance(stage, CohortStage):
                cohort, states[stage.name], measured[stage.name] = stage.apply(
                    cohort, states[stage.name], context
                )
        return cohort, states, measured

    def on_vector(
        self, vector: NDArray[np.float64], states: Mapping[str, State], context: RoundContext
    ) -> tuple[NDArray[np.float64], dict[str, State], dict[str, Measurements]]:
        """Apply the stages that work on the combined difference."""
        states, measured = dict(states), {}
        for stage in self.stages:
            if isinstance(stage, VectorStage):
                vector, states[stage.name], measured[stage.name] = stage.apply(
                    vector, states[stage.name], context
                )
        return vector, states, measured
