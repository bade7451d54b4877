"""Reading and finding run folders.

A run folder is written while a federation trains and read afterwards by people, ``qsfl report``,
``qsfl compare`` and ``qsfl list``. Reading is lazy and strict: what is damaged is named with file
and line, except for the one damage that a killed run leaves behind, a cut-off last line of a
``.jsonl`` file, which is skipped and noted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from qsfl_flower.errors import CheckpointError, ConfigError, RunError, plain
from qsfl_flower.simulations.config.document import parse
from qsfl_flower.simulations.config.tree import Place, to_plain

Record = Mapping[str, Any]

CHECKPOINTS = "checkpoint"
"""Folder of the server's checkpoints in a run folder."""

_CONFIG = "config.yaml"
_SUMMARY = "summary.json"
_METRICS = "metrics.jsonl"
_CLIENTS = "clients.jsonl"
_EVENTS = "events.jsonl"
_MOST_CONFIG, _MOST_FILE, _MOST_LINE, _MOST_JOURNAL = 1 << 18, 1 << 20, 1 << 20, 1 << 28
"""Bytes that a configuration, a summary, a line and a whole journal may have."""
_MOST_VALUES = 5_000_000
"""Values in what is kept in memory as a whole: 100,000 rounds of 50."""
_MOST_ROUNDS = 10_000_000
_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}$")

FINISHED = "finished"
UNFINISHED = "unfinished"
DAMAGED = "damaged"


@dataclass(frozen=True)
class Run:
    """One run folder; its files are read when they are first asked for.

    The journals (``metrics.jsonl``, ``clients.jsonl``, ``events.jsonl``) grow while the run goes
    on, so an absent journal means that nothing was recorded yet; the other files must exist.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run folder.

        Parameters
        ----------
        folder : Path
            A folder that contains at least ``config.yaml``.

        Returns
        -------
        Run
            The run, nothing of which has been read yet.

        Raises
        ------
        RunError
            If the folder does not exist or is no run folder.
        """
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder")
        if not _is_run(folder):
            raise RunError(f"{folder}: not a run folder, there is no {_CONFIG} in it")
        return cls(folder)

    @property
    def name(self) -> str:
        """The folder's name, by which ``find_run`` finds the run again."""
        return plain(self.folder.resolve().name)

    @cached_property
    def config(self) -> Record:
        """The resolved configuration."""
        path = self.folder / _CONFIG
        try:
            node = parse(_read(path, _MOST_CONFIG), Place(str(path), 1))
        except ConfigError as error:
            raise RunError(f"damaged YAML: {error}") from None
        return _mapping(path, None if node is None else to_plain(node))

    @cached_property
    def config_text(self) -> str:
        """The resolved configuration, line by line as it stands in the file."""
        lines = _read(self.folder / _CONFIG, _MOST_CONFIG).splitlines()
        return "".join(_clean(line) + "\n" for line in lines)

    @cached_property
    def environment(self) -> Record:
        """Package versions, Python, platform and git revision of the run."""
        return _json_file(self.folder / "environment.json")

    @cached_property
    def partition(self) -> Record:
        """Who holds how many examples of which class."""
        return _json_file(self.folder / "partition.json", _MOST_JOURNAL)

    @cached_property
    def summary(self) -> Record | None:
        """The outcome, or None while the run goes on or after it was killed."""
        path = self.folder / _SUMMARY
        return _json_file(path) if path.exists() else None

    @cached_property
    def charged(self) -> float | None:
        """Epsilon of all rounds whose instructions left, also of those that were not finished."""
        from qsfl_flower.rounds.charges import read_charges  # imports Flower

        try:
            charges = read_charges(self.folder / CHECKPOINTS)
        except CheckpointError as error:
            raise RunError(str(error)) from None
        return None if charges is None else charges.epsilon

    @cached_property
    def metrics(self) -> tuple[Record, ...]:
        """One record a round in the order of rounds; of a repeated round the last record."""
        path = self.folder / _METRICS
        rounds: dict[int, Record] = {}
        for line, record in _journal(path, kept=True):
            number = record.get("round")
            if type(number) is not int or not 0 <= number <= _MOST_ROUNDS:
                raise RunError(
                    f"{path}, line {line}: round is {plain(number, 40)!r}, not an integer from 0 "
                    f"to {_MOST_ROUNDS}"
                )
            rounds[number] = record
        return tuple(rounds[number] for number in sorted(rounds))

    @cached_property
    def events(self) -> tuple[Record, ...]:
        """Notable events in the order in which they happened."""
        return tuple(record for _, record in _journal(self.folder / _EVENTS, kept=True))

    def clients(self) -> Iterator[Record]:
        """Stream the record of every client and round; there may be millions, so none is kept."""
        return (record for _, record in _journal(self.folder / _CLIENTS))

    @property
    def status(self) -> str:
        """How the run ended: what the summary says, ``"unfinished"`` without a summary."""
        return UNFINISHED if self.summary is None else plain(self.summary.get("status"), 40)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about the journals: which are absent, which are cut off."""
        notes = []
        for path in (self.folder / name for name in (_METRICS, _CLIENTS, _EVENTS)):
            if not path.exists():
                if path.name == _EVENTS:
                    continue  # a quiet run has no events
                notes.append(f"{path.name} is absent: nothing was recorded in it.")
            elif _is_cut_off(path):
                notes.append(f"The last line of {path.name} is cut off and was ignored.")
        return tuple(notes)


@dataclass(frozen=True)
class RunRow:
    """One line of ``qsfl list``.

    Parameters
    ----------
    name : str
        Name of the run folder.
    folder : Path
        The run folder.
    status : str
        ``"finished"``, ``"interrupted"``, ``"failed"``, ``"unfinished"`` (no summary: the run goes
        on or was killed) or ``"damaged"`` (`problem` says why).
    rounds : int or None
        Rounds that were completed.
    accuracy : float or None
        Last accuracy on the server's test set, in [0, 1].
    seconds : float or None
        Wall time of the run.
    started : datetime or None
        Start of the run.
    problem : str or None
        Why a damaged run could not be read.
    """

    name: str
    folder: Path
    status: str
    rounds: int | None = None
    accuracy: float | None = None
    seconds: float | None = None
    started: datetime | None = None
    problem: str | None = None


def number(value: object) -> float | None:
    """Read a recorded value as a float (possibly NaN or infinite); None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def find_run(name_or_path: str, root: Path) -> Path:
    """Find a run folder by path, name, beginning of a name, or as the ``latest`` one.

    Parameters
    ----------
    name_or_path : str
        Path of a run folder; or, below `root`, its name, the unambiguous beginning of its name, or
        ``"latest"`` or ``"last"`` for the run that was started last.
    root : Path
        Folder that holds the run folders.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    RunError
        If there is no such run, or more than one.
    """
    for exact in (Path(name_or_path), root / name_or_path):
        if name_or_path and _is_run(exact):
            return exact
    runs = _run_folders(root)
    if name_or_path in ("latest", "last") and runs:
        return runs[0]
    found = [run for run in runs if name_or_path and run.name.startswith(name_or_path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(f"'{name_or_path}' names {len(found)} runs: {_names(found)}")
    where = f"no run '{name_or_path}' in {root}"
    raise RunError(f"{where}; there are: {_names(runs)}" if runs else f"{where}; it holds no runs")


def list_runs(root: Path) -> list[RunRow]:
    """List the runs below a folder, the one started last first.

    Parameters
    ----------
    root : Path
        Folder that holds the run folders; it need not exist.

    Returns
    -------
    list of RunRow
        One row a run, damaged runs included.
    """
    return [_row(folder) for folder in _run_folders(root)]


def _row(folder: Path) -> RunRow:
    run = Run(folder)
    try:
        summary = run.summary
        if summary is None:
            last = run.metrics[-1] if run.metrics else {}
            keys = (last.get("round"), last.get("eval_accuracy"), last.get("elapsed_s"))
        else:
            keys = (summary.get("rounds"), summary.get("accuracy"), summary.get("seconds"))
    except RunError as error:
        return RunRow(run.name, folder, DAMAGED, started=_started(folder), problem=str(error))
    rounds, accuracy, seconds = (number(key) for key in keys)
    return RunRow(
        name=run.name,
        folder=folder,
        status=run.status,
        rounds=None if rounds is None else int(rounds),
        accuracy=accuracy,
        seconds=seconds,
        started=_started(folder),
    )


def _is_run(folder: Path) -> bool:
    return (folder / _CONFIG).is_file()


def _run_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    folders = [folder for folder in root.iterdir() if _is_run(folder)]
    return sorted(folders, key=lambda folder: (_started(folder), folder.name), reverse=True)


def _started(folder: Path) -> datetime:
    """Start of a run from its folder's name, or the folder's date if it was renamed."""
    if match := _STAMP.search(folder.name):
        try:
            return datetime.strptime(match[1], "%Y%m%d-%H%M%S")
        except ValueError:
            pass
    return datetime.fromtimestamp((folder / _CONFIG).stat().st_mtime)


def _names(folders: list[Path], most: int = 10) -> str:
    names = ", ".join(folder.name for folder in folders[:most])
    return names if len(folders) <= most else f"{names} and {len(folders) - most} more"


def _read(path: Path, most: int) -> str:
    _check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise RunError(f"{path}: has more than {most} bytes")
        return data.decode()
    except FileNotFoundError:
        raise RunError(f"{path}: the file is missing from the run folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _json_file(path: Path, most: int = _MOST_FILE) -> Record:
    text = _read(path, most)
    _check_values(path)
    try:
        return _mapping(path, _clean(json.loads(text)))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}, line {error.lineno}: damaged JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be parsed: {error}") from error


def _clean(value: Any) -> Any:
    """Return JSON values in which no text can disturb a terminal or a page."""
    if isinstance(value, str):
        return value if value.isprintable() else plain(value, len(value))
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value


def _mapping(path: Path, value: Any) -> Record:
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds a {type(value).__name__}, not a mapping of names to values")
    return value


def _journal(path: Path, *, kept: bool = False) -> Iterator[tuple[int, Record]]:
    """Yield line number and record of a ``.jsonl`` file; a cut-off last line ends it."""
    if not path.exists():
        return
    _check_regular(path)
    if kept:
        _check_values(path)
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(_lines(file), start=1):
                if len(raw) > _MOST_LINE:
                    raise RunError(f"{path}, line {line}: has more than {_MOST_LINE} bytes")
                if not raw.strip():
                    continue
                record = _record(raw)
                if record is None and not raw.endswith(b"\n"):
                    return
                if record is None:
                    raise RunError(f"{path}, line {line}: not a JSON object")
                yield line, record
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error}") from error


def _check_regular(path: Path) -> None:
    """Refuse pipes and devices, which never end."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: is not a regular file")


def _check_values(path: Path) -> None:
    """Refuse a file that has no room in memory as a whole; counting is quick, parsing is not."""
    room = _MOST_VALUES
    with path.open("rb") as file:
        while room >= 0 and (part := file.read(1 << 20)):
            room -= _values(part)
    if room < 0:
        raise RunError(f"{path}: more than {_MOST_VALUES} values")


def _values(raw: bytes) -> int:
    """Count the values of a JSON text, or more."""
    return sum(map(raw.count, (b",", b"[", b"{"))) + 1


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; one that is too long is cut where it becomes so."""
    while raw := file.readline(_MOST_LINE + 1):
        yield raw


def _record(raw: bytes) -> Record | None:
    try:
        value = _clean(json.loads(raw))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_cut_off(path: Path) -> bool:
    """Tell whether the last line neither ends nor parses, as after a kill in mid-write."""
    with path.open("rb") as file:
        last = b"\n"
        for last in _lines(file):  # noqa: B007  (the last line is what is wanted)
            pass
    return not last.endswith(b"\n") and _record(last) is None
