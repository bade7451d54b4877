from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import CheckpointError, ConfigError
from qsfl_flower.numerics.monitor import Monitor, MonitorState, Reaction


def watch(monitor: Monitor, losses, norms=None) -> list[str | None]:
    state, alarms = monitor.init(), []
    for loss, norm in zip(losses, norms or [None] * len(losses), strict=True):
        state, alarm = monitor.observe(state, loss, norm)
        alarms.append(alarm)
    return alarms


def test_a_falling_noisy_loss_raises_no_alarm():
    losses = [2.0 / (1 + 0.1 * i) * (1.3 if i % 3 else 0.8) for i in range(200)]
    assert watch(Monitor(window=5), losses) == [None] * 200


def test_one_bad_round_is_smoothed_away():
    assert watch(Monitor(window=5), [1.0] * 10 + [4.0] + [1.0] * 10) == [None] * 21


def test_a_loss_that_doubles_is_an_alarm_within_a_window():
    """Best mean 1; the mean of 3 passes 2 when two of them are 3: (1 + 3 + 3) / 3 = 2.33."""
    alarms = watch(Monitor(window=3), [1.0] * 6 + [3.0] * 3)
    assert alarms[:7] == [None] * 7
    assert alarms[7] is not None
    assert "2.333, more than 2 times the best (1)" in alarms[7]


def test_the_reference_is_the_best_mean_and_not_the_first():
    alarms = watch(Monitor(window=1), [8.0, 1.0, 1.9, 2.1])
    assert alarms[:3] == [None] * 3
    assert alarms[3] is not None


def test_a_slow_rise_is_seen_as_well():
    losses = [1.0] * 5 + [1.0 + 0.05 * i for i in range(60)]
    alarms = watch(Monitor(window=5), losses)
    assert next(i for i, alarm in enumerate(alarms) if alarm) < 5 + 25


def test_the_monitor_warns_before_a_diverging_loss_blows_up():
    """Gradient descent with too long a step on x**2 / 2: x grows by 1.2 in each round."""
    losses = [0.5 * 1.2 ** (2 * i) for i in range(60)]
    norms = [2.2 * 1.2**i for i in range(60)]
    first = next(i for i, alarm in enumerate(watch(Monitor(), losses, norms)) if alarm)
    assert losses[first] < 100 * losses[0]
    assert losses[-1] > 1e8


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_alarm_at_once_and_is_not_remembered(loss):
    state, alarm = Monitor().observe(MonitorState(), loss, None)
    assert alarm is not None
    assert state == MonitorState()


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_an_alarm_at_once(norm):
    state, alarm = Monitor().observe(MonitorState(), 1.0, norm)
    assert alarm is not None
    assert state.norms == ()


def test_a_step_of_ten_medians_is_an_alarm():
    monitor = Monitor(window=3)
    assert watch(monitor, [1.0] * 4, [1.0, 2.0, 3.0, 20.0])[3] is None
    alarm = watch(monitor, [1.0] * 4, [1.0, 2.0, 3.0, 20.1])[3]
    assert alarm is not None
    assert "median of the last 3 (2)" in alarm


def test_two_alarms_in_one_round_are_both_told():
    alarm = watch(Monitor(window=1), [1.0, math.nan], [1.0, 50.0])[1]
    assert alarm is not None
    assert "loss" in alarm
    assert "norm" in alarm


def test_losses_below_zero_do_not_alarm_by_themselves():
    assert watch(Monitor(window=2), [-5.0, -6.0, -5.5, -6.0, -6.2]) == [None] * 5
    assert watch(Monitor(window=1), [-5.0, 0.1])[1] is not None


def test_unknown_values_change_nothing():
    state = MonitorState((1.0,), (2.0,), 0.5)
    assert Monitor().observe(state, None, None) == (state, None)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), max_size=15), st.integers(1, 4))
def test_a_restored_state_goes_on_as_if_nothing_had_happened(rounds, window):
    monitor = Monitor(window=window)
    through = stopped = monitor.init()
    for loss, norm in rounds:
        through, expected = monitor.observe(through, loss, norm)
        text = json.dumps(stopped.to_dict(), allow_nan=False)
        stopped, alarm = monitor.observe(MonitorState.from_dict(json.loads(text)), loss, norm)
        assert alarm == expected
    assert stopped == through


@pytest.mark.parametrize(
    "values",
    [{}, {"losses": [], "norms": []}, {"losses": 1, "norms": [], "best": None},
     {"losses": ["x"], "norms": [], "best": None}, {"losses": [], "norms": [], "best": "x"}],
)  # fmt: skip
def test_a_damaged_state_is_refused(values):
    with pytest.raises(CheckpointError, match="state of the monitor"):
        MonitorState.from_dict(values)


@pytest.mark.parametrize(
    "arguments",
    [{"window": 0}, {"loss_factor": 1.0}, {"loss_factor": math.nan}, {"norm_factor": 0.5}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Monitor(**arguments)


def test_reactions_follow_one_another_and_the_last_repeats():
    monitor = Monitor(
        window=1, patience=2, reactions=(Reaction.LOWER_RATE, Reaction.ROLL_BACK, Reaction.HALT)
    )
    state, taken = monitor.init(), []
    for loss in (1.0, *[9.0] * 12):
        state, alarm = monitor.observe(state, loss, None)
        state, reaction = monitor.react(state, alarm, loss)
        taken.append(reaction)
    assert taken[0] is None
    assert taken[1::3] == [Reaction.LOWER_RATE, Reaction.ROLL_BACK, Reaction.HALT, Reaction.HALT]
    assert [r for i, r in enumerate(taken) if i % 3 != 1] == [None] * 9
    assert MonitorState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_loss_that_is_not_finite_is_reacted_to_at_once():
    monitor = Monitor(window=1, patience=100, reactions=(Reaction.LOWER_RATE, Reaction.HALT))
    state, _ = monitor.observe(monitor.init(), 1.0, None)
    for loss, expected in ((9.0, Reaction.LOWER_RATE), (9.0, None), (math.nan, Reaction.HALT)):
        state, alarm = monitor.observe(state, loss, None)
        state, reaction = monitor.react(state, alarm, loss)
        assert reaction is expected


def test_without_reactions_alarms_are_only_told():
    monitor = Monitor()
    state, alarm = monitor.observe(monitor.init(), math.inf, None)
    assert alarm
    assert monitor.react(state, alarm, math.inf) == (state, None)
