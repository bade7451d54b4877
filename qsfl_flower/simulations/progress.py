"""What a person sees while a run goes on: live bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qsfl_flower.simulations.serve import Display
from qsfl_flower.strategies import RoundRecord


class TerminalDisplay(Display):
    """One line per round, and live bars if the console is a terminal.

    Parameters
    ----------
    console : Console
        Where to write.
    rounds : int
        Rounds of the run.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._rounds = self._progress.add_task("rounds", total=rounds)
            self._clients = self._progress.add_task("clients", total=None)

    def __enter__(self) -> Self:
        """Start the live display."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the live display."""
        if self._progress:
            self._progress.stop()

    def progress(self, server_round: int, phase: str, done: int, total: int) -> None:
        """Move the bar of the clients."""
        if self._progress:
            verb = "training" if phase == "train" else "evaluating"
            self._progress.update(
                self._clients, description=f"clients {verb}", completed=done, total=total
            )

    def round_over(self, record: RoundRecord, rounds: int, unused: Sequence[str] = ()) -> None:
        """Print the line of a round."""
        with self._lock:
            self._console.print(describe(record, rounds, unused), highlight=False, markup=False)
            if self._progress:
                self._progress.update(self._rounds, completed=record.round)


class LogDisplay(Display):
    """One line per round in Flower's log, which ``flwr run`` shows."""

    def round_over(self, record: RoundRecord, rounds: int, unused: Sequence[str] = ()) -> None:
        """Log the line of a round."""
        logging.getLogger("flwr").info(describe(record, rounds, unused))


def describe(record: RoundRecord, rounds: int, unused: Sequence[str] = ()) -> str:
    """Return one line on a round.

    Parameters
    ----------
    record : RoundRecord
        The round.
    rounds : int
        Rounds of the run.
    unused : sequence of str
        What was not used, if more is known of it than its reasons and their numbers.
    """
    parts = [f"round {record.round:>{len(str(rounds))}}/{rounds}"]
    if record.train_loss is not None:
        parts.append(f"train loss {record.train_loss:.4f}")
    if record.eval_loss is not None:
        parts.append(f"test loss {record.eval_loss:.4f}")
    accuracy = record.eval_accuracy
    if accuracy is None:
        accuracy = record.client_eval_accuracy
    if accuracy is not None:
        parts.append(f"accuracy {accuracy:6.2%}")
    if "evaluation" in record.stages and record.client_eval_accuracy is not None:
        parts.append(f"clients' accuracy {record.client_eval_accuracy:6.2%}")
    if record.selected:
        parts.append(f"clients {record.accepted}/{record.selected}")
        parts.append(f"up {human_bytes(record.bytes_up)}")
        parts.append(f"down {human_bytes(record.bytes_down)}")
    parts.append(f"{record.time_s:.1f} s")
    told = unused or [f"{n} x {reason}" for reason, n in record.unused.items()]
    if told:
        parts.append(f"not used: {', '.join(told)}")
    if record.skipped:
        parts.append(f"model unchanged: {record.skipped}")
    if record.alarm:
        parts.append(f"alarm: {record.alarm}")
    if record.reaction:
        parts.append(record.reaction)
    return "  ".join(parts)


def human_bytes(count: float) -> str:
    """Return a size with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
