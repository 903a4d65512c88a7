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


def whole_pixels(fraction, side):
    """Return the number of whole pixels in a `fraction` of `side`."""
    return int(fraction * side + 1e-6)  # 1 / 49 * 49 is less than 1 in floating point


# {padding of shifted images: mode of tf.pad}
SHIFT_PADDINGS = {"zeros": "CONSTANT", "reflect": "REFLECT"}


def shift_and_flip(images, seed, step, max_shift=1 / 8, padding="zeros"):
    """Return `images` randomly shifted and flipped: the usual CIFAR augmentation (ResNet, arXiv
    1512.03385, section 4.2). Each image is shifted in each direction by up to the fraction
    `max_shift` of its height, in whole pixels (1/8: 4 of 32), and flipped left to right with
    probability 1/2. The gap is filled with zeros, or with the mirror image of the pixels next to it
    if `padding` is "reflect".

    `images` is float32 [batch, height, width, channels], normalised, and `step` an int64
    scalar."""
    with tf.name_scope("shift_and_flip"):
        batch = tf.shape(images)[0]
        height, width, channels = images.shape[1:].as_list()
        margin = whole_pixels(max_shift, height)
        shifts = 2 * margin + 1  # per axis
        key = random_key(seed, step)
        draw = tf.random.stateless_uniform([batch, 1], key, 0, 2 * shifts**2, tf.int32)
        flip, down, right = draw // shifts**2, draw // shifts % shifts, draw % shifts

        # One gather of whole pixels; `source` is each output pixel's index in the padded image.
        rows = down + tf.range(height)
        columns = right + tf.abs(flip * (width - 1) - tf.range(width))
        source = rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]
        margins = [[0, 0], [margin, margin], [margin, margin], [0, 0]]
        padded = tf.pad(images, margins, SHIFT_PADDINGS[padding])
        return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)


def cutout(images, seed, step, side):
    """Return `images`, each with a random square set to zero (Cutout, arXiv 1708.04552, section
    3.2). Its side is the fraction `side` of the image height, in whole pixels (1/4: 8 of 32). Its
    centre may be any pixel, so parts of the square may be outside the image.

    `images` is float32 [batch, height, width, channels] and `step` an int64 scalar."""
    with tf.name_scope("cutout"):
        height, width = images.shape[1:3].as_list()
        pixels = whole_pixels(side, height)
        key = random_key(seed, step, "cutout")
        draw = tf.random.stateless_uniform(
            [tf.shape(images)[0], 1], key, 0, height * width, tf.int32
        )
        top, left = draw // width - pixels // 2, draw % width - pixels // 2
        rows = tf.range(height) - top
        columns = tf.range(width) - left
        rows_inside = (rows >= 0) & (rows < pixels)
        columns_inside = (columns >= 0) & (columns < pixels)
        outside = ~(rows_inside[:, :, None] & columns_inside[:, None, :])
        return images * tf.cast(outside, images.dtype)[..., None]
