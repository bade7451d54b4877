"""The client's half of differential privacy: its own minimum, and the steps of the placements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from qsfl_flower.clients.steps import STEPS, ClientUpdate, StepContext
from qsfl_flower.errors import QSFLError
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.policy import MinimumPolicy, PolicyRefusal, Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.wire import DETAIL_KEY, PLAN_KEY, QSFL_RECORD, REFUSED_KEY, Plan

PROTECTION = "protection"


class privacy_mod:
    """Refuse to train under less protection than the client demands.

    Put it before `qsfl_mod`: ``mods=[privacy_mod(MinimumPolicy(epsilon=2.0)), qsfl_mod]``. The
    epsilon of an offer is computed here from what the server says it will do; the server is told
    the reason of a refusal, and nothing else.

    Parameters
    ----------
    policy : MinimumPolicy
        What the client demands.

    Notes
    -----
    Who sees what: a refusal is told before training and depends on the offer alone. For central
    noise the client has to believe the server; leave ``"central"`` out of the accepted placements
    to insist on protection that the client itself carries out.
    """

    def __init__(self, policy: MinimumPolicy) -> None:
        self._policy = policy

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Check the offer of a training instruction."""
        asked = message.content.config_records.get(QSFL_RECORD) or ConfigRecord()
        if message.metadata.message_type == "train" and message.content.array_records:
            # Several placements protect together: one that is enough by itself is enough.
            offers: list[Protection | None] = [*_offers(asked)]
            refusals = [r for offer in offers or [None] if (r := self._refusal(offer))]
            if len(refusals) == max(1, len(offers)):
                reason, detail = f"privacy-{refusals[0].reason}", refusals[0].detail
                told = {REFUSED_KEY: reason, DETAIL_KEY: detail}
                return Message(RecordDict({QSFL_RECORD: ConfigRecord({**told})}), reply_to=message)
        return call_next(message, context)

    def _refusal(self, offer: Protection | None) -> PolicyRefusal | None:
        try:
            self._policy.check(offer)
        except PolicyRefusal as refusal:
            return refusal
        return None


def _offers(asked: ConfigRecord) -> list[Protection]:
    items = Plan.decode(asked[PLAN_KEY]).items if PLAN_KEY in asked else ()
    return [Protection.from_dict(i.parameters) for i in items if i.name == PROTECTION]


def protection_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Read the offer strictly; `privacy_mod` has decided before training whether it is enough."""
    Protection.from_dict(parameters)
    return update


def record_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Send nothing that the app has not trained privately."""
    difference = RecordPrivacy(**parameters).weaker(update.metrics)
    if difference is not None:
        raise QSFLError(
            f"record-dp: the app did not train as the strategy requires: {difference}; use "
            "PrivateTrainingClient, or report the metrics dp-... of your own DP-SGD"
        )
    return update


def local_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Clip the update, add all of the noise, and keep the metrics here."""
    clip, multiplier = float(parameters["clip_norm"]), float(parameters["noise_multiplier"])
    norm = float(np.linalg.norm(update.vector))
    scaled = update.vector * min(1.0, clip / norm) if norm > 0 else update.vector
    noisy, _ = add_noise(scaled, 2 * clip, multiplier, Keystream.secure())
    return replace(update, vector=noisy, metrics={"num-examples": 1})


STEPS[PROTECTION] = protection_step
STEPS["record-dp"] = record_dp_step
STEPS["local-dp"] = local_dp_step
