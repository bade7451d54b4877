"""What third parties add: mechanisms, rules, attacks, detectors, models and others, by name.

A module says what it adds in a list::

    @dataclass(frozen=True)
    class Nearest(LinearRule):
        '''The mean of the updates nearest to the median.'''

        name = "nearest"
        share: float = option("Share of the updates that count.", 0.5, gt=0, le=1)

    QSFL_PLUGINS = [Extension("rule", Nearest)]

A configuration names the module in ``plugins:``, or the module's distribution declares an entry
point in the group ``qsfl_flower.rule`` (``qsfl_flower.`` and the kind) whose name is that of the
rule. Either is imported only if a configuration asks for it; see docs/extending.md.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

from qsfl_flower.errors import ConfigError
from qsfl_flower.traits import Trait

KINDS = ("mechanism", "rule", "attack", "detector", "model", "dataset", "selection", "algorithm")
"""What can be added; a mechanism is a stage with its half on the client."""

ATTRIBUTE = "QSFL_PLUGINS"
GROUP = "qsfl_flower."

LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "gt": (lambda value, bound: value > bound, ">"),
    "ge": (lambda value, bound: value >= bound, ">="),
    "lt": (lambda value, bound: value < bound, "<"),
    "le": (lambda value, bound: value <= bound, "<="),
}


@dataclass(frozen=True)
class About:
    """What an option means, and which values it can have (`LIMITS`)."""

    text: str
    limits: Mapping[str, float]
    kind: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)


def option(
    text: str,
    default: Any = MISSING,
    *,
    kind: str = "",
    schema: Mapping[str, Any] | None = None,
    **limits: float,
) -> Any:
    """Describe a field of a dataclass: the only place of a parameter.

    Parameters
    ----------
    text : str
        What it means, with its unit, as one sentence.
    default : object
        Its default; without one the option is required.
    kind : str
        One of `KINDS` if it names something of this kind: what plugins add is allowed too.
    schema : Mapping[str, Any], optional
        What else pydantic checks in a file, and what is added to the JSON schema (``x-...``).
    **limits : float
        ``gt``, ``ge``, ``lt`` or ``le``: what the value must be.
    """
    about = {"about": About(text, limits, kind, schema or {})}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parameters of a mechanism, the same on both ends; subclass it with `option` fields.

    Types are numbers, texts, truth values, ``Literal``, tuples of these, other options, and
    ``None``. A stage whose constructor takes its options and nothing else is a subclass of both.

    Raises
    ------
    ConfigError
        If a value does not fit its type or its limits.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):
                vars(self)[name] = tuple(value)
            elif getattr(value, "shape", None) == () and hasattr(value, "item"):
                vars(self)[name] = value.item()  # a number of NumPy: plans hold those of Python
        check_options(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the values for a plan: JSON values by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return options from a section: those of options within options stand in it too.

        Options that may be None have a section of their own within it.
        """
        own, hints = dict(values), _hints(cls)
        for one in fields(cls):
            if is_options(within := hints[one.name]):
                names = {inner.name for inner in fields(within)} & own.keys()
                own[one.name] = within(**{name: own.pop(name) for name in names})
            elif isinstance(own.get(one.name), Mapping) and any(map(is_options, get_args(within))):
                own[one.name] = next(filter(is_options, get_args(within))).of(own[one.name])
        return cls(**own)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Read what `to_dict` returned.

        Raises
        ------
        ConfigError
            If a name is missing or unknown, or a value does not fit.
        """
        known = [one.name for one in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(known):
            found = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise ConfigError(f"options: found {found!r:.200}, the names must be {known}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def is_options(hint: Any) -> bool:
    """Return whether a field holds options of its own."""
    return isinstance(hint, type) and issubclass(hint, Options)


_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def check_options(values: Any) -> None:
    """Refuse a dataclass instance with a value outside the type or the limits of its field.

    Raises
    ------
    ConfigError
        Naming class and field, what was found, and what is allowed.
    """
    hints = _hints(type(values))
    for one in fields(values):
        value, hint = getattr(values, one.name), hints[one.name]
        about = one.metadata.get("about", About("", {}))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        within = fits(value, hint) and all(
            not number or LIMITS[name][0](value, bound) for name, bound in about.limits.items()
        )
        if not within and not (isinstance(value, str) and value in _ADDED.get(about.kind, ())):
            raise ConfigError(
                f"{type(values).__name__}: {one.name} is {value!r:.60}; it must be "
                + allowed(hint, about.limits)
            )


def allowed(hint: Any, limits: Mapping[str, float]) -> str:
    """Say in words which values fit a type and limits: ``a whole number >= 1``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(one, limits) for one in inner)
    if origin is tuple:
        return f"a list, each item {allowed(inner[0], {})}"
    if hint in (int, float):
        bounds = " and ".join(f"{LIMITS[name][1]} {bound:g}" for name, bound in limits.items())
        return f"{'a whole number' if hint is int else 'a number'} {bounds}".rstrip()
    if is_dataclass(hint):
        return f"the fields {', '.join(one.name for one in fields(hint))}"
    words = {bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(hint) or str(getattr(hint, "__name__", hint))


def fits(value: object, hint: Any) -> bool:
    """Return whether a value is of a type, strictly: numbers are finite, and no truth values.

    A mapping is of the type of a dataclass if it has its fields, and no other keys; fields with a
    default may be missing.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return isinstance(value, tuple) and all(fits(one, inner[0]) for one in value)
        return isinstance(value, tuple) and len(value) == len(inner)
    if is_dataclass(hint) and isinstance(value, Mapping):
        hints = _hints(cast(type, hint))
        return _required(hint) <= set(value) <= set(hints) and all(
            fits(tuple(one) if isinstance(one, list) else one, hints[name])
            for name, one in value.items()
        )
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(cast(float, value)) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _required(kind: Any) -> set[str]:
    return {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}


@dataclass(frozen=True)
class Extension:
    """Something that a configuration can name.

    Parameters
    ----------
    kind : str
        One of `KINDS`, ``"mechanism"`` excepted: that is a `Mechanism`.
    make : Callable
        Called with the options as keywords; docs/extending.md says what each kind returns.
    name : str
        By default ``make.name``.
    options : type or None
        A dataclass with the options; by default `make` itself if it is one, else the keywords of
        its signature.
    """

    kind: str
    make: Callable[..., Any]
    name: str = ""
    options: type | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.kind == "mechanism":
            raise ConfigError(
                f"extension: kind is {self.kind!r}; it must be one of {', '.join(KINDS[1:])}"
            )
        object.__setattr__(self, "name", self.name or getattr(self.make, "name", ""))
        if self.options is None and isinstance(self.make, type) and is_dataclass(self.make):
            object.__setattr__(self, "options", self.make)
        _check_name(self.kind, self.name)


@dataclass(frozen=True)
class Mechanism:
    """A stage with both halves; each half is imported where it is needed, and only there.

    Parameters
    ----------
    name : str
        Value of ``stage:`` in YAML, and name of the stage.
    options : type[Options]
        Its parameters; the docstring describes the stage.
    server : str
        ``"package.module:Class"``: a stage, called as ``Class(options, seed=seed)``.
    client : str or None
        ``"package.module:STEPS"``: a mapping of the names of its steps to functions, see
        `qsfl_flower.node.steps`; None if clients have nothing to do.
    tasks : str or None
        The same for tasks that clients answer without the app.
    receives : str or None
        The same for what clients do to an instruction before any step or the app sees it, by the
        key of the suite's record that asks for it.
    needs : tuple of str or None
        Arguments that the federation provides, such as its credentials. If it is given, the stage
        takes each option as a keyword, and these beside or instead of them.
    traits : frozenset of Trait
        What it does whatever its options, as far as that is to be known before it is built: a
        configuration with stages that must not meet is refused when it is read.
    """

    name: str
    options: type[Options]
    server: str
    client: str | None = None
    tasks: str | None = None
    receives: str | None = None
    needs: tuple[str, ...] | None = None
    traits: frozenset[Trait] = frozenset()
    kind: str = field(default="mechanism", init=False)

    def __post_init__(self) -> None:
        _check_name("mechanism", self.name)
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise ConfigError(f"mechanism {self.name!r}: options must be a subclass of Options")

    def stage(self, options: Options, seed: int = 0, **needed: Any) -> Any:
        """Return the server's half, given what it needs of the federation."""
        make = attribute(self.server)
        if self.needs is None:
            return make(options, seed=seed)
        return make(**{one.name: getattr(options, one.name) for one in fields(options)} | needed)

    def steps(self) -> Mapping[str, Callable[..., Any]]:
        """Return the client's half: its steps by name."""
        return {} if self.client is None else dict(attribute(self.client))

    def answers(self) -> Mapping[str, Callable[..., Any]]:
        """Return the tasks of the client's half by name."""
        return {} if self.tasks is None else dict(attribute(self.tasks))

    def receivers(self) -> Mapping[str, Callable[..., Any]]:
        """Return what the client's half does to instructions, by key."""
        return {} if self.receives is None else dict(attribute(self.receives))


Plugin = Extension | Mechanism

_ADDED: dict[str, dict[str, Plugin]] = {kind: {} for kind in KINDS}


def added(kind: str) -> Mapping[str, Plugin]:
    """Return what was added of a kind, by name."""
    return _ADDED[kind]


def state() -> tuple[tuple[str, str], ...]:
    """Return kind and name of all that was added."""
    return tuple((kind, name) for kind, found in _ADDED.items() for name in found)


def add(plugin: Plugin) -> None:
    """Make a plugin known in this process; once more is no error.

    Raises
    ------
    ConfigError
        If another one has its name.
    """
    known = _ADDED[plugin.kind].setdefault(plugin.name, plugin)
    if known != plugin:
        raise ConfigError(f"there are two of {plugin.kind} {plugin.name!r}; give one another name")


def load_module(name: str) -> list[Plugin]:
    """Import a module and return what it adds.

    Raises
    ------
    ConfigError
        If it cannot be imported, or adds nothing.
    """
    module = _module(name)
    found = getattr(module, ATTRIBUTE, None)
    if not isinstance(found, list | tuple) or not found:
        raise ConfigError(f"module {name!r} has no list {ATTRIBUTE} of what it adds")
    return [_checked(one, f"{name}.{ATTRIBUTE}") for one in found]


def declared() -> dict[tuple[str, str], EntryPoint]:
    """Return the entry points of installed distributions by kind and name; imports none."""
    return {(kind, one.name): one for kind in KINDS for one in entry_points(group=GROUP + kind)}


def load_entry(entry: EntryPoint) -> Plugin:
    """Import what an entry point names: a `Mechanism`, or what makes an `Extension`.

    Raises
    ------
    ConfigError
        If it cannot be imported, or is something else than its group says.
    """
    kind = entry.group.removeprefix(GROUP)
    found = attribute(entry.value)
    if not isinstance(found, Extension | Mechanism):
        found = Extension(kind, found, entry.name) if kind != "mechanism" else found
    plugin = _checked(found, f"entry point {entry.name!r} of group {entry.group!r}")
    if (plugin.kind, plugin.name) != (kind, entry.name):
        raise ConfigError(
            f"entry point {entry.name!r} of group {entry.group!r} names the {plugin.kind} "
            f"{plugin.name!r}; both must agree"
        )
    return plugin


def _checked(found: object, where: str) -> Plugin:
    if not isinstance(found, Extension | Mechanism):
        raise ConfigError(f"{where}: found {found!r:.60}; it must be an Extension or a Mechanism")
    return found


def _check_name(kind: str, name: object) -> None:
    plain = isinstance(name, str) and name.replace("-", "_").isidentifier() and len(name) <= 60
    if not plain:
        raise ConfigError(f"{kind}: the name is {name!r:.60}; it must be a word")


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}; it must be "
            "installed, or lie in a folder of PYTHONPATH"
        ) from error


def attribute(place: str) -> Any:
    """Return what ``"package.module:name"`` names.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(_module(module), name)
    except AttributeError as error:
        raise ConfigError(f"{place!r}: module {module!r} has no {name!r}") from error
