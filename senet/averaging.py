"""Averaged weights: the hyperparameter `ema` (Polyak and Juditsky, 1992; as `ModelEma` of timm).

Each variable of the network has an exponential moving average, a float32 variable of the same name
with SUFFIX. Training uses the weights, tests use the averages. Batch norm's moving averages are
averaged too, since they must describe the feature maps of the averaged weights.
"""

from senet.engine.compat import tf

SUFFIX = "/ema"
AVERAGES = "averages"  # graph collection of pairs (variable, its average)


def averaged(decay):
    """Return a scope in which `tf.get_variable` returns the average of a variable of the network.
    With a `decay` of 0, it returns the variable itself."""
    getter = _get_average if decay else None
    return tf.variable_scope(tf.get_variable_scope(), custom_getter=getter)


def _get_average(getter, name, *args, **settings):
    variable = getter(name, *args, **settings)
    settings |= {
        "trainable": False,
        "collections": [tf.GraphKeys.GLOBAL_VARIABLES],
        # All replicas compute the same average.
        "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
    }
    average = getter(name + SUFFIX, *args, **settings)
    tf.add_to_collection(AVERAGES, (variable, average))
    return average


def update_averages(decay, step):
    """Return the operations that update the averages after `step` steps. In the first steps, the
    averages follow the weights more closely, since they start with the initial values."""
    if not decay:
        return []
    done = tf.cast(step, tf.float32)
    decay = tf.minimum(decay, (1 + done) / (10 + done))
    # A network that is built twice registers its variables twice.
    pairs = {
        average.op.name: (variable, average) for variable, average in tf.get_collection(AVERAGES)
    }
    return [
        average.assign(average - (1 - decay) * (average - variable.read_value()))
        for variable, average in pairs.values()
    ]
