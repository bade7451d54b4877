"""Whether a node does what an instruction asks: the plan's steps against the node's own policy.

A promise in an instruction counts only if the steps of the same instruction carry it out, and if
what was promised before, and what has left this node since, leave room for one more release. The
release is written down before the app trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError, QSFLError, Refusal
from qsfl_flower.node.memory import Facts, facts_of
from qsfl_flower.node.policy import CARRIED_OUT, NodePolicy, counted, insisting
from qsfl_flower.node.steps import SOURCES, check_parameters, owned
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.policy import MinimumPolicy, Protection
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.secure.pairwise.ring import RingCode
from qsfl_flower.secure.terms import Terms
from qsfl_flower.wire import (
    CHOOSE_STEP,
    COMPRESS_STEP,
    FORM_KEY,
    MASK_ENCODE_STEP,
    MASK_STEP,
    PLAN_KEY,
    REFUSED_KEY,
    TASK_KEY,
    ClientPhase,
    Form,
    Plan,
    PlanItem,
    config_of,
)
from qsfl_flower.wire.content import AUTH_RECORD
from qsfl_flower.wire.keys import (
    CLIP_STEP,
    DISTRIBUTED_DP,
    LOCAL_DP,
    MASKED_SUM,
    PROTECTION,
    RECORD_DP,
    SHARES,
)
from qsfl_flower.wire.kinds import Purpose, purpose_of

PHASES: dict[str, ClientPhase] = {
    PROTECTION: ClientPhase.CORRECT,
    RECORD_DP: ClientPhase.CORRECT,
    CHOOSE_STEP: ClientPhase.SPARSIFY,
    MASK_STEP: ClientPhase.SPARSIFY,
    CLIP_STEP: ClientPhase.CLIP,
    LOCAL_DP: ClientPhase.NOISE,
    DISTRIBUTED_DP: ClientPhase.NOISE,
    COMPRESS_STEP: ClientPhase.ENCODE,
    MASK_ENCODE_STEP: ClientPhase.ENCODE,
    SHARES: ClientPhase.ENCODE,
    MASKED_SUM: ClientPhase.ENCODE,
}
"""The place of every step; a plan that has them in another order is refused."""

_REPEATED = frozenset({PROTECTION, CLIP_STEP})
_HIDING = frozenset({SHARES, MASKED_SUM})
_STEP_OF = {
    "record": RECORD_DP,
    "local": LOCAL_DP,
    "distributed": DISTRIBUTED_DP,
    "distributed-record": DISTRIBUTED_DP,
}
PROTECTING = _HIDING | {PROTECTION, *_STEP_OF.values()}
"""Steps of plans under which nothing but the mechanism may tell about a device's data."""

_UNSAFE = {
    "local": frozenset({CHOOSE_STEP}),
    "distributed": frozenset({CHOOSE_STEP}),
    "distributed-record": frozenset({CHOOSE_STEP, MASK_STEP}),
}
LEAST_NOISE = MinimumPolicy(
    epsilon=100.0, delta=1e-3, placements=("distributed", "distributed-record")
)
"""What noise must do to count as noise where the node demands none: sums of other purposes than
training come with it, or over the same clients."""

_RELEASES = "policy/releases"
_PROMISES = "policy/promises"
_DAY = 86_400.0


@dataclass(frozen=True)
class _When:
    """The time now, the length of the period in days (None: one run), purpose and account."""

    now: float
    days: float | None
    purpose: Purpose
    account: str


def obey(
    message: Message, context: Context, policy: NodePolicy, call_next: ClientAppCallable
) -> Message:
    """Do what an instruction asks if a policy allows it, and if `qsfl_mod` carries its plan out.

    Raises
    ------
    Refusal
        With the reason; nothing of the app's may be sent.
    """
    with insisting(policy):
        check_instruction(message, context, policy)
        reply = call_next(message, context)
        carried_out = CARRIED_OUT in counted()
    own = policy.of(purpose_of(message.metadata.message_type))
    if own.privacy is not None or own.hidden_only:
        _check_transformed(message, reply, carried_out)
    return reply


def check_instruction(message: Message, context: Context, policy: NodePolicy) -> None:
    """Refuse an instruction that asks for more than a node gives, or charge it.

    Raises
    ------
    Refusal
        With the reason; the app must not be called.
    ConfigError
        If nobody has checked the signature yet: releases of others would be charged.
    """
    content, asked_for = message.content, message.metadata.message_type
    purpose = purpose_of(asked_for)
    if AUTH_RECORD in content:  # auth_mod takes it out
        raise ConfigError(
            "this instruction is signed, and auth_mod must check it before the other mods see it: "
            "write ClientApp(mods=[auth_mod(), qsfl_mod]), in this order"
        )
    asked = config_of(content)
    if TASK_KEY in asked:
        return  # answered by the suite's own tasks, which check what they open
    if purpose is not Purpose.TRAIN and PLAN_KEY not in asked:
        action = asked_for.removeprefix("query.")
        if purpose is Purpose.ANALYTICS or not policy.answers(action):
            by_name = policy.queries is not None
            raise Refusal(
                "policy-query" if by_name else "policy-in-the-clear",
                f"{asked_for} is not among the queries of this node's policy"
                if by_name
                else f"what {asked_for} reveals about this node's data is neither hidden nor noisy",
            )
        return
    policy = policy.of(purpose)
    plan = _plan(asked)
    _check_order(plan)
    _check_source(plan, purpose)
    _check_sum(plan, policy, purpose)
    now = unix_time()
    least = policy.privacy
    if least is None and purpose is not Purpose.TRAIN and _noisy(plan):
        least = LEAST_NOISE
    promise = None if least is None else _promise(plan, policy, least)
    for item in plan.items:
        check_parameters(item.name, item.parameters)
    exact = must_stay(content, purpose)
    if promise is None and policy.releases is None and not exact:
        return
    with facts_of(context) as facts:
        if exact:
            _check_same(facts, plan, context.run_id, purpose)
        if policy.releases is not None and policy.days is not None:
            _count_release(facts, policy, now)
        if promise is not None and least is not None:
            offer, releases = promise
            when = _When(now, policy.days, purpose, policy.account)
            _charge(facts, offer, releases, least, context.run_id, when)


def _plan(asked: ConfigRecord) -> Plan:
    if PLAN_KEY not in asked:
        return Plan()
    with _readable("plan"):
        return Plan.decode(asked[PLAN_KEY])


def _check_order(plan: Plan) -> None:
    """Refuse plans whose known steps are not in their places, or come twice."""
    known = {**PHASES, **dict.fromkeys(SOURCES, ClientPhase.MEASURE)}
    names = [item.name for item in plan.items if item.name in known]
    phases = [known[name] for name in names]
    if phases != sorted(phases):
        raise Refusal("policy-plan", f"the steps {', '.join(names)} are not in their order")
    single = [name for name in names if name not in _REPEATED]
    if len(set(single)) != len(single):
        raise Refusal("policy-plan", f"a step comes twice in {', '.join(names)}")


def _check_source(plan: Plan, purpose: Purpose) -> None:
    """Refuse a plan that works on something else than what it is for."""
    sources = [item.name for item in plan.items if item.name in SOURCES]
    first = plan.items[0].name if plan.items else ""
    if purpose is Purpose.TRAIN and sources:
        raise Refusal("policy-plan", f"{sources[0]} is no step of training")
    if purpose is not Purpose.TRAIN and (len(sources) != 1 or first not in sources):
        raise Refusal(
            "policy-plan",
            f"a plan to {purpose} begins with one step that makes numbers, {', '.join(SOURCES)}; "
            f"this one begins with {first!r:.40}",
        )


def must_stay(content: RecordDict, purpose: Purpose) -> bool:
    """Return whether this node is to be summed with the same others in all sums for a purpose.

    So it is where no noise hides what the difference of two hidden sums tells about a few clients,
    and the numbers depend on the model and the data alone.
    """
    plan = _plan(config_of(content))
    hidden = bool(plan.items) and plan.items[-1].name in _HIDING
    return purpose is not Purpose.TRAIN and hidden and not _noisy(plan)


def _check_same(facts: Facts, plan: Plan, run: int, purpose: Purpose) -> None:
    """Refuse exact sums of numbers that are cut otherwise than before in this run.

    Sums of the same numbers clipped ever more have a solution: the numbers of every client.
    """
    last = plan.items[-1].parameters
    terms = last["terms"] if isinstance(last.get("terms"), Mapping) else last
    kept = [terms.get(name) for name in ("bound", "clip_norm", "bits")]
    kept += [last.get(name) for name in ("weighted", "max_examples")]
    steps = [[item.name, dict(item.parameters)] for item in plan.items[1:-1]]
    asked = json.dumps([steps, kept], sort_keys=True).encode()
    if facts.setdefault(owned(f"exact/{run}/{plan.items[-1].name}", purpose), asked) != asked:
        raise Refusal(
            "policy-second-answer",
            "numbers were clipped within other bounds before in this run; exact sums are within "
            "the same ones in every round, noisy ones may change",
        )


def _noisy(plan: Plan) -> bool:
    return any(item.name == DISTRIBUTED_DP for item in plan.items)


def _check_sum(plan: Plan, policy: NodePolicy, purpose: Purpose) -> None:
    """Refuse a sum that shows more of this node than its policy allows."""
    last = plan.items[-1] if plan.items else PlanItem("")
    if any(item.name in _HIDING for item in plan.items[:-1]):
        raise Refusal("policy-plan", "a secure sum must be the last step of a plan")
    if policy.hidden_only and last.name not in _HIDING:
        raise Refusal(
            "policy-in-the-clear", "no secure sum hides the update; this node sends none without"
        )
    noisy, room = _noisy(plan), math.inf
    if last.name == SHARES:
        terms = terms_of(last.parameters)
        room = terms.bound
        policy.check_terms(terms, noisy=noisy)
        if terms.purpose != purpose or terms.fixed != (purpose is not Purpose.TRAIN and not noisy):
            raise Refusal(
                "policy-terms",
                f"the terms are for {terms.purpose!r} with fixed {terms.fixed}; a plan to "
                f"{purpose} {'with' if noisy else 'without'} noise has others",
            )
    elif last.name == MASKED_SUM:
        with _readable(MASKED_SUM):
            bits = RingCode(last.parameters["bound"], last.parameters["clients"]).bits
            room = last.parameters["bound"]
        if bits < policy.least_bits:
            raise Refusal(
                "policy-bits", f"the sum has {bits} fractional bits; least is {policy.least_bits}"
            )
    if last.name in _HIDING:
        with _readable(last.name):
            policy.check_hidden_weights(
                last.parameters["weighted_by"], last.parameters["max_examples"]
            )
            norms = [i.parameters["clip_norm"] for i in plan.items if i.name == CLIP_STEP]
            if purpose is not Purpose.TRAIN and not min(norms, default=math.inf) <= room:
                raise Refusal(
                    "policy-plan",
                    f"no clip step brings the numbers within {room:g}, the room of the sum: that "
                    "a client has larger ones would show by its silence",
                )


def terms_of(parameters: Mapping[str, Any]) -> Terms:
    """Return the terms in the parameters of a ``shares`` step.

    Raises
    ------
    Refusal
        ``policy-terms``: there are none, or they contradict each other.
    """
    terms = parameters.get("terms")
    if not isinstance(terms, Mapping):
        raise Refusal("policy-terms", "the instruction names no committee to share an update among")
    try:
        return Terms.decode(terms)
    except ConfigError as error:
        raise Refusal("policy-terms", str(error)) from None


def _promise(plan: Plan, policy: NodePolicy, least: MinimumPolicy) -> tuple[Protection, int]:
    """Return the first promise that is enough and carried out, and how often it is used now."""
    refusals: list[Refusal] = []
    offers: list[Protection | None] = [None]
    with _readable(PROTECTION):
        offers = [Protection.from_dict(i.parameters) for i in plan.items if i.name == PROTECTION]
    # Several placements protect together: one that is enough by itself is enough.
    for offer in offers or [None]:
        try:
            least.check(offer)
            if offer is not None:
                return offer, _carried_out(offer, plan, policy)
        except Refusal as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _carried_out(offer: Protection, plan: Plan, policy: NodePolicy) -> int:
    """Refuse a promise that the plan's steps do not keep; return the releases of one reply.

    Central noise is added by the server: there is nothing here that could be checked.
    """
    if offer.placement == "central":
        return 1
    name = _STEP_OF[offer.placement]
    steps = [item for item in plan.items if item.name == name]
    if len(steps) != 1:
        raise _broken(f"{offer.placement} is promised, and the plan has {len(steps)} steps {name}")
    if strangers := [i.name for i in plan.items if i.name not in PHASES and i.name not in SOURCES]:
        raise _broken(f"what {', '.join(strangers)} does to the noise is not known")
    mixed = {item.name for item in plan.items} & _UNSAFE.get(offer.placement, frozenset())
    if mixed:
        raise _broken(
            f"{', '.join(sorted(mixed))} sends coordinates by what the data says, or more than "
            f"once; the noise of {offer.placement} does not cover that"
        )
    parameters = steps[0].parameters
    with _readable(name):
        if name == RECORD_DP:
            told = {k: v for k, v in parameters.items() if k != "public_metrics"}
            record = RecordPrivacy(**told)
            _compare(offer, record.clip_norm, record.noise_multiplier, record.sampling_rate)
            if extra := sorted(set(parameters["public_metrics"]) - set(policy.metrics)):
                raise _broken(
                    f"metrics {', '.join(map(str, extra))} would leave without noise; this node "
                    f"sends {', '.join(policy.metrics) or 'none'}"
                )
            return record.steps
        if name == LOCAL_DP:
            clip, noise = float(parameters["clip_norm"]), float(parameters["noise_multiplier"])
            _compare(offer, clip, noise, 1.0)
            return 1
        share, batch = NoiseShare(**parameters["share"]), parameters["batch"]
        if (batch is None) != (offer.placement == "distributed"):
            raise _broken(f"{offer.placement} is promised, and the noise is for another unit")
        moved, rate = float(parameters["bound"]), 1.0
        if batch is not None:
            bounded = RecordBatch(**batch)
            moved, rate = bounded.clip_norm, bounded.sampling_rate
        _compare(offer, moved, share.noise_multiplier, rate)
        norms = [i.parameters["clip_norm"] for i in plan.items if i.name == CLIP_STEP]
        if not min(norms, default=math.inf) <= float(parameters["bound"]):
            raise _broken("no clip step bounds the update by what the noise is for")
        if plan.items[-1].name not in _HIDING:
            raise _broken("no secure sum hides the shares of the noise")
        return 1


def _compare(offer: Protection, clip: float, noise: float, rate: float) -> None:
    """Refuse steps that do less than was promised; NaN counts as less."""
    kept = 0 < clip <= offer.clip_norm and noise >= offer.noise_multiplier
    if not (kept and rate <= offer.sampling_rate):
        raise _broken(
            f"promised are clip norm {offer.clip_norm:g}, noise {offer.noise_multiplier:g} and "
            f"rate {offer.sampling_rate:g}; the steps have {clip:g}, {noise:g} and {rate:g}"
        )


def _broken(detail: str) -> Refusal:
    return Refusal("privacy-not-carried-out", detail)


@contextmanager
def _readable(step: str) -> Iterator[None]:
    """Turn whatever is wrong with a step's parameters into a refusal."""
    try:
        yield
    except Refusal:
        raise
    except (QSFLError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refusal("policy-plan", f"{step}: its parameters cannot be read: {error}") from None


def _owned(name: str, account: str) -> str:
    return owned(name, Purpose(account or Purpose.TRAIN))


def _count_release(facts: Facts, policy: NodePolicy, now: float) -> None:
    """Refuse a release beyond the number of a period, or count it, once for all mods."""
    name, most, days = _owned(_RELEASES, policy.account), policy.releases or 0, policy.days or 0.0
    times = [t for t in json.loads(facts.get(name, b"[]")) if t > now - days * _DAY]
    before = len(times) - (name in counted())
    if before >= most:
        raise Refusal("policy-releases", f"this node has answered {before} times in {days:g} days")
    if before == len(times):
        facts[name] = json.dumps([*times, now]).encode()
        counted().add(name)


def _charge(
    facts: Facts, offer: Protection, releases: int, least: MinimumPolicy, run: int, when: _When
) -> None:
    """Refuse a release for which what was promised so far leaves no room, or charge it.

    Every promise of the period counts in full, so that a server gains nothing by a new one.
    """
    name = _owned(_PROMISES, when.account)
    key: list[Any] = [run, offer.placement, offer.noise_multiplier, offer.sampling_rate]
    if when.purpose is not Purpose.TRAIN:
        key.append(when.purpose)  # where it has no account of its own, both count in one
    kept = [
        entry
        for entry in json.loads(facts.get(name, b"[]"))
        if (entry[0][0] == run if when.days is None else entry[3] > when.now - when.days * _DAY)
    ]
    others = [entry for entry in kept if entry[0] != key]
    _, promised, used, _ = next((e for e in kept if e[0] == key), (key, 0, 0, when.now))
    already = f"{name} {key}"  # an outer mod has charged this reply
    promised = max(promised, offer.releases)
    used += 0 if already in counted() else releases
    if used > offer.releases:
        raise Refusal(
            "privacy-too-many-releases",
            f"{offer.releases} releases were promised, this would be number {used}",
        )
    entries = [*others, [key, promised, used, when.now]]
    events = [Event(noise, rate, count) for (_, _, noise, rate, *_), count, _, _ in entries]
    epsilon = epsilon_of_events(events, least.delta)
    if epsilon > least.epsilon * (1 + 1e-9):
        raise Refusal(
            "privacy-epsilon-too-large",
            f"all promises so far come to epsilon = {epsilon:.4g}; this node accepts "
            f"{least.epsilon:g}",
        )
    facts[name] = json.dumps(entries).encode()
    counted().add(already)


def _check_transformed(message: Message, reply: Message, carried_out: bool) -> None:
    """Keep back what the app returned if nobody has taken the plan's steps."""
    if reply.has_error():
        return
    if purpose_of(message.metadata.message_type) is not Purpose.TRAIN:
        if PLAN_KEY in config_of(message.content) and not carried_out:
            raise Refusal(
                "privacy-not-carried-out",
                "no mod carried out the plan's steps: put qsfl_mod after this",
            )
        return
    if carried_out and TASK_KEY in config_of(message.content):
        return  # qsfl_mod has answered it, without the app
    told = config_of(reply.content)
    raw = told.get(FORM_KEY, Form.PARAMETERS.value) == Form.PARAMETERS.value
    if raw and reply.content.array_records and REFUSED_KEY not in told:
        raise Refusal(
            "privacy-not-carried-out",
            "no mod carried out the plan's steps: put qsfl_mod after this",
        )
