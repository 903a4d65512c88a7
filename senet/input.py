"""From uint8 pictures to what a network takes, inside the graph.

Random numbers are stateless and keyed by (seed, step): a step's augmentation is the same whether
the run was stopped before it or not, and on any device.
"""

import json
from typing import Any, NamedTuple

import numpy as np

from senet.compat import tf


class Inputs(NamedTuple):
    """What a step is fed, and the pictures as the network sees them."""

    images: Any  # placeholder, uint8 [batch, height, width, 3]
    labels: Any  # placeholder, int32 [batch]
    step: Any  # placeholder, int64 scalar: the number of this step, from 0
    normalised: Any  # float32, of the shape of `images`
    mean: Any  # variable, float32 [3]: of the training set, in pixel values
    std: Any  # variable, float32 [3]: its standard deviation

    def feed(self, batch, step=0):
        """The `feed_dict` of a batch, a `senet.datasets.Split`."""
        return {self.images: batch.images, self.labels: batch.labels, self.step: step}

    def pictures(self, normalised):
        """Normalised pictures as uint8 again."""
        values = tf.round(normalised * self.std + self.mean)
        return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def picture_inputs(data):
    """The Inputs for a `senet.datasets.Dataset`: each channel of a picture less the training set's
    mean, over its standard deviation. The two are variables, and so are the names of the classes:
    a checkpoint holds them."""
    return inputs_of(data.train.images.shape[1], *data.channel_statistics(), data.label_names)


def inputs_of(image_size, mean, std, label_names):
    """`picture_inputs` from its parts: two float32 arrays [3] and a list of str."""
    with tf.variable_scope("input"):
        images = tf.placeholder(tf.uint8, [None, image_size, image_size, 3], "images")
        labels = tf.placeholder(tf.int32, [None], "labels")
        step = tf.placeholder(tf.int64, [], "step")
        mean = tf.get_variable("mean", initializer=mean, trainable=False)
        std = tf.get_variable("std", initializer=std, trainable=False)
        tf.get_variable("label_names", initializer=names_as_numbers(label_names), trainable=False)
        normalised = (tf.cast(images, tf.float32) - mean) / std
        return Inputs(images, labels, step, normalised, mean, std)


def names_as_numbers(label_names):
    """A list of str as int64 [length], the bytes of its JSON: GPUs and networks between hosts take
    no texts."""
    return np.frombuffer(json.dumps(label_names).encode(), np.uint8).astype(np.int64)


def names_from_numbers(array):
    """The list of str that `names_as_numbers` made an array of."""
    return json.loads(array.astype(np.uint8).tobytes())


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
