"""Learning-rate schedules.

A schedule is a function of `step`, an int64 scalar that counts from 0, the number of steps of the
run and of an epoch, and the hyperparameters. To add one, write such a function, add it to
SCHEDULES, and declare its own parameters in ScheduleFields; every script then accepts its name as
--schedule.
"""

import dataclasses
import math
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge

from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.fields import NotNegative, Positive


def learning_rate(step, epoch_steps, hyperparameters):
    """Return the learning rate of `step`, float32, in the schedule `hyperparameters.schedule`."""
    hp = hyperparameters
    with tf.name_scope("learning_rate"):
        rate = SCHEDULES[hp.schedule](step, hp.total_epochs * epoch_steps, epoch_steps, hp)
        return tf.cast(rate, tf.float32)


def steps(step, total_steps, epoch_steps, hp):
    """Warm up to the peak rate, then multiply it by `step_factor` at 30, 60 and 90 % of the
    steps."""
    peak, divisor = hp.init_learning_rate, 1 / hp.step_factor
    rates = [peak / divisor**drops for drops in range(4)]
    last_steps = [math.ceil(share * total_steps) - 1 for share in (0.3, 0.6, 0.9)]
    rate = tf.train.piecewise_constant(step, last_steps, rates)
    return _warm_up(step, total_steps, epoch_steps, hp) * rate


def cosine(step, total_steps, epoch_steps, hp):
    """Warm up to the peak rate, then follow half a cosine down to `final_rate` (SGDR, arXiv
    1608.03983, equation 5, without restarts)."""
    fall = 0.5 * (1 + tf.cos(math.pi * tf.cast(step, tf.float32) / total_steps))
    rate = hp.final_rate + (hp.init_learning_rate - hp.final_rate) * fall
    return _warm_up(step, total_steps, epoch_steps, hp) * rate


def linear(step, total_steps, epoch_steps, hp):
    """Rise linearly from `final_rate` to the peak rate, by default over the first 20 % of the
    steps, then fall linearly back to it."""
    done = tf.cast(step + 1, tf.float32)
    rise = max(1.0, _warm_up_steps(epoch_steps, hp, 0.2 * total_steps))
    height = tf.minimum(done / rise, (total_steps + 1 - done) / (total_steps + 1 - rise))
    return hp.final_rate + (hp.init_learning_rate - hp.final_rate) * height


def _warm_up(step, total_steps, epoch_steps, hp):
    """Return a factor that rises linearly to 1, by default over 5 % of the steps or one epoch,
    whichever is shorter."""
    default = min(math.ceil(0.05 * total_steps), epoch_steps)
    length = max(1, _warm_up_steps(epoch_steps, hp, default))
    return tf.minimum(tf.cast(step + 1, tf.float32) / length, 1.0)


def _warm_up_steps(epoch_steps, hp, default):
    if hp.warmup_epochs > hp.total_epochs:
        raise HyperparameterError(
            f"--warmup_epochs must be at most {hp.total_epochs}, the --total_epochs, got "
            f"{hp.warmup_epochs}"
        )
    return default if hp.warmup_epochs < 0 else hp.warmup_epochs * epoch_steps


SCHEDULES = {schedule.__name__: schedule for schedule in (steps, cosine, linear)}
Schedule: TypeAlias = Literal[tuple(SCHEDULES)]  # pyright: ignore[reportInvalidTypeForm]


@dataclasses.dataclass(frozen=True)
class ScheduleFields:
    """The hyperparameters of the schedules."""

    # training
    schedule: Schedule = "steps"  # learning-rate schedule
    warmup_epochs: Annotated[float, Ge(-1)] = -1.0  # epochs of rise; negative: the schedule's own
    final_rate: NotNegative = 0.0  # learning rate at the end (not `steps`)
    step_factor: Positive = 0.1  # of each drop (only `steps`)
