"""Augmentation of training images, inside the graph.

Random numbers are stateless and keyed by (seed, step): a step's augmentation is the same whether or
not the run was stopped before it, and on any device. To add an augmentation, write a function like
`shift_and_flip` that draws with a `random_key` of its own, and call it in a script's `build_graph`.
"""

import zlib

from senet.compat import tf


def random_key(seed, step, purpose=""):
    """Return the key of a step's stateless random numbers, [int, int64 scalar].

    Draws with the same key are the same numbers: give each augmentation a `purpose` of its own."""
    return [seed + ((zlib.crc32(purpose.encode()) & 0x7FFFFFFF) << 32), step]


def shift_and_flip(images, seed, step):
    """Shift each image by up to an eighth of its side each way (4 pixels of 32), filling with
    zeros, and flip half of them left to right: the usual CIFAR augmentation (ResNet, arXiv
    1512.03385, section 4.2).

    `images` is float32 [batch, height, width, channels], `step` an int64 scalar."""
    with tf.name_scope("shift_and_flip"):
        batch = tf.shape(images)[0]
        height, width, channels = images.shape[1:].as_list()
        crop = height // 8
        shifts = 2 * crop + 1  # each way
        key = random_key(seed, step)
        draw = tf.random.stateless_uniform([batch, 1], key, 0, 2 * shifts**2, tf.int32)
        flip, down, right = draw // shifts**2, draw // shifts % shifts, draw % shifts

        # One gather of whole pixels; `source` is each output pixel's place in the padded image.
        rows = down + tf.range(height)
        columns = right + tf.abs(flip * (width - 1) - tf.range(width))
        source = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
        padded = tf.pad(images, [[0, 0], [crop, crop], [crop, crop], [0, 0]])
        return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)
