"""Augmentation of training images, inside the graph.

The random numbers are stateless and keyed by (seed, step), so that a resumed run augments exactly
as an uninterrupted one does, on any device. To add an augmentation, write a function such as
`shift_and_flip` with its own `random_key`, and call it in the script's `build_graph`.
"""

import zlib

from senet.compat import tf


def random_key(seed, step, purpose=""):
    """Return the key of a step for `tf.random.stateless_uniform` and the like, [int, int64 scalar].

    The same key gives the same numbers, so give each augmentation its own `purpose`."""
    return [seed + ((zlib.crc32(purpose.encode()) & 0x7FFFFFFF) << 32), step]


def shift_and_flip(images, seed, step, max_shift=1 / 8):
    """Return `images` randomly shifted and flipped: the usual CIFAR augmentation (ResNet, arXiv
    1512.03385, section 4.2). Each image is shifted in each direction by up to the fraction
    `max_shift` of its height, in whole pixels (1/8: 4 of 32), with zeros in the gap, and flipped
    left to right with probability 1/2.

    `images` is float32 [batch, height, width, channels], `step` is an int64 scalar."""
    with tf.name_scope("shift_and_flip"):
        batch = tf.shape(images)[0]
        height, width, channels = images.shape[1:].as_list()
        margin = int(max_shift * height)
        shifts = 2 * margin + 1  # per axis
        key = random_key(seed, step)
        draw = tf.random.stateless_uniform([batch, 1], key, 0, 2 * shifts**2, tf.int32)
        flip, down, right = draw // shifts**2, draw // shifts % shifts, draw % shifts

        # One gather of whole pixels; `source` is each output pixel's index in the padded image.
        rows = down + tf.range(height)
        columns = right + tf.abs(flip * (width - 1) - tf.range(width))
        source = rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]
        padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)
