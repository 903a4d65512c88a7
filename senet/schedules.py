"""Learning-rate schedules.

A schedule returns the learning rate of `step`, a scalar tensor or a number. `step` is an int64
scalar that counts from 0; the other arguments are Python numbers. To add one, write a function with
the same arguments and add it to SCHEDULES; every script then accepts its name as --schedule.
"""

import math

from senet.engine.compat import tf


def learning_rate(step, epoch_steps, hyperparameters):
    """Return the learning rate of `step`, float32, in the schedule `hyperparameters.schedule`."""
    hp = hyperparameters
    total_steps = hp.total_epochs * epoch_steps
    with tf.name_scope("learning_rate"):
        rate = SCHEDULES[hp.schedule](step, total_steps, epoch_steps, hp.init_learning_rate)
        return tf.cast(rate, tf.float32)


def steps(step, total_steps, epoch_steps, peak):
    """Warm up to the peak rate, then divide it by 10 at 30, 60 and 90 % of the steps."""
    rates = [peak / 10**drops for drops in range(4)]
    last_steps = [math.ceil(share * total_steps) - 1 for share in (0.3, 0.6, 0.9)]
    rate = tf.train.piecewise_constant(step, last_steps, rates)
    return _warm_up(step, total_steps, epoch_steps) * rate


def cosine(step, total_steps, epoch_steps, peak):
    """Warm up to the peak rate, then follow half a cosine down to 0 (SGDR, arXiv 1608.03983,
    equation 5, without restarts)."""
    rate = peak * 0.5 * (1 + tf.cos(math.pi * tf.cast(step, tf.float32) / total_steps))
    return _warm_up(step, total_steps, epoch_steps) * rate


def linear(step, total_steps, epoch_steps, peak):
    """Rise linearly to the peak rate over the first 20 % of the steps, then fall linearly to 0."""
    done = tf.cast(step + 1, tf.float32)
    rise = max(1.0, 0.2 * total_steps)
    return peak * tf.minimum(done / rise, (total_steps + 1 - done) / (total_steps + 1 - rise))


def _warm_up(step, total_steps, epoch_steps):
    """Return a factor that rises linearly to 1 over 5 % of the steps or one epoch, whichever
    is shorter."""
    length = min(math.ceil(0.05 * total_steps), epoch_steps)
    return tf.minimum(tf.cast(step + 1, tf.float32) / length, 1.0)


SCHEDULES = {schedule.__name__: schedule for schedule in (steps, cosine, linear)}
