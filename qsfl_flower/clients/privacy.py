"""The client's half of differential privacy: its own minimum, and the steps of the placements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from qsfl_flower.clients.instructions import check_instruction
from qsfl_flower.clients.made_mods import refuse_message
from qsfl_flower.clients.policy import NodePolicy, insisting, policy_of
from qsfl_flower.clients.steps import STEPS, ClientUpdate, StepContext, refuse
from qsfl_flower.errors import QSFLError, Refusal
from qsfl_flower.numerics.validation import MAX_EXAMPLES
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.policy import MinimumPolicy, Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.secure.pairwise.ring import RingCode
from qsfl_flower.wire import (
    FORM_KEY,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    TASK_KEY,
    Form,
    Kind,
    Plan,
    PlanItem,
    kind_of,
)
from qsfl_flower.wire.keys import (
    DISTRIBUTED_DP,
    LOCAL_DP,
    MASKED_SUM,
    PROTECTION,
    RECORD_DP,
    SECURE_RECORD,
    SHARES,
)


class policy_mod:
    """Insist on a policy that is written in the app, beside the node's file.

    Where the node has a policy file too, only what both allow happens.

    Put it before `qsfl_mod`: ``mods=[policy_mod(NodePolicy(hidden_only=True)), qsfl_mod]``.

    Parameters
    ----------
    policy : NodePolicy
        What the node demands; see `qsfl_flower.clients.policy.NodePolicy`.

    Notes
    -----
    Who sees what: a refusal is sent before training and depends on the instruction alone. Flower
    delivers the app with every run: only a file on the node, and an executor that runs no foreign
    app, hold against whoever may start runs.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[auth_mod(), policy_mod(NodePolicy(hidden_only=True)), qsfl_mod])
    """

    def __new__(cls, *args: object, **options: object) -> Self:
        """Refuse to be used without a call."""
        refuse_message(cls.__name__, args)
        return super().__new__(cls)

    def __init__(self, policy: NodePolicy) -> None:
        self._own = policy

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Check an instruction, and that `qsfl_mod` has carried its plan out."""
        policy = self._policy(context)
        try:
            with insisting(policy):
                check_instruction(message, context, policy)
                reply = call_next(message, context)
            if policy.privacy is not None or policy.hidden_only:
                _check_transformed(message, reply)
        except Refusal as refused:
            return refuse(refused, message)
        return reply

    def _policy(self, context: Context) -> NodePolicy:
        return policy_of(context, self._own)


class privacy_mod(policy_mod):
    """Refuse to train under less protection than the client demands.

    Put it before `qsfl_mod`: ``mods=[privacy_mod(MinimumPolicy(epsilon=2.0)), qsfl_mod]``. It is
    the same as the table ``privacy`` of the node's policy file, for those who would rather write it
    into the app. Where the file has one, the stricter of each number holds; all else is the file's.

    Parameters
    ----------
    policy : MinimumPolicy
        What the client demands.

    Notes
    -----
    The epsilon of a promise is computed here; the promise counts only if the plan's steps carry it
    out, with at least its numbers and no more often than it says.

    Who sees what: as `policy_mod`. For central noise the client has to believe the server; leave
    ``"central"`` out of the accepted placements to insist on protection that the client itself
    carries out.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from qsfl_flower.privacy.policy import MinimumPolicy
    >>> least = MinimumPolicy(epsilon=2.0, placements=("record",))
    >>> app = ClientApp(mods=[privacy_mod(least), qsfl_mod])
    """

    def __init__(self, policy: MinimumPolicy) -> None:
        self._least = policy

    def _policy(self, context: Context) -> NodePolicy:
        policy = policy_of(context)
        return replace(policy, privacy=self._least.and_also(policy.privacy))


def _check_transformed(message: Message, reply: Message) -> None:
    """Keep back what the app returned if nobody has taken the plan's steps."""
    if kind_of(message.metadata.message_type) is not Kind.TRAIN or reply.has_error():
        return
    told = reply.content.config_records.get(QSFL_RECORD) or ConfigRecord()
    raw = told.get(FORM_KEY, Form.PARAMETERS.value) == Form.PARAMETERS.value
    asked = message.content.config_records.get(QSFL_RECORD) or ConfigRecord()
    answer = {SECURE_RECORD} if TASK_KEY in asked else set()  # what members open for the committee
    if raw and set(reply.content.array_records) - answer and REFUSED_KEY not in told:
        raise Refusal(
            "privacy-not-carried-out",
            "no mod carried out the plan's steps: put qsfl_mod after this",
        )


def protection_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Read the offer strictly; `privacy_mod` has decided before training whether it is enough."""
    Protection.from_dict(parameters)
    return update


def record_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Send nothing that the app has not trained privately: no metrics of records, no counters."""
    public = parameters["public_metrics"]
    required = RecordPrivacy(**{k: v for k, v in parameters.items() if k != "public_metrics"})
    difference = required.weaker(update.metrics)
    if difference is not None:
        raise QSFLError(
            f"record-dp: the app did not train as the strategy requires: {difference}; use "
            "PrivateTrainingClient, or report the metrics dp-... of your own DP-SGD"
        )
    allowed = {*public, *required.told()}
    metrics = {k: v for k, v in update.metrics.items() if k in allowed}
    return replace(update, metrics=metrics, carried=context.carried)


def local_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Clip the update, add all of the noise, and keep metrics and counters here."""
    clip, multiplier = float(parameters["clip_norm"]), float(parameters["noise_multiplier"])
    norm = float(np.linalg.norm(update.vector))
    scaled = update.vector * min(1.0, clip / norm) if norm > 0 else update.vector
    noisy, _ = add_noise(scaled, 2 * clip, multiplier, Keystream.secure())
    return replace(update, vector=noisy, metrics={"num-examples": 1}, carried=context.carried)


def distributed_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Add this client's share of the noise, on the grid of the secure sum that comes next.

    The client counts like all others; its metrics, counters and statistics stay here.

    Raises
    ------
    QSFLError
        If what the plan does next would show more than a sum with all of the noise, if the noise is
        not what the plan promises, or if the app did not bound its records as it requires.
    """
    share, bound = NoiseShare(**parameters["share"]), float(parameters["bound"])
    plan = Plan.decode(context.content.config_records[QSFL_RECORD][PLAN_KEY])
    placement, rate, moved = "distributed", 1.0, bound
    if parameters["batch"] is not None:
        required = RecordBatch(**parameters["batch"])
        placement, rate = "distributed-record", required.sampling_rate
        moved = required.clip_norm
        if (difference := required.weaker(update.metrics)) is not None:
            raise QSFLError(
                f"distributed-dp: the app did not train as the strategy requires: {difference}; "
                "use GradientSumClient"
            )
    done = (placement, moved, share.noise_multiplier, rate)
    offers = [Protection.from_dict(i.parameters) for i in plan.items if i.name == PROTECTION]
    told = [(o.placement, o.clip_norm, o.noise_multiplier, o.sampling_rate) for o in offers]
    if done not in told or moved > share.clip_norm:
        raise QSFLError(
            f"distributed-dp: noise for a clip norm of {share.clip_norm:g} would make {done}, the "
            f"plan promises {told}"
        )
    weighted_by = _sum_after(plan.items[-1], share)
    noisy = share.privatize(update.vector, bound, Keystream.secure())
    # More examples than any limit: the client's weight is 1 whatever the sum makes of examples.
    metrics = {weighted_by: MAX_EXAMPLES}
    vector = noisy.astype(np.float64)
    vector *= share.resolution
    return replace(update, vector=vector, metrics=metrics, carried=context.carried)


def _sum_after(last: PlanItem, share: NoiseShare) -> str:
    """Return what the sum that hides the share weighs by, or refuse a sum that does not fit it."""
    p = last.parameters
    if last.name == SHARES and p["terms"] is not None:
        fewest, bits = p["terms"]["min_clients"], p["terms"]["bits"]
    elif last.name == MASKED_SUM:
        fewest, bits = p["min_clients"], RingCode(p["bound"], p["clients"]).bits
    else:
        raise QSFLError(
            f"distributed-dp: the plan ends with {last.name!r}; a share of the noise is sent only "
            "under a secure sum"
        )
    if fewest < share.fewest or 2.0**-bits != share.resolution:
        raise QSFLError(
            f"distributed-dp: noise for sums of {share.fewest} clients in steps of "
            f"{share.resolution:g}, but the sum may have {fewest} clients, in steps of 2^-{bits}"
        )
    return str(p["weighted_by"])


STEPS[PROTECTION] = protection_step
STEPS[DISTRIBUTED_DP] = distributed_dp_step
STEPS[RECORD_DP] = record_dp_step
STEPS[LOCAL_DP] = local_dp_step
