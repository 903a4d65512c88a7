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
        """The `feed_dict` of a batch, a `senet.data.datasets.Split`."""
        return {self.images: batch.images, self.labels: batch.labels, self.step: step}

    def pictures(self, normalised):
        """Normalised pictures as uint8 again."""
        values = tf.round(normalised * self.std + self.mean)
        return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def picture_inputs(data):
    """The Inputs for a Dataset: each channel of a picture less the training set's
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
