"""The client's half of differential privacy: its own minimum, and the steps of the placements."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from qsfl_flower.errors import Refusal
from qsfl_flower.node.instructions import check_instruction
from qsfl_flower.node.made_mods import refuse_message
from qsfl_flower.node.policy import CARRIED_OUT, NodePolicy, counted, insisting, policy_of
from qsfl_flower.node.steps import refuse
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.wire import (
    FORM_KEY,
    REFUSED_KEY,
    TASK_KEY,
    Form,
    Kind,
    config_of,
    kind_of,
)
from qsfl_flower.wire.keys import (
    SECURE_RECORD,
)


class policy_mod:
    """Insist on a policy that is written in the app, beside the node's file.

    Where the node has a policy file too, only what both allow happens.

    Put it before `qsfl_mod`: ``mods=[policy_mod(NodePolicy(hidden_only=True)), qsfl_mod]``.

    Parameters
    ----------
    policy : NodePolicy
        What the node demands; see `qsfl_flower.node.policy.NodePolicy`.

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
                carried_out = CARRIED_OUT in counted()
            if policy.privacy is not None or policy.hidden_only:
                _check_transformed(message, reply, carried_out)
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


def _check_transformed(message: Message, reply: Message, carried_out: bool) -> None:
    """Keep back what the app returned if nobody has taken the plan's steps."""
    if kind_of(message.metadata.message_type) is not Kind.TRAIN or reply.has_error():
        return
    told = config_of(reply.content)
    raw = told.get(FORM_KEY, Form.PARAMETERS.value) == Form.PARAMETERS.value
    asked = config_of(message.content)
    task = carried_out and TASK_KEY in asked  # without qsfl_mod, the app has answered it
    answer = {SECURE_RECORD} if task else set()  # what members open for the committee
    if raw and set(reply.content.array_records) - answer and REFUSED_KEY not in told:
        raise Refusal(
            "privacy-not-carried-out",
            "no mod carried out the plan's steps: put qsfl_mod after this",
        )
