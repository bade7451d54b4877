"""Finding and reading configuration files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qsfl_flower.simulations.config.shape import closest
from qsfl_flower.simulations.config.tree import shown

_MAX_BYTES = 1 << 18
_PACKAGE = Path(__file__).parents[2]
_BARE_NAME = re.compile(r"[\w-]+")


QUESTIONS = ("analytics",)
"""Shipped files of questions, for ``qsfl analytics``."""


def shipped_configs(*, questions: bool = False) -> dict[str, Path]:
    """Return the experiments that come with the suite, by bare name.

    Parameters
    ----------
    questions : bool
        Whether to return the files of questions in their place.

    Returns
    -------
    dict
        Name (``"quickstart"``) to path; empty where the package was installed without them.
    """
    # Inside the package in a wheel, beside it in a checkout and in a Flower app bundle.
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        names = _yaml_files(folder)
        if "quickstart.yaml" in names:
            found = {Path(name).stem: folder / name for name in names}
            return {k: v for k, v in found.items() if (k in QUESTIONS) is questions}
    return {}


class Unreadable(Exception):
    """A configuration file cannot be had; the text says why."""


def find_file(name: str, folder: Path) -> Path:
    """Return the file that a path or a bare name means.

    Parameters
    ----------
    name : str
        A path, or the bare name of a YAML file of the folder or, if there is none, of a shipped
        configuration.
    folder : Path
        Where relative paths start.

    Returns
    -------
    Path
        Something that exists; it may still be a folder.

    Raises
    ------
    Unreadable
        There is nothing of that name; says which name was probably meant.
    """
    path = Path(os.path.normpath(folder / name))
    shipped = shipped_configs()
    try:
        if _BARE_NAME.fullmatch(name) is None or path.is_file():
            candidates = [path]
        else:
            known = shipped | shipped_configs(questions=True)
            candidates = [folder / f"{name}.yaml", *(known[one] for one in known if one == name)]
        for one in candidates:
            if one.exists():
                return one
        raise Unreadable(_missing(name, path, shipped))
    except (OSError, ValueError) as error:
        raise Unreadable(_reason(error)) from None


def _missing(name: str, path: Path, shipped: dict[str, Path]) -> str:
    local = _yaml_files(path.parent)
    if _BARE_NAME.fullmatch(name) is not None:
        close = closest(name, [*(Path(one).stem for one in local), *shipped])
        listed = f"shipped: {', '.join(shipped)}" if shipped else ""
        between = ("" if close else ";") + " " if listed else ""
        return f"no such configuration{_meant(close)}{between}{listed}"
    close = closest(path.name, local)
    close = str(Path(name).with_name(close)) if close else closest(path.stem, shipped)
    here = path.parent
    return (
        f"{'no such file' if here.is_dir() else f'no such folder {display(here)!r}'}{_meant(close)}"
    )


def _meant(close: str | None) -> str:
    return f"; did you mean '{close}'?" if close else ""


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(one.name for one in folder.iterdir() if one.suffix in (".yaml", ".yml"))
    except (OSError, ValueError):
        return []


def display(path: Path) -> str:
    """Write a path as short as the working folder allows."""
    try:
        text = str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except (OSError, ValueError):
        text = str(path)
    return text if text.isprintable() else shown(text)


def read(path: Path) -> str:
    """Read a configuration file.

    Parameters
    ----------
    path : Path
        Something that exists.

    Returns
    -------
    str
        Its text, without a byte order mark.

    Raises
    ------
    Unreadable
        It is a folder, not a regular file, too large, not UTF-8, or cannot be opened.
    """
    try:
        if path.is_dir():
            inside = ", ".join(_yaml_files(path)[:20]) or "no YAML files"
            raise Unreadable(f"is a folder, not a file; it holds {inside}")
        if not path.is_file():
            raise Unreadable("is not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise Unreadable(f"is larger than {_MAX_BYTES} bytes; a configuration is not")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise Unreadable(f"is not UTF-8 text: byte 0x{byte:02x} at offset {error.start}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(_reason(error)) from None


def _reason(error: OSError | ValueError) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read: {strerror or error}"
