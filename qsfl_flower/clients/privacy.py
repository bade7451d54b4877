"""The client's half of differential privacy: its own minimum, and the steps of the placements."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from qsfl_flower.errors import Refusal
from qsfl_flower.node.instructions import obey
from qsfl_flower.node.made_mods import refuse_message
from qsfl_flower.node.policy import NodePolicy, policy_of
from qsfl_flower.node.steps import refuse
from qsfl_flower.privacy.policy import MinimumPolicy


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
        try:
            return obey(message, context, self._policy(context), call_next)
        except Refusal as refused:
            return refuse(refused, message)

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
