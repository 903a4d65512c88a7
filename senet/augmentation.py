"""Augmentation of training images, inside the graph.

Random numbers are stateless and keyed by (seed, step): a step's augmentation is the same whether or
not the run was stopped before it, and on any device.
"""

from senet.compat import tf


def augment(images, seed, step):
    """Shift each picture by up to an eighth of its side each way (4 pixels of 32), zeros moving in,
    and flip half of them, at random, left to right: the usual CIFAR augmentation (ResNet, arXiv
    1512.03385, section 4.2).

    `images` is float32 [batch, height, width, channels], `step` an int64 scalar.
    """
    with tf.name_scope("augment"):
        return _shift_and_flip(images, seed, step)


def _shift_and_flip(images, seed, step):
    batch = tf.shape(images)[0]
    height, width, channels = images.shape[1:].as_list()
    crop = height // 8
    shifts = 2 * crop + 1  # each way
    draw = tf.random.stateless_uniform([batch, 1], [seed, step], 0, 2 * shifts**2, tf.int32)
    flip, down, right = draw // shifts**2, draw // shifts % shifts, draw % shifts

    # One gather of whole pixels: `source` is where each output pixel is in the padded picture.
    rows = down + tf.range(height)
    columns = right + tf.abs(flip * (width - 1) - tf.range(width))
    source = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
    padded = tf.pad(images, [[0, 0], [crop, crop], [crop, crop], [0, 0]])
    return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)
