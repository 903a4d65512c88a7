"""The layers of the networks, built on `tf.nn` and `tf.get_variable`.

Images and feature maps are [batch, height, width, channels]. Every layer with variables opens a
variable scope with its own name, so that building a network a second time under
`tf.variable_scope(..., reuse=True)` shares the variables.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np

from senet.engine.compat import tf
from senet.engine.convolution import convolution
from senet.engine.devices import compute_dtype
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.micro_batches import earlier_uses, micro_batch_number
from senet.engine.text import shortened
from senet.engine.tflearn_layers import global_avg_pool

CLASSIFIER = "classifier"  # the variable scope of a network's last layer

# Graph collections:
MOVING_AVERAGES = "moving_averages"  # (variable's name, next value)
GATES = "gates"  # a Gate for each SE layer


class Gate(NamedTuple):
    """The gates of an SE layer."""

    layer: str  # its variable scope
    name: str  # the operation's name; tf.get_collection matches a scope against it
    values: Any  # float32 [batch, channels]


def padded(x, hyperparameters):
    """Return images `x` in the data type of the network, with `padding` zeros on each side.
    Raises ValueError if their size is not known."""
    hp = hyperparameters
    if not x.shape[1:].is_fully_defined():
        raise ValueError(f"images must have a known height, width and channels, got {x.shape}")
    margins = [hp.padding] * 2
    return tf.pad(tf.cast(x, compute_dtype(hp.mixed_precision)), [[0, 0], margins, margins, [0, 0]])


def layer_seed(use=0):
    """Return a seed that depends only on the graph's seed, the current variable scope and `use`, so
    that a layer's random numbers do not depend on the rest of the graph."""
    parts = tf.get_default_graph().seed or 0, tf.get_variable_scope().name, *([use] if use else [])
    return zlib.crc32(" ".join(map(str, parts)).encode())


def he_weights(shape, fan_in, gain=2.0):
    """Return the variable `weights` of the current scope, with He initialisation: normally
    distributed with variance gain / fan_in (arXiv 1502.01852, section 2.2, where the gain is 2)."""
    seed = [layer_seed(), 0]

    def initializer(shape, dtype, partition_info=None):
        return np.sqrt(gain / fan_in) * tf.random.stateless_normal(shape, seed, dtype=dtype)

    return tf.get_variable("weights", shape, initializer=initializer)


def conv_layer(
    input_x,
    filters,
    kernel,
    stride=1,
    padding="SAME",
    groups=1,
    use_bias=False,
    scale=1.0,
    layer_name="conv",
):
    """Return the 2-D convolution of `input_x` with `filters` filters, [batch, height, width,
    filters]. `kernel` is a side or a pair [height, width]. With `groups`, each group of output
    channels depends on only one group of input channels (ResNeXt, arXiv 1611.05431, figure 3c).
    There is no bias by default, since batch norm usually follows and has its own. `scale`
    multiplies the output; it is applied to the weights and the bias, which is cheaper. Raises
    ValueError unless `groups` divides the numbers of channels."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    channels = input_x.shape[-1].value
    if channels % groups or filters % groups:
        raise ValueError(
            f"{layer_name}: groups must divide the {channels} input channels and the {filters} "
            f"filters, got {groups}"
        )
    group_channels = channels // groups
    with tf.variable_scope(layer_name):
        shape = [height, width, group_channels, filters]
        weights = scale * he_weights(shape, fan_in=height * width * group_channels)
        x = convolution(input_x, tf.cast(weights, input_x.dtype), stride, padding, groups)
        if use_bias:
            # Not tf.nn.bias_add: its CPU gradient is summed in bfloat16, with 8 significant bits.
            bias = tf.get_variable("bias", [filters], initializer=tf.zeros_initializer())
            x += tf.cast(scale * bias, x.dtype)
        return x


def Batch_Normalization(x, training, scope, offset=0.0, momentum=0.9, epsilon=1e-5, *, scale=True):
    """Normalise `x` over all axes but the last (batch normalisation, arXiv 1502.03167, algorithms 1
    and 2).

    In training, use the statistics of the batch and register the next values of the moving
    averages for `moving_averages()`: `momentum * moving + (1 - momentum) * batch`, with the
    unbiased variance. Otherwise, use the moving averages. `training` is a Python bool, `offset` is
    the initial value of beta. Without `scale`, gamma is 1 and not a variable.
    """
    channels = [x.shape[-1].value]
    with tf.variable_scope(scope):
        gamma = tf.ones(channels)
        if scale:
            gamma = tf.get_variable("gamma", channels, initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", channels, initializer=tf.constant_initializer(offset))
        average = {
            "trainable": False,
            "collections": [tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.MOVING_AVERAGE_VARIABLES],
            "aggregation": tf.VariableAggregation.SUM,  # each replica assigns its part
        }
        moving_mean = tf.get_variable("moving_mean", initializer=tf.zeros(channels), **average)
        moving_variance = tf.get_variable(
            "moving_variance", initializer=tf.ones(channels), **average
        )
        if not training:
            return tf.nn.fused_batch_norm(
                x, gamma, beta, moving_mean, moving_variance, epsilon, is_training=False
            )[0]
        x, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
        for moving, batch in (moving_mean, mean), (moving_variance, variance):
            value = moving - (1 - momentum) * (moving - batch)
            tf.add_to_collection(MOVING_AVERAGES, (moving.op.name, value))
        return x


def moving_averages():
    """Return the next values of `tf.moving_average_variables()`, in the same order, as computed by
    the network that was last built with training=True. The training step must assign them. Raises
    Failure if a moving average has no next value."""
    values = dict(tf.get_collection(MOVING_AVERAGES))
    missing = {variable.op.name for variable in tf.moving_average_variables()} - values.keys()
    if missing:
        raise Failure(
            f"loss() does not update the moving averages {shortened(sorted(missing))}; build the "
            f"network in loss() with training=True, and apply a tf.train.ExponentialMovingAverage "
            f"only after training_step()"
        )
    return [values[variable.op.name] for variable in tf.moving_average_variables()]


def conv_bn(
    input_x,
    filters,
    kernel,
    stride=1,
    padding="SAME",
    groups=1,
    offset=0.0,
    *,
    training,
    pool=1,
    layer_name="conv",
    **batch_norm,
):
    """Return the output of `conv_layer` followed by `Batch_Normalization`, in the scope
    `layer_name`. If `pool` is greater than 1, max pooling with that kernel size and stride is
    applied between them; after batch norm, it would cost more. `batch_norm` are further arguments
    of `Batch_Normalization`."""
    with tf.variable_scope(layer_name):
        x = conv_layer(input_x, filters, kernel, stride, padding, groups)
        if pool > 1:
            x = Max_pooling(x, pool, pool)
        return Batch_Normalization(x, training, scope="batch_norm", offset=offset, **batch_norm)


def chain(input_x, *rows, training):
    """Return the output of a sequence of convolutions, each followed by batch norm and ReLU. Each
    of `rows` is (filters, kernel) or (filters, kernel, stride, padding). The variable scopes are
    `branch`, `branch_1`, ...

    The offset of batch norm starts at 1, so that ReLU passes most values. In the backward pass, the
    gradient then grows by 6 % per layer; with an offset of 0, it would grow by 21 %
    (sqrt(pi / (pi - 1)), arXiv 1902.08129), too much for dozens of layers without shortcuts.
    """
    x = input_x
    with tf.variable_scope(None, default_name="branch"):
        for number, row in enumerate(rows, 1):
            x = conv_bn(x, *row, offset=1.0, training=training, layer_name=f"conv{number}")
            x = Relu(x)
    return x


def Relu(x):
    """Return max(x, 0)."""
    return tf.nn.relu(x)


def Sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return tf.nn.sigmoid(x)


def Concatenation(layers):
    """Concatenate feature maps of the same size along the channels."""
    return tf.concat(layers, axis=-1)


def Max_pooling(x, kernel=3, stride=2, padding="VALID"):
    """Return the maximum of each window, [batch, height, width, channels]."""
    return tf.nn.max_pool2d(x, kernel, stride, padding)


def Avg_pooling(x, kernel=3, stride=1, padding="SAME"):
    """Return the mean of each window, excluding padding, [batch, height, width, channels]."""
    return tf.nn.avg_pool2d(x, kernel, stride, padding)


def Global_Average_Pooling(x):
    """Return the mean of each channel, float32 [batch, channels]."""
    # TensorFlow sums in float32 and rounds only the mean to bfloat16.
    return tf.cast(global_avg_pool(x), tf.float32)


def Fully_connected(x, units, layer_name="fully_connected", gain=2.0):
    """Return `x`, [batch, features], mapped linearly to [batch, units], with a bias. `gain` is
    passed to `he_weights`."""
    features = x.shape[-1].value
    with tf.variable_scope(layer_name):
        weights = he_weights([features, units], fan_in=features, gain=gain)
        bias = tf.get_variable("bias", [units], initializer=tf.zeros_initializer())
        return tf.matmul(x, weights) + bias


def Dropout(x, rate, training, layer_name="dropout"):
    """In training, set each value to zero with probability `rate` and divide the others by 1 - rate
    (arXiv 1207.0580); otherwise, return `x`. The random numbers are keyed by `layer_seed`, the
    global step, the number of the current micro-batch and the number of earlier uses of the layer
    in it. Do not use it inside `tf.recompute_grad`, which uses its layers twice."""
    if not training:
        return x
    step = tf.train.get_or_create_global_step()
    with tf.variable_scope(layer_name):
        use = earlier_uses(tf.get_variable_scope().name)
        # An odd factor makes the keys of micro-batches differ in 32 bits; XLA ignores any others.
        seed = [(layer_seed(use) + micro_batch_number() * 0x9E3779B1) % 2**32, step]
        draw = tf.random.stateless_uniform(tf.shape(x), seed)
        return tf.where(draw >= rate, x / (1 - rate), tf.zeros_like(x))


def Squeeze_excitation_layer(input_x, out_dim, ratio, layer_name):
    """Return `input_x`, [batch, height, width, out_dim], with each channel multiplied by its gate,
    a value in (0, 1).

    The squeeze is the mean of each channel. The excitation computes the gates from the means with
    two fully connected layers, the first of which has out_dim // ratio units (SENet, arXiv
    1709.01507, sections 3.1 and 3.2, equations 2 to 4). With a `ratio` of 0, `input_x` is returned
    unchanged. Raises HyperparameterError if `ratio` is greater than `out_dim`.
    """
    if not ratio:
        return input_x
    if ratio > out_dim:
        raise HyperparameterError(
            f"--reduction_ratio must be at most {out_dim}, the number of channels of "
            f"{tf.get_variable_scope().name}, got {ratio}"
        )
    with tf.variable_scope(layer_name):
        squeeze = Global_Average_Pooling(input_x)
        excitation = Fully_connected(squeeze, out_dim // ratio, layer_name="fully_connected1")
        excitation = Relu(excitation)
        # With weights of zero, all gates start at 1/2; training makes them differ.
        excitation = Fully_connected(excitation, out_dim, layer_name="fully_connected2", gain=0.0)
        excitation = Sigmoid(excitation)
        scope = tf.get_variable_scope().name
        tf.add_to_collection(GATES, Gate(scope, excitation.op.name, excitation))
        gate = tf.cast(tf.reshape(excitation, [-1, 1, 1, out_dim]), input_x.dtype)
        return input_x * gate
