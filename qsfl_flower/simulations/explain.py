"""What an experiment achieves and costs, in words, before anything runs: ``qsfl explain``."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.errors import QSFLError
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.rounds.explanation import explain
from qsfl_flower.simulations.build import client_of, owners_of, rows_of, strategy_of
from qsfl_flower.simulations.config import Experiment, asked_imports
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.ray_access import explain_ray
from qsfl_flower.simulations.rehearsal import Traffic, rehearse
from qsfl_flower.simulations.report.text import count, duration, size, some_clients
from qsfl_flower.strategies import CheckpointStore, RunObserver, StableFedAvg

_PROBE = 256
"""Examples on which training is timed."""

_REHEARSED, _CLIENT = 10_000_000, 50_000
"""So many parameters of all clients of a round are rehearsed at most; a client counts for more."""


def explain_experiment(experiment: Experiment) -> str:
    """Return the explanation as text.

    Parameters
    ----------
    experiment : Experiment
        What would be run.

    Raises
    ------
    CompositionError
        If its chain is refused.
    """
    with TemporaryDirectory() as folder:
        strategy = strategy_of(experiment, CheckpointStore(Path(folder)), RunObserver())
    chain = " -> ".join(stage.name for stage in strategy.chain.stages)
    clients = experiment.clients.count
    lines = [
        f"{experiment.name}: {type(strategy).__name__}, {count(clients, 'client')}, "
        f"{count(experiment.rounds, 'round')}",
        f"Chain: {chain}",
    ]
    arrays = get_arrays(model_of(experiment))
    layout = strategy.layout_of(arrays)
    support = _support(strategy, layout, arrays)
    asked = round(clients * experiment.clients.fraction_train)
    told = explain(strategy.chain, layout, experiment.rounds, asked, support)
    sentences = {topic: [*said] for topic, said in told.sentences.items()}
    if strategy.evaluator is not None:
        for topic, more in strategy.evaluator.explain(experiment.rounds).items():
            sentences.setdefault(topic, []).extend(more)
    if kept := [*_kept(layout)]:
        lines += ["", "What is not learned together", *_bullets(kept)]
    for topic, found in sentences.items():
        lines += ["", f"{topic}", *_bullets(found)]
    lines += [
        "",
        "Costs",
        *_bullets([*_bytes(told.bytes_up, layout, arrays, experiment), _time(experiment)]),
    ]
    if imported := asked_imports(experiment):
        lines += ["", "Imports", *_bullets(imported)]
    lines += ["", "While `qsfl run` simulates it", *_bullets([explain_ray()])]
    if experiment.attacks or experiment.faults:
        lines += ["", "Tried in this experiment", *_bullets(_trials(experiment))]
    return "\n".join(lines) + "\n"


def _support(strategy: StableFedAvg, layout: Layout, arrays: dict[str, NDArray[Any]]) -> int | None:
    """Return how many public coordinates a round has, if it is restricted to some."""
    context = RoundContext(1, layout, Vector.of(arrays, layout))
    states = strategy.chain.init(layout, {})
    found = strategy.chain.support(states, context)
    return None if found is None else found.size


def _kept(layout: Layout) -> Iterator[str]:
    own = set(layout.local)
    for names, fate in (
        ([n for n in layout.frozen if n not in own], "keep their first values and are not sent"),
        (
            layout.local,
            "stay on each device and are not sent; the server's evaluation sees their first "
            "values, that of the clients their own (clients.fraction_evaluate)",
        ),
    ):
        if names:
            yield f"{count(len(names), 'array')}, the first is {names[0]!r}: {fate}"


def _bytes(
    bytes_up: int, layout: Layout, arrays: dict[str, NDArray[Any]], experiment: Experiment
) -> list[str]:
    """Return what is sent, as a rehearsal shows; reckoned where that would take long."""
    asked = round(experiment.clients.count * experiment.clients.fraction_train)
    model = f"the model of {layout.size:,} parameters has {size(4 * layout.size)}"
    if asked * (layout.size + _CLIENT) > _REHEARSED:
        whole = sum(array.nbytes for array in arrays.values())
        return [
            f"up: about {size(bytes_up)} for each client and round, and some kB for the message; "
            f"{model}",
            f"down: about {size(whole)} for each client and round, or what broadcast makes of it; "
            f"{count(asked, 'client')} a round",
        ]
    try:
        seen = rehearse(experiment)
    except QSFLError as error:
        return [f"bytes: unknown, since the first rounds cannot be tried here: {error}"]
    return [
        f"up: {_sent(seen.up, seen.rounds)}; {model}",
        f"down: {_sent(seen.down, seen.rounds)}",
        f"sizes are those of {count(len(seen.records), 'round')} tried here, without attacks and "
        "faults",
    ]


def _sent(sent: Traffic, rounds: int) -> str:
    """Say what goes one way."""
    if rounds == 1:
        return f"{size(sent.first)} for each client; {size(sent.whole)} in the whole run"
    varied = sent.most > 1.1 * sent.least
    between = f", from {size(sent.least)} to {size(sent.most)}" if varied else ""
    return (
        f"{size(sent.later)} for each client and round from round 2 on{between} "
        f"({size(sent.first)} in round 1); {size(sent.whole)} in the whole run"
    )


def _time(experiment: Experiment) -> str:
    """Time training on a few examples, and reckon what a round takes on this machine."""
    try:
        owners = owners_of(experiment)
        train, _ = rows_of(experiment, owners, 0)
        probe = np.full_like(owners, -1)
        probe[train[:_PROBE]] = 0
        client = client_of(experiment, probe, 0)
        start = list(get_arrays(model_of(experiment)).values())
        seconds = min(_seconds(client, start) for _ in range(2))
    except QSFLError as error:
        return f"time: unknown, since training cannot be tried here: {error}"
    examples = int(np.count_nonzero(owners >= 0)) * experiment.clients.fraction_train
    cores = os.cpu_count() or 1
    per_round = seconds * examples / max(1, min(_PROBE, train.size)) / cores
    return (
        f"time: about {duration(per_round)} of training a round on {count(cores, 'core')} like "
        f"these, reckoned from {min(_PROBE, train.size)} examples; start and stages add to it"
    )


def _seconds(client: TrainingClient, start: list[NDArray[Any]]) -> float:
    started = time.perf_counter()
    client.fit(start, {"server-round": 1})
    return time.perf_counter() - started


def _trials(experiment: Experiment) -> Iterator[str]:
    for attack in experiment.attacks:
        yield f"attack {attack.attack} by {some_clients([str(c) for c in attack.clients])}"
    for fault in experiment.faults:
        yield f"fault {fault.kind} of client {fault.client}"


def _bullets(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        yield textwrap.fill(sentence, 100, initial_indent="  - ", subsequent_indent="    ")
