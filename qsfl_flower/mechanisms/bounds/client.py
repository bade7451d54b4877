"""The client's half of clipping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.bounds.options import ClipOptions
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, StepContext
from qsfl_flower.numerics import Vector, clip_scales, measure
from qsfl_flower.wire.keys import CLIP_STEP


def clip_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Clip the difference; the strategy's half is `Clip` of `server`."""
    del context
    clip, vector = ClipOptions(**parameters), update.vector
    whole = vector.size == update.layout.size
    if clip.per_layer and not whole:
        raise QSFLError("clip: per_layer needs the whole update, not k coordinates of it")
    size = measure(Vector.dense(vector), None, update.layout if whole else None)
    scales = clip_scales(size, clip.clip_norm, clip.per_layer)
    if np.ndim(scales) == 0:
        return replace(update, vector=vector * scales)
    for view, scale in zip(update.layout.views(vector).values(), np.asarray(scales), strict=True):
        view *= scale
    return update


CLIP_STEPS = {CLIP_STEP: clip_step}
"""The client's half of `qsfl_flower.mechanisms.CLIP`."""

PARAMETERS[CLIP_STEP] = ClipOptions
