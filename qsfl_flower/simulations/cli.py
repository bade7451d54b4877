"""The ``qsfl`` command."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

# Set before Flower or Ray is imported: no telemetry unless the user asks for it, no noise.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qsfl_flower import __version__
from qsfl_flower.errors import ConfigError, QSFLError, RunInterrupted, plain
from qsfl_flower.simulations.config import (
    asked_imports,
    dump_experiment,
    json_schema,
    load_experiment,
    markdown,
)
from qsfl_flower.simulations.keys_cli import keys_app
from qsfl_flower.simulations.privacy_cli import app as privacy_app
from qsfl_flower.simulations.runs import find_run, list_runs
from qsfl_flower.simulations.stopping import end_process

app = typer.Typer(
    help="Private, robust, quantum-safe federated learning on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")
app.add_typer(privacy_app, name="privacy")
_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

RunsFolder = Annotated[Path, typer.Option("--folder", help="Folder that holds the runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]


class Scenario(StrEnum):
    """Demonstrations under ``simulations/scenarios``."""

    CHAIN = "chain"
    COMPRESSION = "compression"
    DRIFT = "drift"
    PRIVATE_UTILITY = "private_utility"
    PERSONALIZATION = "personalization"
    ROBUSTNESS = "robustness"
    STALENESS = "staleness"


JSON_KEYS = (
    "run", "rounds", "accuracy", "loss", "bytes_up", "bytes_down", "seconds", "epsilon", "rejected",
)  # fmt: skip


@app.command()
def run(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped one (quickstart).")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with an interrupted run: folder, name or 'latest'.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Make the last line of the output one JSON object.")
    ] = False,
    folder: RunsFolder = Path("runs"),
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE",
            help="With --resume: a module that the run's configuration may import.",
        ),
    ] = None,
) -> None:
    """Run an experiment and write its report."""
    with _errors():
        if (config is None) == (resume is None):
            raise ConfigError("give either a configuration or --resume RUN")
        path = None
        if resume is not None:
            path = find_run(resume, folder)
            experiment = load_experiment(
                path / "config.yaml", overrides or (), allowed=plugin or ()
            )
        else:
            experiment = load_experiment(config or "", overrides or ())

        from qsfl_flower.simulations.progress import TerminalDisplay
        from qsfl_flower.simulations.runner import run_experiment

        _out.print(
            f"[bold]{escape(experiment.name)}[/bold]: {experiment.strategy.name}, "
            f"{experiment.clients.count} clients, {experiment.rounds} rounds of "
            f"{escape(experiment.data.dataset)} with {escape(experiment.model.name)}",
            highlight=False,
        )
        with TerminalDisplay(_out, experiment.rounds) as display:
            summary = run_experiment(experiment, resume=path, display=display)
        report = summary["report"] or f"not written yet: qsfl report {summary['folder']}"
        accuracy = summary["accuracy"]
        whose = " of the common model, local layers at their first values" * bool(
            experiment.model.local
        )
        told = "" if accuracy is None else f"accuracy {accuracy:.2%}{whose}, "
        _out.print(
            f"{told}{summary['seconds']:.1f} s, report: {report}", markup=False, highlight=False
        )
        if as_json:
            line = {**{k: summary[k] for k in JSON_KEYS}, "run": summary["folder"]}
            sys.stdout.write(json.dumps(line) + "\n")
        end_process(0)


@app.command()
def validate(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
) -> None:
    """Check a configuration with its data and model, and print it with every default filled in."""
    with _errors():
        experiment = load_experiment(config, overrides or ())

        from qsfl_flower.simulations.fitting import check_fit

        logging.getLogger("flwr").setLevel(logging.ERROR)
        if (unseen := check_fit(experiment)) is not None:
            sys.stdout.write(f"# data and model are not checked: {plain(unseen, 1000)}\n")
        for one in asked_imports(experiment):
            sys.stdout.write(f"# imports {one}\n")
        sys.stdout.write(dump_experiment(experiment))


@app.command()
def explain(
    config: Annotated[
        str, typer.Argument(help="A YAML file, the name of a shipped one, or a node's policy.")
    ],
    overrides: Overrides = None,
    node: Annotated[bool, typer.Option("--node", help="Explain a node's policy file.")] = False,
) -> None:
    """Say in words what a configuration achieves and costs, before anything runs."""
    with _errors():
        if node:
            from qsfl_flower.node.policy import NodePolicy

            told = NodePolicy.load(Path(config)).sentences()
            sys.stdout.write("A node with this policy\n" + "".join(f"  - {t}\n" for t in told))
            return
        from qsfl_flower.simulations.inquiry.config import asks_questions, load_inquiry

        if asks_questions(config):
            from qsfl_flower.simulations.inquiry.explain import explain_inquiry

            sys.stdout.write(explain_inquiry(load_inquiry(config, overrides or ())))
            return
        from qsfl_flower.simulations.explain import explain_experiment

        # Flower warns of everything that a strategy does not do.
        logging.getLogger("flwr").setLevel(logging.ERROR)
        sys.stdout.write(explain_experiment(load_experiment(config, overrides or ())))


@app.command()
def analytics(
    config: Annotated[
        str, typer.Argument(help="A YAML file of questions, or the shipped one (analytics).")
    ],
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Make the last line of the output one JSON object.")
    ] = False,
) -> None:
    """Ask questions about the clients' tables; only noisy sums over many clients are opened."""
    with _errors():
        from qsfl_flower.simulations.inquiry.config import load_inquiry
        from qsfl_flower.simulations.inquiry.report import lines_of

        asked = load_inquiry(config, overrides or ())
        from qsfl_flower.simulations.inquiry.run import run_inquiry

        folder, answers = run_inquiry(asked)
        table = Table("question", "", "estimate", "from", "to", box=None)
        for answer in answers["answers"]:
            for name, one in lines_of(answer):
                numbers = (one[key] for key in ("value", "low", "high"))
                cells = ("-" if number is None else f"{number:.5g}" for number in numbers)
                table.add_row(Text(answer["name"]), Text(name), *cells)
        _wide().print(table, highlight=False)
        _out.print(
            f"epsilon {answers['epsilon']:.4g}, {answers['seconds']:.1f} s, report: "
            f"{folder / 'report.html'}",
            markup=False,
            highlight=False,
        )
        if as_json:
            sys.stdout.write(json.dumps({**answers, "folder": str(folder)}) + "\n")
        end_process(0)


@app.command()
def schema(
    config: Annotated[
        str | None, typer.Argument(help="A configuration whose plugins take part.")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of the documentation instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of configurations, for editors."""
    with _errors():
        if config is not None:
            load_experiment(config)
        sys.stdout.write(markdown() if as_markdown else json.dumps(json_schema(), indent=2) + "\n")


@app.command()
def report(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder, name, beginning of a name, or 'last'.")
    ],
    folder: RunsFolder = Path("runs"),
) -> None:
    """Write the report of a run again."""
    with _errors():
        from qsfl_flower.simulations.report import write_report

        _show(write_report(find_run(name, folder)))


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Two or more runs, as for report.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    folder: RunsFolder = Path("runs"),
) -> None:
    """Compare runs: what differs in their configuration and in their results."""
    with _errors():
        from qsfl_flower.simulations.report import compare as compare_runs
        from qsfl_flower.simulations.report import write_comparison

        if len(names) < 2:
            raise ConfigError(f"compare: {len(names)} run given; two or more are needed")
        folders = [find_run(name, folder) for name in names]
        table, _ = compare_runs(folders)
        sys.stdout.write(table + "\n")
        _show(write_comparison(folders, out))


@app.command("list")
def list_command(folder: RunsFolder = Path("runs")) -> None:
    """List the runs of a folder."""
    with _errors():
        table = Table(box=None)
        for title in ("run", "status", "rounds", "accuracy", "seconds", "started"):
            table.add_column(title, overflow="fold")
        for row in list_runs(folder):
            table.add_row(
                Text(row.name),
                Text(row.status),
                str(row.rounds),
                "" if row.accuracy is None else f"{row.accuracy:.2%}",
                "" if row.seconds is None else f"{row.seconds:.1f}",
                str(row.started or ""),
            )
        _wide().print(table, highlight=False)


@app.command()
def scenario(
    name: Annotated[Scenario, typer.Argument(help="Which one.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("scenario"),
) -> None:
    """Show one effect as a picture and print its numbers."""
    with _errors():
        from importlib import import_module

        out.mkdir(parents=True, exist_ok=True)
        module = import_module(f"qsfl_flower.simulations.scenarios.{name}")
        sys.stdout.write(json.dumps(module.run(out), indent=2) + "\n")


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


def _wide() -> Console:
    """Return where tables go: a pipe has no width, nothing is cut or folded there."""
    return _out if _out.is_terminal else Console(width=10_000, soft_wrap=True)


def _show(path: Path) -> None:
    """Print where something is."""
    _out.print(plain(path, 4096), markup=False, highlight=False)


def _complain(error: QSFLError, style: str | None = None) -> None:
    """Print an error, whatever stands in it."""
    lines = [plain(line, 2000) for line in str(error).splitlines()]
    _err.print("\n".join(lines), style=style, markup=False, highlight=False)


@contextmanager
def _errors() -> Iterator[None]:
    """Print errors as text and choose the exit code: 2 for a bad configuration, 1 for the rest."""
    try:
        yield
    except ConfigError as error:
        _complain(error, "red")
        raise typer.Exit(2) from None
    except RunInterrupted as error:
        _complain(error)
        end_process(130)
        raise typer.Exit(130) from None
    except QSFLError as error:
        _complain(error, "red")
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
