"""Augmentation of training images, inside the graph.

The random numbers are stateless and keyed by (seed, step), so that a resumed run augments exactly
as an uninterrupted one does, on any device. `images` are normalised, float32 [batch, height, width,
channels], and `step` is an int64 scalar. To add an augmentation, write a function such as `cutout`
with its own purpose in `random_key`, and call it in the script's `build_graph`.
"""

import zlib

from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError


def random_key(seed, step, purpose):
    """Return the key of a step for `tf.random.stateless_uniform` and the like, [int, int64 scalar].

    The same key gives the same numbers, so give each augmentation its own `purpose`. The int has 32
    bits, since XLA ignores any others."""
    return [zlib.crc32(f"{seed} {purpose}".encode()), step]


def whole_pixels(name, fraction, side):
    """Return the number of whole pixels in a `fraction` of `side`. Raises HyperparameterError, with
    the name of the hyperparameter, if a fraction greater than 0 is less than a pixel."""
    pixels = int(fraction * side + 1e-6)  # 1 / 49 * 49 is less than 1 in floating point
    if fraction and not pixels:
        least = f"1/{side}, one pixel"
        raise HyperparameterError(f"--{name} must be 0 or at least {least}, got {fraction}")
    return pixels


# {padding of shifted images: mode of tf.pad}
SHIFT_PADDINGS = {"zeros": "CONSTANT", "reflect": "REFLECT"}


def shift(images, seed, step, max_shift=1 / 8, padding="zeros"):
    """Return `images`, each shifted by a random number of pixels in each direction, up to the
    fraction `max_shift` of its height (1/8: 4 of 32; ResNet, arXiv 1512.03385, section 4.2). The
    gap is filled with zeros, or with the mirror image of the pixels next to it if `padding` is
    "reflect"."""
    with tf.name_scope("shift"):
        batch = tf.shape(images)[0]
        height, width, channels = images.shape[1:].as_list()
        margin = whole_pixels("max_shift", max_shift, height)
        if not margin:
            return images
        shifts = 2 * margin + 1  # per axis
        key = random_key(seed, step, "shift")
        draw = tf.random.stateless_uniform([batch, 1], key, 0, shifts**2, tf.int32)

        # One gather of whole pixels; `source` is each output pixel's index in the padded image.
        rows = draw // shifts + tf.range(height)
        columns = draw % shifts + tf.range(width)
        source = rows[:, :, None] * (width + 2 * margin) + columns[:, None, :]
        margins = [[0, 0], [margin, margin], [margin, margin], [0, 0]]
        padded = tf.pad(images, margins, SHIFT_PADDINGS[padding])
        return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)


def flip(images, seed, step):
    """Return `images`, each flipped left to right with probability 1/2."""
    with tf.name_scope("flip"):
        key = random_key(seed, step, "flip")
        draw = tf.random.stateless_uniform([tf.shape(images)[0]], key, 0, 2, tf.int32)
        return tf.where(draw > 0, images[:, :, ::-1], images)


def alternating_flip(images, seed, step, epoch_steps):
    """Return `images`, each flipped left to right in every other epoch of `epoch_steps` steps. A
    random half starts with the mirror image, so that two epochs show every image both ways (Jordan,
    arXiv 2404.00498, section 3.6).

    Call it before the other random augmentations: the choice is a hash of the image itself."""
    with tf.name_scope("alternating_flip"):
        # Bits of float32 numbers, with weights that depend on their position and on the seed.
        bits = tf.bitcast(images, tf.int32)
        weights = tf.random.stateless_uniform(
            images.shape[1:], random_key(seed, 0, "alternating_flip"), None, None, tf.int32
        )
        hashed = tf.reduce_sum(bits * weights, axis=[1, 2, 3]) // 2**16
        epoch = tf.cast(step // epoch_steps, tf.int32)
        return tf.where((hashed + epoch) % 2 > 0, images[:, :, ::-1], images)


def cutout(images, seed, step, side):
    """Return `images`, each with a random square set to zero (Cutout, arXiv 1708.04552, section
    3.2). Its side is the fraction `side` of the image height, in whole pixels (1/4: 8 of 32). Its
    centre may be any pixel, so parts of the square may be outside the image."""
    with tf.name_scope("cutout"):
        height, width = images.shape[1:3].as_list()
        pixels = whole_pixels("cutout", side, height)
        if not pixels:
            return images
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


def mixup(batch, seed, step, alpha):
    """Return `batch`, a dict of images and labels, with each image mixed with another one (mixup,
    arXiv 1710.09412, section 2). Added are "other_labels" and "weights", the share of the image
    itself, float32 [batch]: the larger of two numbers that follow Beta(alpha, alpha) and add up to
    1. With an `alpha` of 0, the batch is unchanged.

    An image's partner is the one at the opposite end of the batch, whose order is random."""
    if not alpha:
        return batch
    with tf.name_scope("mixup"):
        images = batch["images"]
        size = tf.shape(images)[0]
        key = random_key(seed, step, "mixup")
        draws = tf.random.stateless_gamma([2, size], key, tf.constant(alpha, tf.float32))
        smaller, total = tf.reduce_min(draws, axis=0), tf.reduce_sum(draws, axis=0)
        # For small values of alpha, both draws can be TensorFlow's smallest number, 1.2e-38: then,
        # the image is not mixed.
        weights = 1 - smaller / total * tf.cast(total > 1e-37, tf.float32)
        share = weights[:, None, None, None]
        mixed = share * images + (1 - share) * images[::-1]
        labels = batch["labels"]
        return {**batch, "images": mixed, "other_labels": labels[::-1], "weights": weights}
