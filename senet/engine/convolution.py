"""2-D convolution, in the implementation that is fastest for the given sizes.

Speed-ups are relative to `tf.nn.conv2d`, in bfloat16 on two CPU cores with AVX-512 BF16.
"""

import math

import numpy as np

from senet.engine.compat import tf
from senet.engine.devices import chosen_gpus, has_grouped_convolution

SMALL_MAP = 100  # pixels; up to this size, the CPU's filter gradient is a matrix product


def convolution(x, weights, stride=1, padding="SAME", groups=1):
    """Return the 2-D convolution of `x`, [batch, height, width, channels], with `weights`, [kernel
    height, kernel width, channels / groups, filters], of the same type. `padding` is "SAME" or
    "VALID"."""
    kernel = weights.shape[:2].as_list()
    if kernel == [1, 1] and stride > 1:
        # Subsampling first is equivalent. oneDNN's filter gradient of a strided 1x1 convolution
        # writes past its buffer for some sizes (TensorFlow 2.21: batch 7, 8 channels) and crashes.
        x = tf.nn.avg_pool2d(x, 1, stride, "VALID")
        stride = 1
    if padding == "SAME" and stride == 1:
        weights = _effective_kernel(weights, x.shape[1:3].as_list())
    if weights.shape[:2].as_list() == [1, 1] and groups == 1:
        return _pointwise(x, weights)
    if groups > 1 and not has_grouped_convolution():
        paths = zip(tf.split(x, groups, axis=-1), tf.split(weights, groups, axis=-1), strict=True)
        return tf.concat([tf.nn.conv2d(path, w, stride, padding) for path, w in paths], axis=-1)
    with tf.get_default_graph().gradient_override_map({"Conv2D": "Conv2DWithFilterProduct"}):
        return tf.nn.conv2d(x, weights, stride, padding)


def _effective_kernel(weights, size):
    """Return `weights` without the positions that only ever see padding on maps of `size`: on 1x1
    maps, only the centre of a 1x3 kernel matters. (Speed-up of 1x3 on 1x1 maps: 8.)"""
    kernel = weights.shape[:2].as_list()
    before = [(side - 1) // 2 for side in kernel]  # padding above and on the left
    first = [max(0, pad + 1 - length) for pad, length in zip(before, size, strict=True)]
    end = [min(k, pad + length) for k, pad, length in zip(kernel, before, size, strict=True)]
    if first == [0, 0] and end == kernel:
        return weights
    return weights[first[0] : end[0], first[1] : end[1]]


def _pointwise(x, weights):
    """Compute a 1x1 convolution as one matrix product. (Speed-up of its filter gradient at batch
    128: 1.1 to 1.4 on SE-ResNeXt's maps, 15 on 1x1 maps.)"""
    height, width, channels = x.shape[1:].as_list()
    filters = weights.shape[-1].value
    x = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(weights, [channels, filters]))
    return tf.reshape(x, [-1, height, width, filters])


@tf.RegisterGradient("Conv2DWithFilterProduct")
def _conv2d_gradient(op, gradient):
    """Return the gradients of a tf.nn.conv2d. On small maps, compute the filter gradient group by
    group, as the product of the input's patches and `gradient`. (Speed-up at batch 128: 5 for 1x7
    on 4x4 maps; 1.2 for SE-ResNeXt's 3x3 in eight groups on 8x8 maps.)"""
    x, weights = op.inputs
    strides, padding = op.get_attr("strides"), op.get_attr("padding").decode()
    x_gradient = tf.nn.conv2d_backprop_input(tf.shape(x), weights, gradient, strides, padding)
    height, width, filters = gradient.shape[1:].as_list()
    if chosen_gpus() or height * width > SMALL_MAP:
        shape = weights.shape.as_list()
        return x_gradient, tf.nn.conv2d_backprop_filter(x, shape, gradient, strides, padding)
    *kernel, channels, _ = weights.shape.as_list()
    groups = x.shape[-1].value // channels
    paths = zip(tf.split(x, groups, axis=-1), tf.split(gradient, groups, axis=-1), strict=True)
    products = []
    for path, part in paths:
        patches = _patches(path, kernel, strides[1], padding, (height, width))
        patches = tf.reshape(patches, [-1, math.prod(kernel) * channels])
        part = tf.reshape(part, [-1, filters // groups])
        products.append(tf.matmul(patches, part, transpose_a=True))
    return x_gradient, tf.reshape(tf.concat(products, axis=-1), weights.shape)


def _patches(x, kernel, stride, padding, size):
    """Return the input patch of each of the `size` outputs, [batch, *size, *kernel, channels]."""
    if padding == "SAME":
        needed = [
            max((length - 1) * stride + side - before.value, 0)
            for length, side, before in zip(size, kernel, x.shape[1:3], strict=True)
        ]
        margins = [[total // 2, total - total // 2] for total in needed]
        x = tf.pad(x, [[0, 0], *margins, [0, 0]])
    # One gather of whole pixels: `source` has the input indices of each output's patch.
    height, width, channels = x.shape[1:].as_list()
    rows, columns = (
        np.arange(length)[:, None] * stride + np.arange(side)
        for length, side in zip(size, kernel, strict=True)
    )
    source = rows[:, None, :, None] * width + columns[None, :, None, :]
    return tf.gather(tf.reshape(x, [-1, height * width, channels]), source, axis=1)
