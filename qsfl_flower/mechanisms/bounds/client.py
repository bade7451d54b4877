"""The client's half of clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qsfl_flower.errors import QSFLError
from qsfl_flower.node.steps import PARAMETERS, STEPS, ClientUpdate, StepContext
from qsfl_flower.numerics import Clip, Vector, measure
from qsfl_flower.wire.keys import CLIP_STEP


def clip_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Clip the difference; the strategy's half is `Clip` of `server`."""
    del context
    clip, vector = Clip(**parameters), update.vector
    whole = vector.size == update.layout.size
    if clip.per_layer and not whole:
        raise QSFLError("clip: per_layer needs the whole update, not k coordinates of it")
    scales = clip.scales(measure(Vector.dense(vector), None, update.layout if whole else None))
    if np.ndim(scales) == 0:
        return replace(update, vector=vector * scales)
    for view, scale in zip(update.layout.views(vector).values(), np.asarray(scales), strict=True):
        view *= scale
    return update


STEPS[CLIP_STEP], PARAMETERS[CLIP_STEP] = clip_step, Clip
