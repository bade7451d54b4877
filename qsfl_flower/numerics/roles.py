"""What becomes of each array of a model: its role."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from qsfl_flower.errors import ConfigError

TRAINED = "trained"
"""Floats that clients train: a part of the flat vector."""

FROZEN = "frozen"
"""The server's own: it never changes, and no client sends it."""

BUFFER = "buffer"
"""Statistics and counters: averaged beside the vector, never clipped, noised or stepped."""

LOCAL = "local"
"""Each device's own: trained or counted there, kept there, and never sent."""

TIED = "tied:"
"""Begins the role of an array that is the same as another one, whose name follows."""

_QUANTISED = frozenset({"int8", "uint8", "int16", "uint16"})
_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_WRAPPERS = ("_module.", "_orig_mod.", "module.")
_LONGEST, _MOST = 200, 2000
"""Names that a hint is looked for among: comparing them takes time."""


def usual_role(dtype: str) -> str:
    """Return the role of an array of which nothing is declared.

    Floats are trained. Integers of 8 and 16 bits are taken for quantized weights, whose mean over
    clients with other scales would mean nothing: they are the server's own. Longer integers are
    taken for counters, and booleans for masks.
    """
    if dtype in _QUANTISED:
        return FROZEN
    return TRAINED if dtype.startswith("float") else BUFFER


def guess_roles(names: Iterable[str]) -> dict[str, str]:
    """Return the arrays whose names are those of the statistics of normalization, as buffers."""
    return {name: BUFFER for name in names if name.rpartition(".")[2] in _STATISTICS}


def check_roles(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[str],
    roles: Sequence[str],
) -> None:
    """Check that roles fit a model's arrays.

    Raises
    ------
    ConfigError
        If a role is unknown, asks integers to be trained, or ties an array to one that differs.
    """
    if len(roles) != len(names):
        raise ConfigError("a layout needs one role per name")
    specs = dict(zip(names, zip(shapes, dtypes, roles, strict=True), strict=True))
    for name, (shape, dtype, role) in specs.items():
        if role == TRAINED and not dtype.startswith("float"):
            raise ConfigError(f"roles: array {name!r} is {dtype}; only floats can be trained")
        if role in {TRAINED, FROZEN, BUFFER, LOCAL}:
            continue
        if not isinstance(role, str) or not role.startswith(TIED):
            raise ConfigError(
                f"roles: array {name!r} is {role!r:.60}; allowed are {TRAINED}, {FROZEN}, "
                f"{BUFFER}, {LOCAL} and {TIED}NAME"
            )
        target = role.removeprefix(TIED)
        if target not in specs:
            raise ConfigError(f"roles: array {name!r} is tied to {target!r:.80}, which is unknown")
        if specs[target][2].startswith(TIED):
            raise ConfigError(f"roles: array {name!r} is tied to {target!r}, itself a tied one")
        if specs[target][:2] != (shape, dtype):
            raise ConfigError(
                f"roles: array {name!r} is {dtype} {shape}, and {target!r}, which it is tied to, "
                f"is {specs[target][1]} {specs[target][0]}"
            )


def check_names(roles: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse roles of arrays that a model does not have.

    Raises
    ------
    ConfigError
        With the name that was probably meant: wrappers of torch put a prefix before each.
    """
    known = set(names)
    unknown = [name for name in roles if name not in known]
    if not unknown:
        return
    first, meant = unknown[0], None
    if len(first) <= _LONGEST:
        short = [name for name in names if len(name) <= _LONGEST][:_MOST]
        bare = {bare_name(name): name for name in short}
        close = difflib.get_close_matches(first, short, 1)
        meant = bare.get(bare_name(first)) or next(iter(close), None)
    hint = f"; did you mean {meant!r}?" if meant else ""
    raise ConfigError(
        f"roles: {len(unknown)} of {len(roles)} names are not in the model, the first is "
        f"{first!r:.80}{hint}"
    )


def bare_name(name: str) -> str:
    """Return a name without the prefixes that wrappers of torch put before it."""
    while (prefix := next((p for p in _WRAPPERS if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    return name
