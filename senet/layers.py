"""The layers of the networks, over `tf.nn` and `tf.get_variable`.

Pictures and feature maps are [batch, height, width, channels]. Every layer with variables opens a
variable scope of its own name, so that building a network twice, the second time under
`tf.variable_scope(..., reuse=True)`, shares the variables.
"""

import zlib

import numpy as np

from senet.compat import global_avg_pool, tf
from senet.devices import has_grouped_convolution


def layer_seed():
    """A number that the graph's seed and the current variable scope decide alone: a layer's random
    numbers are the same whatever else the graph holds."""
    return zlib.crc32(f"{tf.get_default_graph().seed or 0} {tf.get_variable_scope().name}".encode())


def he_weights(shape, fan_in, gain=2.0):
    """The variable `weights` of the current scope with He initialisation: Gaussian with
    variance 2 / fan_in (arXiv 1502.01852, section 2.2), or another `gain` than 2."""
    seed = [layer_seed(), 0]

    def initializer(shape, dtype, partition_info=None):
        return np.sqrt(gain / fan_in) * tf.random.stateless_normal(shape, seed, dtype=dtype)

    return tf.get_variable("weights", shape, initializer=initializer)


def conv_layer(
    input_x, filters, kernel, stride=1, padding="SAME", groups=1, use_bias=False, layer_name="conv"
):
    """2-D convolution; `kernel` is a side or a pair [height, width]. With `groups`, channels fall
    into that many groups and each output group sees its own input group only (ResNeXt, arXiv
    1611.05431, figure 3c). No bias by default: batch norm follows and has its own."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    group_channels = input_x.shape[-1].value // groups
    with tf.variable_scope(layer_name):
        if (height, width) == (1, 1) and stride > 1:
            # The same function. oneDNN's filter gradient of the strided one writes past its buffer
            # for some sizes (TensorFlow 2.21: batch 7, 8 channels), which ends the process.
            input_x, stride = input_x[:, ::stride, ::stride, :], 1
        weights = he_weights(
            [height, width, group_channels, filters], fan_in=height * width * group_channels
        )
        if groups == 1 or has_grouped_convolution():
            x = tf.nn.conv2d(input_x, weights, stride, padding)
        else:
            paths = zip(
                tf.split(input_x, groups, axis=-1), tf.split(weights, groups, axis=-1), strict=True
            )
            x = Concatenation([tf.nn.conv2d(path, w, stride, padding) for path, w in paths])
        if use_bias:
            x += tf.get_variable("bias", [filters], initializer=tf.zeros_initializer())
        return x


def Batch_Normalization(x, training, scope, offset=0.0, momentum=0.9, epsilon=1e-5):
    """Batch normalisation over all axes but the last (arXiv 1502.03167, algorithms 1 and 2).

    In training it uses the statistics of the batch and adds to `tf.GraphKeys.UPDATE_OPS` the two
    operations that move the averages: `moving = momentum * moving + (1 - momentum) * batch`, with
    the unbiased batch variance. The train operation has to depend on them. Otherwise it uses the
    moving averages. `training` is a Python bool: updates inside a `tf.cond` would be lost. `offset`
    is where beta starts.
    """
    channels = [x.shape[-1].value]
    with tf.variable_scope(scope):
        gamma = tf.get_variable("gamma", channels, initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", channels, initializer=tf.constant_initializer(offset))
        moving_mean = tf.get_variable(
            "moving_mean", channels, initializer=tf.zeros_initializer(), trainable=False
        )
        moving_variance = tf.get_variable(
            "moving_variance", channels, initializer=tf.ones_initializer(), trainable=False
        )
        if not training:
            return tf.nn.fused_batch_norm(
                x, gamma, beta, moving_mean, moving_variance, epsilon, is_training=False
            )[0]
        x, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)
        for moving, batch in (moving_mean, mean), (moving_variance, variance):
            update = moving.assign_sub((1 - momentum) * (moving - batch), read_value=False)
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
        return x


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
    layer_name="conv",
):
    """`conv_layer`, then `Batch_Normalization`, in the scope `layer_name`."""
    with tf.variable_scope(layer_name):
        x = conv_layer(input_x, filters, kernel, stride, padding, groups)
        return Batch_Normalization(x, training, scope="batch_norm", offset=offset)


def chain(input_x, *rows, training):
    """Convolutions one after the other, batch norm and ReLU behind each; a row is (filters, kernel)
    or (filters, kernel, stride, padding). The chains of a scope are `branch`, `branch_1`, ...

    The offset of batch norm starts at 1, so that ReLU lets most values through. From 0 the gradient
    would grow by 21 % with each layer on its way back (sqrt(pi / (pi - 1)), arXiv 1902.08129), from
    1 it is 6 %: without shortcuts around them, that decides whether dozens of layers learn at all.
    """
    x = input_x
    with tf.variable_scope(None, default_name="branch"):
        for number, row in enumerate(rows, 1):
            x = conv_bn(x, *row, offset=1.0, training=training, layer_name=f"conv{number}")
            x = Relu(x)
    return x


def Relu(x):
    """max(x, 0)"""
    return tf.nn.relu(x)


def Sigmoid(x):
    """1 / (1 + exp(-x))"""
    return tf.nn.sigmoid(x)


def Concatenation(layers):
    """Feature maps of the same size, one after the other along the channels."""
    return tf.concat(layers, axis=-1)


def Max_pooling(x, kernel=3, stride=2, padding="VALID"):
    """The largest value of each window."""
    return tf.nn.max_pool2d(x, kernel, stride, padding)


def Avg_pooling(x, kernel=3, stride=1, padding="SAME"):
    """The mean of each window; what lies beyond the edge does not count."""
    return tf.nn.avg_pool2d(x, kernel, stride, padding)


def Global_Average_Pooling(x):
    """[batch, height, width, channels] to the mean of each channel, [batch, channels]."""
    return global_avg_pool(x)


def Fully_connected(x, units, layer_name="fully_connected", gain=2.0):
    """[batch, features] to [batch, units], with bias; `gain` as for `he_weights`."""
    features = x.shape[-1].value
    with tf.variable_scope(layer_name):
        weights = he_weights([features, units], fan_in=features, gain=gain)
        bias = tf.get_variable("bias", [units], initializer=tf.zeros_initializer())
        return tf.matmul(x, weights) + bias


def Dropout(x, rate, training, layer_name="dropout"):
    """In training, zero for a share `rate` of the values and the others over 1 - rate (arXiv
    1207.0580); the random numbers are keyed by `layer_seed` and the global step. Otherwise `x`."""
    if not training:
        return x
    step = tf.train.get_or_create_global_step()
    with tf.variable_scope(layer_name):
        draw = tf.random.stateless_uniform(tf.shape(x), [layer_seed(), step])
        return tf.where(draw >= rate, x / (1 - rate), tf.zeros_like(x))


def Squeeze_excitation_layer(input_x, out_dim, ratio, layer_name):
    """`input_x`, [batch, height, width, out_dim], each channel times its gate in (0, 1).

    The squeeze is each channel's mean over the map; the excitation turns the means into the gates
    by two fully connected layers with a bottleneck of out_dim / ratio (SENet, arXiv 1709.01507,
    sections 3.1 and 3.2, equations 2 to 4). Raises ValueError if `ratio` exceeds `out_dim`.
    """
    if not 1 <= ratio <= out_dim:
        raise ValueError(f"{layer_name}: ratio {ratio} is not from 1 to out_dim {out_dim}")
    with tf.variable_scope(layer_name):
        squeeze = Global_Average_Pooling(input_x)
        excitation = Fully_connected(squeeze, out_dim // ratio, layer_name="fully_connected1")
        excitation = Relu(excitation)
        # From weights of zero, all gates start at 1/2: what they tell apart they have to learn.
        excitation = Fully_connected(excitation, out_dim, layer_name="fully_connected2", gain=0.0)
        excitation = Sigmoid(excitation)
        return input_x * tf.reshape(excitation, [-1, 1, 1, out_dim])
