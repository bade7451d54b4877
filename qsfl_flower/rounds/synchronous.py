"""Rounds in which everybody starts from the same model, and the server waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from flwr.app import ArrayRecord, Message

from qsfl_flower.errors import ConfigError
from qsfl_flower.rounds.assignment import Opened
from qsfl_flower.rounds.training import Job, Rounds, Trained


class SynchronousRounds(Rounds):
    """Ask, wait until all or enough have answered, combine; see `StableFedAvg`."""

    def train(
        self, job: Job, server_round: int, arrays: ArrayRecord, lap: Callable[[str], None]
    ) -> Trained:
        """Train once: ask, wait, combine."""
        engine = self.engine
        engine.reset()
        messages = list(
            self.hooks.configure_train(server_round, arrays, job.train_config, job.grid)
        )
        lap("configure")
        opened = engine.opened.get("train")
        self._check(messages, opened)
        if opened is not None and (why := engine.chain.unready(engine.states)) is not None:
            return self.skip(server_round, why)
        if opened is None or not (messages or engine.chain.drawer):
            return Trained((), ())
        arrivals = engine.post.exchange(
            job.grid,
            [(engine.sampling.ranks[m.metadata.dst_node_id], m) for m in messages],
            version=server_round - 1,
            patience=engine.patience,
            enough=opened.enough,
            on_reply=partial(engine.observer.on_progress, server_round, "train"),
        )
        lap("clients")
        replies = [a.message for a in arrivals if a.message is not None]
        engine.opened["train"] = replace(
            opened,
            messages=messages,
            spans={a.task.client: (a.task.sent_at, a.at) for a in arrivals},
            cut=sum(reply.has_content() for reply in replies) >= opened.enough,
        )
        model, metrics = self.hooks.aggregate_train(server_round, replies)
        lap("aggregate")
        return Trained(messages, replies, model, metrics, engine.outcome)

    def _check(self, messages: Sequence[Message], opened: Opened | None) -> None:
        """Refuse messages to others than those who were selected, and without a round.

        Raises
        ------
        ConfigError
            With the hook's name and what to do.
        """
        hook = f"{type(self.hooks).__name__}.configure_train"
        advice = (
            "call super().configure_train(...), and change the config that you give to it, or the "
            "messages that it returns"
        )
        if messages and opened is None:
            raise ConfigError(
                f"{hook} returns messages of its own, but clients and stages know nothing of such "
                f"a round; {advice}"
            )
        nodes = [message.metadata.dst_node_id for message in messages]
        selected = {s.node_id for s in opened.assignment.context.senders} if opened else set()
        if len(set(nodes)) < len(nodes) or not selected.issuperset(nodes):
            raise ConfigError(
                f"{hook} returns {len(nodes)} messages; allowed is one to each of the "
                f"{len(selected)} nodes that were selected; {advice}"
            )
