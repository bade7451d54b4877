"""What a node insists on, whatever a server asks: one file on the node, checked on the node.

The file is TOML, named by ``qsfl-policy`` in the SuperNode's ``--node-config``::

    least_cohort = 5            # no sum of fewer clients
    hidden_only = true          # updates leave under a secure sum, or not at all
    openings = ["sum"]          # nothing but sums is opened of what this node sends

    [privacy]
    epsilon = 2.0
    placements = ["record", "distributed"]

    queries = ["version"]       # the app's query.version may be answered in the clear

    [evaluate]                  # the same keys, for evaluation: an account and a cohort of its own
    least_cohort = 10
    privacy = { epsilon = 0.5, placements = ["distributed"] }

Without a file the defaults of `NodePolicy` hold. Without a table ``evaluate``, ``query`` or
``analytics`` that purpose has the settings of training, and its account.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flwr.app import Context

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.node.memory import STATE_FOLDER
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.secure.pairwise.terms import Policy as MaskPolicy
from qsfl_flower.secure.terms import Terms
from qsfl_flower.wire.kinds import Purpose
from qsfl_flower.wire.legacy import NUM_EXAMPLES

POLICY_FILE = "qsfl-policy"
"""Entry of the node's configuration that names the policy file."""

OPENINGS = ("sum", "norms", "distances")
"""What a committee may open of hidden updates."""

MOST_EXAMPLES = 1000
"""How many examples a hidden sum may tell apart, unless the policy says `weights`."""

OTHER_PURPOSES = tuple(p for p in Purpose if p is not Purpose.TRAIN)

_COHORT = 3
_MAX_FILE = 64 * 1024
_NODE_CONFIG = {
    "qsfl-min-cohort": ("least_cohort", int),
    "qsfl-min-threshold": ("least_threshold", int),
    "qsfl-max-colluding": ("colluding", float),
}
"""Single settings in the node's configuration; they count before those of the file."""


@dataclass(frozen=True, kw_only=True)
class NodePolicy:
    """The least that a node accepts.

    Parameters
    ----------
    privacy : MinimumPolicy, optional
        The least differential privacy; without it none is demanded.
    hidden_only : bool, optional
        Whether updates may leave under a secure sum only. Evaluation and queries, whose answers
        nothing hides, are refused then. Default: true with another `least_cohort` than 3, since
        who asks for a cohort would not get one for an update in the clear.
    kept_state : bool
        With `hidden_only`: whether training may build on what earlier training has left here: local
        arrays, residuals, control variates, personal layers, interrupted training. They come from
        earlier instructions, and a server may have sent other ones to each node.
    openings : tuple of str
        What a committee may open besides nothing, out of `OPENINGS`.
    least_cohort : int
        Fewest clients in a sum, and in every part of it that counts with one weight, >= 2.
    least_threshold : int
        Fewest committee members that together can open a sum, >= 2.
    least_bits : int
        Fewest fractional bits of a sum, in [1, 61].
    weights : bool
        Whether a sum may give public weights that differ, as asynchronous rounds do by staleness,
        and hidden weights that tell more than `MOST_EXAMPLES` examples apart.
    window : int
        Most rounds whose updates may come together in one sum, >= 1. Asynchronous federations need
        their largest staleness and one. A server may have asked for something else in each round.
    colluding : float
        Share of the clients that may help the server under pairwise masks, in [0, 1).
    servers, members : tuple of str
        Names that may give instructions, and that may serve on a committee; empty: every server,
        and every client, of the roster.
    metrics : tuple of str
        Metrics that may be sent as they are beside record-level privacy, and that a hidden sum may
        weigh by besides the number of examples: nothing that depends on what is in a record.
    releases : int, optional
        Most training replies in `days`, over all runs, >= 1.
    days : float, optional
        Length of the period over which releases, and the epsilon of `privacy`, are counted over all
        runs, > 0. Without it the epsilon is that of one run.
    code : tuple of str
        SHA-256 digests of app bundles that may run. Enforced by the executor that starts the app,
        not by the mods, which are part of the app.
    queries : tuple of str, optional
        Actions of the app's ``query`` and ``evaluate`` handlers that may be answered in the clear
        (``"version"`` is ``query.version``, ``"evaluate"`` the evaluation), whatever `hidden_only`
        and `privacy` say. Default: all of them where neither is demanded, none otherwise.
    evaluate, query, analytics : NodePolicy, optional
        What holds for sums of that purpose, instead of these settings.
    account : str
        Under which purpose releases and epsilon are counted; set by `of`.

    Examples
    --------
    >>> policy = NodePolicy(least_cohort=5, hidden_only=True, openings=("sum",))
    >>> policy.least_cohort
    5
    """

    privacy: MinimumPolicy | None = None
    hidden_only: bool | None = None
    kept_state: bool = False
    openings: tuple[str, ...] = OPENINGS
    least_cohort: int = _COHORT
    least_threshold: int = 2
    least_bits: int = 16
    weights: bool = False
    window: int = 1
    colluding: float = 0.1
    servers: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("num-examples",)
    releases: int | None = None
    days: float | None = None
    code: tuple[str, ...] = ()
    queries: tuple[str, ...] | None = None
    evaluate: NodePolicy | None = None
    query: NodePolicy | None = None
    analytics: NodePolicy | None = None
    account: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.openings) - set(OPENINGS))
        rules = (
            ("openings", not unknown, f"a list out of {', '.join(OPENINGS)}"),
            ("least_cohort", self.least_cohort >= 2, "an integer >= 2"),
            ("least_threshold", self.least_threshold >= 2, "an integer >= 2"),
            ("least_bits", 1 <= self.least_bits <= 61, "an integer from 1 to 61"),
            ("window", self.window >= 1, "an integer >= 1"),
            ("colluding", 0 <= self.colluding < 1, "a number in [0, 1)"),
            ("releases", self.releases is None or self.releases >= 1, "an integer >= 1"),
            ("days", self.days is None or self.days > 0, "a number > 0"),
            ("days", self.releases is None or self.days is not None, "given with releases"),
        )
        if self.hidden_only is None:
            object.__setattr__(self, "hidden_only", self.least_cohort != _COHORT)
        for name, valid, allowed in rules:
            if not valid:
                raise ConfigError(
                    f"node policy: {name} is {getattr(self, name)!r}; it must be {allowed}"
                )

    @classmethod
    def load(cls, path: Path) -> NodePolicy:
        """Read a policy file strictly.

        Raises
        ------
        ConfigError
            If it cannot be read, or has an unknown key or a value that is not allowed.
        """
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE + 1)
            if len(text) > _MAX_FILE:
                raise ConfigError(f"node policy {path}: longer than {_MAX_FILE} bytes")
            values = tomllib.loads(text.decode())
        except OSError as error:
            raise ConfigError(f"node policy {path} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"node policy {path} is not TOML: {error}") from None
        try:
            return cls._read(values, "")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def _read(cls, values: dict[str, Any], prefix: str) -> NodePolicy:
        """Read a table; those of the purposes have the same keys, and none inside them."""
        parts: dict[str, Any] = {}
        for purpose in () if prefix else OTHER_PURPOSES:
            if purpose in values:
                table = values.pop(purpose)
                if not isinstance(table, dict):
                    raise ConfigError(f"node policy: {purpose} must be a table")
                parts[purpose] = cls._read(table, f"{purpose}.")
        if "least_cohort" in values:  # even the default, once it is written down
            values.setdefault("hidden_only", True)
        privacy = values.pop("privacy", None)
        if privacy is not None:
            read = _typed(MinimumPolicy, privacy, f"{prefix}privacy.")
            if "epsilon" not in read:
                raise ConfigError(
                    f"node policy: {prefix}privacy.epsilon is missing; it has no default"
                )
            privacy = MinimumPolicy(**read)
        return cls(privacy=privacy, **parts, **_typed(cls, values, prefix))

    def of(self, purpose: Purpose) -> NodePolicy:
        """Return what holds for a purpose: its own table, or the settings of training."""
        own: NodePolicy | None = getattr(self, purpose.value, None)
        if own is None or purpose is Purpose.TRAIN:
            return self
        # Who may give instructions does not depend on what they ask for.
        both = _both("servers", self.servers, own.servers)
        return replace(own, account=own.account or purpose.value, servers=both)

    def and_also(self, other: NodePolicy) -> NodePolicy:
        """Return the policy that allows what both allow.

        Raises
        ------
        ConfigError
            If no server, or no member, is accepted by both.
        """
        days = [d for d in (self.days, other.days) if d is not None]
        releases = [r for r in (self.releases, other.releases) if r is not None]
        least = self.privacy or other.privacy
        return NodePolicy(
            privacy=None if least is None else least.and_also(other.privacy),
            hidden_only=bool(self.hidden_only or other.hidden_only),
            kept_state=(self.kept_state or other.kept_state)
            and not (self.forgets or other.forgets),
            openings=tuple(o for o in self.openings if o in other.openings),
            least_cohort=max(self.least_cohort, other.least_cohort),
            least_threshold=max(self.least_threshold, other.least_threshold),
            least_bits=max(self.least_bits, other.least_bits),
            weights=self.weights and other.weights,
            window=min(self.window, other.window),
            colluding=max(self.colluding, other.colluding),
            servers=_both("servers", self.servers, other.servers),
            members=_both("members", self.members, other.members),
            metrics=tuple(m for m in self.metrics if m in other.metrics),
            releases=min(releases, default=None),
            days=max(days, default=None),  # fewer releases in a longer time
            code=_both("code", self.code, other.code),
            queries=self._queries(other),
            evaluate=self._and_also(other, Purpose.EVALUATE),
            query=self._and_also(other, Purpose.QUERY),
            analytics=self._and_also(other, Purpose.ANALYTICS),
        )

    def _own(self, purpose: Purpose) -> bool:
        return getattr(self, purpose.value) is not None

    def _and_also(self, other: NodePolicy, purpose: Purpose) -> NodePolicy | None:
        """Return what both allow for a purpose; its own account only if both give it one."""
        if not (self._own(purpose) or other._own(purpose)):
            return None
        both = self.of(purpose).and_also(other.of(purpose))
        apart = self._own(purpose) and other._own(purpose)
        return replace(both, account=purpose.value if apart else Purpose.TRAIN.value)

    def _queries(self, other: NodePolicy) -> tuple[str, ...] | None:
        """Return the actions that both let out in the clear; None: what the defaults say."""
        if self.queries is None and other.queries is None:
            return None
        known = {*(self.queries or ()), *(other.queries or ())}
        return tuple(sorted(q for q in known if self.answers(q) and other.answers(q)))

    def answers(self, action: str) -> bool:
        """Return whether an action of the app's may be answered in the clear.

        Parameters
        ----------
        action : str
            ``"evaluate"``, ``"evaluate.x"``, ``"query"``, or ``"x"`` of ``query.x``.
        """
        if self.queries is not None:
            return action in self.queries
        asked = action.partition(".")[0] == Purpose.EVALUATE
        own = self.of(Purpose.EVALUATE if asked else Purpose.QUERY)
        return not own.hidden_only and own.privacy is None

    @property
    def forgets(self) -> bool:
        """Whether a hidden update may depend on the instruction in hand alone."""
        return bool(self.hidden_only) and not self.kept_state

    def sentences(self) -> list[str]:
        """Return what this policy means, one sentence each, for ``qsfl explain --node``."""
        told = [
            "sends updates, and numbers of evaluation, under a secure sum or not at all"
            if self.hidden_only
            else "sends updates in the clear if the strategy asks for that",
            "trains on each instruction alone: nothing that earlier training has left on this node "
            "takes part in a hidden sum"
            if self.forgets
            else "lets what earlier training has left on this node take part in hidden sums, "
            "whatever the server asked for then",
            f"lets a committee open {', '.join(self.openings) or 'nothing'} of what it sends",
            f"is part of no sum of fewer than {self.least_cohort} clients, of no committee that "
            f"fewer than {self.least_threshold} members can open, and of no sum with fewer than "
            f"{self.least_bits} fractional bits",
            "accepts sums whose public weights differ"
            if self.weights
            else "accepts sums in which all clients have one public weight",
            f"lets updates of at most {self.window} rounds come together in one sum",
            f"assumes under masks that {self.colluding:.0%} of the clients help the server",
            f"obeys {', '.join(self.servers) or 'every server'} of the roster",
            f"deals shares to {', '.join(self.members) or 'every client'} of the roster",
        ]
        period = "one run" if self.days is None else f"{self.days:g} days, over all runs"
        if self.privacy is None:
            told.append("demands no differential privacy")
        else:
            p = self.privacy
            told.append(
                f"trains for at most epsilon = {p.epsilon:g} at delta = {p.delta:g} in {period}, "
                f"with noise at {', '.join(p.placements)}; the plan's steps must carry that out"
            )
        if self.releases is not None:
            told.append(f"answers at most {self.releases} training instructions in {period}")
        if self.releases is not None or self.days is not None:
            told.append(f"counts in the folder {STATE_FOLDER}; without it a new process forgets")
        told.append(
            "answers evaluation and queries in the clear"
            if self.queries is None and self.answers("evaluate")
            else f"answers in the clear: {', '.join(self.queries or ()) or 'nothing'}"
        )
        for purpose in OTHER_PURPOSES:
            if self._own(purpose):
                own = self.of(purpose).sentences()
                told += [f"for {purpose}: {one}" for one in own if one not in told]
        if self.code:
            told.append(
                f"names {len(self.code)} app bundles that may run; only an executor that checks "
                "bundles enforces this, not the mods, which travel inside the bundle"
            )
        return told

    def masks(self, least: int) -> MaskPolicy:
        """Return what this node insists on under pairwise masks, for a sum of `least` or more."""
        return MaskPolicy(self.colluding, max(self.least_cohort, least))

    def check_server(self, name: str) -> None:
        """Refuse instructions of a server that is not accepted here."""
        if self.servers and name not in self.servers:
            raise Refusal(
                "policy-server", f"{name} may not instruct this node; {', '.join(self.servers)} may"
            )

    def check_hidden_weights(self, weighted_by: object, max_examples: object) -> None:
        """Refuse a hidden sum in which a weight of the server's choice could single out this node.

        A model can be made so that a loss is large on one client's records alone; weighed by it,
        the sum of many is the update of that client.

        Parameters
        ----------
        weighted_by : object
            Name of the metric that counts the examples, as the plan says it.
        max_examples : object
            The number from which on all clients count alike.

        Raises
        ------
        Refusal
            ``policy-weights``.
        """
        if weighted_by not in (allowed := (NUM_EXAMPLES, *self.metrics)):
            raise Refusal(
                "policy-weights",
                f"the sum weighs updates by {weighted_by!r:.60}; this node allows "
                f"{', '.join(dict.fromkeys(allowed))} (metrics in its policy file)",
            )
        if type(max_examples) is not int or max_examples < 1:
            raise Refusal(
                "policy-weights", f"max_examples is {max_examples!r:.60}; allowed is >= 1"
            )
        if max_examples > MOST_EXAMPLES and not self.weights:
            raise Refusal(
                "policy-weights",
                f"max_examples is {max_examples}: one client could count as many others together; "
                f"this node allows {MOST_EXAMPLES} (weights = true in its policy file allows more)",
            )

    def check_terms(self, terms: Terms, *, noisy: bool = False) -> None:
        """Refuse the terms of a committee's sum that protect less than this policy.

        Clients check before they deal, members before they open anything.

        Parameters
        ----------
        terms : qsfl_flower.secure.terms.Terms
            What is proposed.
        noisy : bool
            Whether clients add shares of a noise that protects nothing but the sum.

        Raises
        ------
        Refusal
            ``policy-openings``, ``policy-cohort``, ``policy-threshold``, ``policy-bits``,
            ``policy-weights``, ``policy-window`` or ``policy-committee``.
        """
        opened = ["sum", *(n for n in ("norms", "distances") if getattr(terms, n))]
        if (noisy or terms.purpose != Purpose.TRAIN) and len(opened) > 1:
            raise Refusal(
                "policy-openings",
                f"the terms open {', '.join(opened)}; of sums with shares of noise, and of those "
                "for another purpose than training, nothing but the sum is opened",
            )
        if extra := [name for name in opened if name not in self.openings]:
            raise Refusal(
                "policy-openings",
                f"the terms open {', '.join(extra)}; this node allows {', '.join(self.openings)}",
            )
        for reason, what, found, least in (
            ("policy-cohort", "min_clients", terms.min_clients, self.least_cohort),
            ("policy-threshold", "threshold", terms.threshold, self.least_threshold),
            ("policy-bits", "bits", terms.bits, self.least_bits),
        ):
            if found < least:
                raise Refusal(reason, f"the terms say {what} {found}; this node asks for {least}")
        if len(set(terms.weights)) > 1 and not self.weights:
            raise Refusal(
                "policy-weights",
                f"the terms weigh updates by {terms.weights}; this node asks for equal weights "
                "(weights = true in its policy file allows others)",
            )
        if len(terms.weights) > self.window:
            raise Refusal(
                "policy-window",
                f"the terms add up updates of {len(terms.weights)} rounds; this node allows "
                f"{self.window} (window in its policy): the model may differ from round to round",
            )
        if strangers := sorted(set(terms.members) - set(self.members) if self.members else ()):
            raise Refusal(
                "policy-committee", f"{', '.join(strangers)} may not serve on a committee here"
            )


CARRIED_OUT = "carried out"
"""Counted by `qsfl_mod`, so that outer mods know that it is there."""


@dataclass(frozen=True)
class _Acting:
    """A policy in force, and what of the message in hand is counted already."""

    policy: NodePolicy
    counted: set[str]


_ACTING: ContextVar[_Acting | None] = ContextVar("qsfl_policy", default=None)


@contextmanager
def insisting(policy: NodePolicy) -> Iterator[None]:
    """Let a policy count for the message that is handled, instead of the node's file."""
    before = _ACTING.set(_Acting(policy, counted()))
    try:
        yield
    finally:
        _ACTING.reset(before)


def insisted() -> bool:
    """Return whether an outer mod has a policy in force and has checked the message."""
    return _ACTING.get() is not None


def counted() -> set[str]:
    """Return what outer mods have counted of the message that is handled; to be added to."""
    acting = _ACTING.get()
    return set() if acting is None else acting.counted


def policy_of(context: Context, own: NodePolicy | None = None) -> NodePolicy:
    """Return what counts for a node now: the policy in force, or its file, or the defaults.

    Parameters
    ----------
    context : Context
        Of the node.
    own : NodePolicy, optional
        What the app asks for; beside a policy in force or a file, what both allow.

    Raises
    ------
    ConfigError
        If the file or a setting of the node's configuration is not usable.
    """
    if (acting := _ACTING.get()) is not None:
        return acting.policy if own is None else acting.policy.and_also(own)
    config, policy = context.node_config, own or NodePolicy()
    if (path := config.get(POLICY_FILE)) is not None:
        if not (isinstance(path, str) and Path(path).is_absolute()):
            raise ConfigError(f"node config: {POLICY_FILE} is {path!r}; give an absolute path")
        policy = NodePolicy.load(Path(path))
    single: dict[str, Any] = {}
    for key, (name, kind) in _NODE_CONFIG.items():
        if key not in config:
            continue
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise ConfigError(f"node config: {key} is {value!r}; it must be a {kind.__name__}")
        single[name] = kind(value)
        if name == "least_cohort":
            single["hidden_only"] = True
    policy = replace(policy, **single)
    return policy if own is None else policy.and_also(own)


def _both(name: str, ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in both lists, where an empty list names everybody."""
    if not (ours and theirs):
        return ours or theirs
    if not (both := tuple(n for n in ours if n in theirs)):
        raise ConfigError(f"node policy: {name} of the app and of the node have no name in common")
    return both


def _typed(kind: type, values: object, prefix: str) -> dict[str, Any]:
    """Return the values of a table by the types of a dataclass's fields."""
    known = {f.name: str(f.type) for f in fields(kind)}
    for name in ("privacy", "account", *OTHER_PURPOSES):
        known.pop(name, None)
    if not isinstance(values, Mapping):
        raise ConfigError(f"node policy: {prefix.rstrip('.')} must be a table")
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"node policy: unknown key {prefix}{name!s:.60}; allowed are {', '.join(known)}"
            )
        wanted = known[name].removesuffix(" | None")
        if wanted.startswith("tuple"):
            if not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
                raise ConfigError(f"node policy: {prefix}{name} must be a list of texts")
            value = tuple(value)
        elif wanted == "float" and type(value) is int:
            value = float(value)
        elif type(value).__name__ != wanted:
            raise ConfigError(f"node policy: {prefix}{name} is {value!r:.60}; it must be {wanted}")
        read[name] = value
    return read
