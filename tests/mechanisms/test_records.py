"""One description of the parameters of each mechanism: section, stage and client follow from it."""

import inspect
import math
from dataclasses import MISSING, fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
from pydantic import ValidationError

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms import BUILT_IN
from qsfl_flower.mechanisms.compression.options import CompressOptions, MaskOptions
from qsfl_flower.mechanisms.detection.core import Detection, Reputation
from qsfl_flower.mechanisms.robust.core.attacks import ATTACKS
from qsfl_flower.node.steps import STEPS, TASKS, add_steps
from qsfl_flower.plugins import LIMITS, Mechanism, Options, attribute, is_options
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.simulations.config.strategy import SECTIONS
from qsfl_flower.stages import Clip, Validate
from tests.strategies.support import CAPABILITIES
from tests.strategies.test_conformance import SAMPLES

records = pytest.mark.parametrize("record", BUILT_IN.values(), ids=list(BUILT_IN))


def described(options):
    """Return the fields of options, those of options within included."""
    hints = get_type_hints(options)
    for one in fields(options):
        if is_options(within := hints[one.name]):
            yield from described(within)
        else:
            yield one


@records
def test_the_section_in_yaml_is_the_description(record):
    section = SECTIONS[record.name].model_fields
    assert set(section) == {"stage", *(one.name for one in described(record.options))}
    for one in described(record.options):
        about, told = one.metadata["about"], section[one.name]
        assert told.description == about.text
        default = one.default if one.default_factory is MISSING else one.default_factory()
        assert told.is_required() == (default is MISSING)
        assert told.is_required() or told.default == default
        limits = {
            name: getattr(bound, name)
            for bound in told.metadata
            for name in LIMITS
            if hasattr(bound, name)
        }
        assert limits == about.limits


@records
def test_the_stage_has_no_defaults_of_its_own(record):
    if record.needs is None:
        pytest.skip("it takes the options as one object")
    stage = inspect.signature(attribute(record.server)).parameters
    for one in fields(record.options):
        wanted = inspect.Parameter.empty if one.default is MISSING else one.default
        assert stage[one.name].default == wanted


@records
def test_what_a_record_tells_is_what_the_stage_does(record):
    assert CAPABILITIES.get(record.name, Validate)().traits == record.traits


@records
def test_the_stage_has_the_name_of_the_section(record):
    assert attribute(record.server).name == record.name


@records
def test_clients_know_its_half(record):
    import qsfl_flower.clients.mods  # noqa: F401

    assert record.steps().items() <= STEPS.items()
    assert record.answers().items() <= TASKS.items()


def test_no_mechanism_answers_the_task_of_another():
    import qsfl_flower.clients.mods  # noqa: F401

    masks = BUILT_IN["masked_sum"]
    task = next(iter(masks.answers()))
    thief = Mechanism("thief", masks.options, masks.server, tasks=f"{__name__}:THIEF")
    with pytest.raises(ConfigError, match=f"there is a task {task!r} already"):
        add_steps(thief)


THIEF = dict.fromkeys(BUILT_IN["masked_sum"].answers(), print)


def test_numbers_of_numpy_become_those_of_python():
    stage = Clip(np.float32(2.5))
    assert type(stage.clip_norm) is float
    with pytest.raises(ConfigError, match="clip_norm is -1"):
        Clip(np.int64(-1))


def within(limits):
    """Return a number within limits."""
    ends = [limits.get(name) for name in ("gt", "ge", "lt", "le")]
    low = max((one for one in ends[:2] if one is not None), default=0)
    high = min((one for one in ends[2:] if one is not None), default=low + 2)
    return (low + high) / 2 if high < low + 2 else int(low) + 1


def wrong(one, hint):
    """Return numbers that an option must refuse: not finite, or beyond a limit."""
    found = [math.nan, math.inf, -math.inf]
    for name, bound in one.metadata["about"].limits.items():
        found.append(bound if name in ("gt", "lt") else bound + (-1 if name == "ge" else 1))
    return [*found, True] if hint in (int, int | None) else found


def numeric(options):
    """Yield described fields that are numbers, those of options within included, with type."""
    hints = get_type_hints(options)
    for one in fields(options):
        if is_options(inner := hints[one.name]):
            yield from numeric(inner)
        elif {int, float} & {inner, *get_args(inner)} and "about" in one.metadata:
            yield one, inner


@records
def test_the_section_refuses_numbers_out_of_range(record):
    needed = {
        one.name: within(one.metadata["about"].limits)
        for one, _ in numeric(record.options)
        if one.default is MISSING
    }
    section = SECTIONS[record.name]
    section(stage=record.name, **needed)
    for one, hint in numeric(record.options):
        for value in wrong(one, hint):
            with pytest.raises(ValidationError, match=one.name):
                section(stage=record.name, **needed | {one.name: value})


def described_stages():
    """Return the stages whose constructor takes described parameters."""
    found = {k for k in SAMPLES if issubclass(k, Options)}
    assert {k.__name__ for k in SAMPLES.keys() - found} == {
        "Authenticate", "Guard",  # without numbers
        "Compress", "SharedMask", "Detect", "Robust",  # take described values
    }  # fmt: skip
    inner = {AdaptiveParameters, CompressOptions, Detection, MaskOptions, NoiseSchedule, NoiseShare,
             RecordBatch, RecordPrivacy, Reputation}  # fmt: skip
    return sorted({*found, *inner, *ATTACKS.values()}, key=lambda k: k.__name__)


@pytest.mark.parametrize("stage", described_stages(), ids=lambda k: k.__name__)
def test_the_constructor_refuses_numbers_out_of_range(stage):
    hints = get_type_hints(stage)
    given = {
        "credentials": CAPABILITIES["authenticate"]().credentials,
        "parameters": AdaptiveParameters(initial=1.0, bit_noise=1),
    }
    record = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, steps=1)
    given |= {"privacy": record, "size": 1, "fewest": 4}
    needed = {
        one.name: given.get(one.name) or within(one.metadata["about"].limits)
        for one in fields(stage)
        if one.default is MISSING and one.default_factory is MISSING
    }
    stage(**needed)
    for one in fields(stage):
        told, hint = "about" in one.metadata, hints[one.name]
        assert told or one.name == "seed" or hint not in (int, float, int | None, float | None)
        numbers = told and {int, float} & {hint, *get_args(hint)}
        for value in wrong(one, hint) if numbers else ():
            with pytest.raises(ConfigError, match=one.name):
                stage(**needed | {one.name: value})
