"""One description of the parameters of each mechanism: section, stage and client follow from it."""

import inspect
from dataclasses import MISSING, fields
from typing import get_type_hints

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms import BUILT_IN
from qsfl_flower.node.steps import STEPS, TASKS, add_steps
from qsfl_flower.plugins import LIMITS, Mechanism, attribute, is_options
from qsfl_flower.simulations.config.strategy import SECTIONS
from qsfl_flower.stages import Clip, Validate
from tests.strategies.support import CAPABILITIES

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
