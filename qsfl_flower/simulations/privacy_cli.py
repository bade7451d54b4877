"""``qsfl privacy``: what a budget buys, and what has been spent of it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qsfl_flower.errors import ConfigError, QSFLError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qsfl_flower.privacy.ledger import Ledger
    from qsfl_flower.privacy.optimizer import Proxy

app = typer.Typer(no_args_is_help=True, help="Plan privacy budgets and look into a ledger.")
_out = Console()

LedgerFile = Annotated[Path, typer.Argument(help="File of the ledger.", exists=True)]


@app.command()
def plan(
    clients: Annotated[int, typer.Option(min=1, help="Clients, or records of all clients.")],
    parameters: Annotated[int, typer.Option(min=1, help="Parameters of the model.")],
    rounds: Annotated[int, typer.Option(min=1, help="Noisy releases.")] = 100,
    rate: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Poisson sampling rate.")] = 1.0,
    delta: Annotated[float, typer.Option(min=1e-30, max=0.5, help="Delta.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw noise to signal against clients into this PNG file.")
    ] = None,
) -> None:
    """Show for several epsilons the noise multiplier and how the noise compares with the signal.

    Noise to signal is the expected norm of a round's noise over that of a mean in which all members
    agree and are clipped: above 1, a single round teaches nothing by itself.
    """
    from qsfl_flower.privacy.calibration import noise_multiplier_for

    rows = []
    for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0):
        noise = noise_multiplier_for(epsilon, delta, rounds, rate)
        ratio = noise * math.sqrt(parameters) / (rate * clients)
        rows.append({"epsilon": epsilon, "noise_multiplier": noise, "noise_to_signal": ratio})
    if plot is not None:
        plot.write_bytes(_picture(rows, clients, f"{rounds} releases, delta = {delta:g}"))
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    cohort = f"{rate * clients:g} of {clients} expected, {rounds} releases, delta {delta:g}"
    table = Table("epsilon", "noise multiplier", "noise to signal", title=cohort)
    for row in rows:
        table.add_row(
            f"{row['epsilon']:g}", f"{row['noise_multiplier']:.3g}", f"{row['noise_to_signal']:.3g}"
        )
    _out.print(table)


@app.command()
def choose(
    run: Annotated[Path, typer.Argument(help="Run folder of the proxy: public data, no privacy.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients of the private federation.")],
    parameters: Annotated[int, typer.Option(min=1, help="Parameters of the model.")],
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.")] = 100,
    rate: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Largest sampling rate.")] = 1.0,
    epsilon: Annotated[float, typer.Option(min=1e-9, help="Budget of the run.")] = 1.0,
    delta: Annotated[float, typer.Option(min=1e-30, max=0.5, help="Delta.")] = 1e-5,
) -> None:
    """Choose clip norm, rounds, cohort and noise for central noise, and explain the choice.

    The proxy must have measured norms (stage validate with max_norm, or clip) and accuracy.
    """
    from qsfl_flower.privacy.optimizer import Limits, choose

    limits = Limits(
        clients=clients, parameters=parameters, epsilon=epsilon, delta=delta, rounds=rounds,
        sampling_rate=rate,
    )  # fmt: skip
    with _in_one_line():
        found = choose(_proxy(run), limits)
    plan = {
        "clip_norm": found.clip_norm,
        "sampling_rate": found.sampling_rate,
        "rounds": found.schedule.rounds,
        "noise_multiplier": found.schedule.at(1),
        "last_over_first": found.schedule.last_over_first,
        "because": found.because,
    }
    sys.stdout.write(json.dumps(plan, indent=2) + "\n")


def _proxy(folder: Path) -> Proxy:
    """Read from a run folder what `choose` has to know."""
    from qsfl_flower.privacy.optimizer import Proxy
    from qsfl_flower.simulations.runs import Run, number

    run = Run.open(folder)
    norms: dict[int, list[float]] = {}
    for row in run.clients():
        if (norm := number(row.get("norm"))) is not None and norm > 0:
            norms.setdefault(int(row["round"]), []).append(norm)
    every, agreement, scores = [], [], []
    for record in run.metrics:
        own, whole = norms.get(record["round"]), number(record.get("update_norm"))
        score = number(record.get("eval_accuracy"))
        if own and whole and score is not None:
            every.append(own)
            agreement.append(min(1.0, whole / (sum(own) / len(own))))
            scores.append(score)
    if not every:
        raise ConfigError(
            f"{folder}: no round with norms and accuracy; run the proxy with stage clip, or "
            "validate with max_norm, and strategy fedavg"
        )
    return Proxy(norms=every, agreement=agreement, scores=scores)


def _picture(rows: list[dict[str, float]], clients: int, title: str) -> bytes:
    """Draw how the noise shrinks with the number of clients, for every epsilon."""
    from qsfl_flower.simulations.report import figures

    around = [clients * 10.0 ** (k / 4) for k in range(-8, 9)]

    def paint(axes: Axes) -> None:
        for row, colour in zip(rows, figures.CYCLE, strict=False):
            ratios = [row["noise_to_signal"] * clients / n for n in around]
            label = f"epsilon {row['epsilon']:g}, z = {row['noise_multiplier']:.3g}"
            axes.loglog(around, ratios, color=colour, linewidth=1.6, label=label)
        axes.axhline(1.0, color=figures.GREY, linewidth=1, linestyle=":")
        axes.axvline(clients, color=figures.GREY, linewidth=1, linestyle=":")
        axes.set_xlabel("clients")
        axes.set_ylabel("noise to signal")
        figures.legend(axes, columns=1)

    return figures.draw("plan", title, "Noise to signal against clients.", paint, 4.2).png


@app.command()
def status(
    ledger: LedgerFile,
    account: Annotated[str | None, typer.Argument(help="One account; by default all.")] = None,
) -> None:
    """Show what accounts have spent."""
    with _opened(ledger) as book:
        known = _known(book, ledger, account)
        table = Table(
            "account", "spent", "budget", "left", "releases left", "this period",
            "reserved, not committed",
        )  # fmt: skip
        for path in known:
            one = book.status(path)
            limit = one.budget.epsilon if one.budget else None
            table.add_row(
                path,
                f"{one.spent:.4g}" + (" (!)" if one.warning else ""),
                "-" if limit is None else f"{limit:g}",
                "-" if limit is None else f"{max(0.0, limit - one.spent):.4g}",
                "-" if one.releases_left is None else str(one.releases_left),
                "-" if one.period_spent is None else f"{one.period_spent:.4g}",
                str(one.reserved),
            )
    _out.print(table)


@app.command()
def history(ledger: LedgerFile, account: Annotated[str, typer.Argument(help="Account.")]) -> None:
    """List every charge of an account, as JSON lines."""
    with _opened(ledger) as book:
        (path,) = _known(book, ledger, account)
        for row in book.history(path):
            row["time"] = datetime.fromtimestamp(row["time"], UTC).isoformat(timespec="seconds")
            sys.stdout.write(json.dumps(row) + "\n")


@app.command()
def grant(
    ledger: Annotated[Path, typer.Argument(help="File of the ledger; made if there is none.")],
    account: Annotated[str, typer.Argument(help="Account, as federation/organization/client.")],
    epsilon: Annotated[float, typer.Argument(help="Budget over its lifetime.")],
    delta: Annotated[float, typer.Option(help="Delta.")] = 1e-5,
    period_epsilon: Annotated[float | None, typer.Option(help="Limit within a period.")] = None,
    period_days: Annotated[float | None, typer.Option(help="Length of the period.")] = None,
) -> None:
    """Set the budget of an account; a limit within a period refunds nothing."""
    from qsfl_flower.privacy.ledger import Budget

    seconds = None if period_days is None else 86_400 * period_days
    with _in_one_line():  # before the file is made
        budget = Budget(epsilon, delta, period_epsilon=period_epsilon, period_seconds=seconds)
    with _opened(ledger) as book:
        book.grant(account, budget)


def _known(book: Ledger, file: Path, account: str | None) -> list[str]:
    """Return an account that is in the ledger, or all of them."""
    known = book.paths()
    if account is None:
        return known
    if account not in known:
        raise typer.BadParameter(
            f"{file} has no account {account!r}: nothing was granted to it or spent from it; "
            "`qsfl privacy status` without an account lists all"
        )
    return [account]


@contextmanager
def _opened(path: Path) -> Iterator[Ledger]:
    from qsfl_flower.privacy.ledger import Ledger

    with _in_one_line(), closing(Ledger(path)) as book:
        yield book


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except QSFLError as error:
        raise typer.BadParameter(str(error)) from None
