import math

import pytest

from SE_ResNeXt import Hyperparameters
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.schedules import SCHEDULES, learning_rate


def rates(epoch_steps, steps, **fields):
    """Return {step: learning rate} for `steps`."""
    step = tf.placeholder(tf.int64, [])
    rate = learning_rate(step, epoch_steps, Hyperparameters(**fields))
    with tf.Session() as session:
        return {number: session.run(rate, {step: number}) for number in steps}


def test_steps_match_rates_worked_out_by_hand(graph):
    """Check 10 epochs of 40 steps: a warm-up of 20 steps (5 %), then drops at steps 120, 240 and
    360."""
    expected = {
        0: 0.4 / 20, 9: 0.2, 19: 0.4, 20: 0.4, 119: 0.4,
        120: 0.04, 239: 0.04, 240: 0.004, 359: 0.004, 360: 0.0004, 399: 0.0004,
    }  # fmt: skip
    found = rates(40, expected, total_epochs=10, init_learning_rate=0.4)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_warm_up_takes_at_most_one_epoch(graph):
    assert rates(10, [4, 9], total_epochs=100) == pytest.approx({4: 0.05, 9: 0.1})


def test_cosine_matches_rates_worked_out_by_hand(graph):
    """Check 400 steps: a warm-up of 20, then half a cosine, at 45 degrees after a quarter of the
    steps."""
    expected = {0: 0.4 / 20, 100: 0.4 * (1 + math.sqrt(0.5)) / 2, 200: 0.2, 300: 0.4 - 0.34142}
    found = rates(40, expected, schedule="cosine", total_epochs=10, init_learning_rate=0.4)
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0 < rates(40, [399], schedule="cosine", total_epochs=10)[399] < 1e-5


def test_linear_matches_rates_worked_out_by_hand(graph):
    """Check 400 steps: a rise to the peak at step 79, the 80th, then a fall in 321 equal parts."""
    expected = {0: 0.4 / 80, 39: 0.2, 79: 0.4, 80: 0.4 * 320 / 321, 399: 0.4 / 321}
    found = rates(40, expected, schedule="linear", total_epochs=10, init_learning_rate=0.4)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_has_a_positive_rate(graph, schedule):
    assert 0 < rates(1, [0], schedule=schedule, total_epochs=1)[0] <= 0.1


def test_a_schedule_may_return_a_number(graph, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "steps", lambda step, total_steps, epoch_steps, hp: 0.1)
    assert rates(10, [0, 99], total_epochs=10) == pytest.approx({0: 0.1, 99: 0.1})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_warm_up_and_the_last_rate_can_be_set(graph, schedule):
    """Check 10 epochs of 40 steps: a rise of 2 epochs, and the rate of the last step."""
    fields = {"schedule": schedule, "warmup_epochs": 2.0, "final_rate": 0.001}
    found = rates(40, [39, 79, 399], total_epochs=10, **fields)
    peak = 0.001 + 0.099 * (1 + math.cos(math.pi * 79 / 400)) / 2 if schedule == "cosine" else 0.1
    assert found[79] == pytest.approx(peak, rel=1e-4)
    assert 0.4 * peak < found[39] < 0.53
    assert found[399] == pytest.approx(0.001, rel=0.4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_longer_than_the_run_is_an_error(graph, schedule):
    with pytest.raises(
        HyperparameterError, match="^--warmup_epochs must be at most 8, the --total"
    ):
        rates(40, [0], total_epochs=8, warmup_epochs=9.0, schedule=schedule)


def test_the_factor_of_steps_can_be_set(graph):
    found = rates(40, [130, 399], total_epochs=10, step_factor=0.5)
    assert found == pytest.approx({130: 0.05, 399: 0.0125})


class Edited(Hyperparameters):
    step_factor = 0.5


def test_an_edited_parameter_that_the_schedule_ignores_is_an_error(graph):
    for schedule in "steps", "cosine":
        hp = Edited(schedule=schedule)
        learning_rate(tf.constant(0, tf.int64), 10, hp)
        if schedule == "steps":
            hp.check_effect()
    with pytest.raises(HyperparameterError, match="^--step_factor=0.5 has no effect, "):
        hp.check_effect()
