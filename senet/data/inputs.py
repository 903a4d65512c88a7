"""The inputs of the graph: placeholders for a batch, and the normalised images."""

import json
from typing import Any, NamedTuple

import numpy as np

from senet.engine.compat import tf


class Inputs(NamedTuple):
    """The placeholders for a batch, and its normalised images."""

    images: Any  # placeholder, uint8 [batch, height, width, 3]
    labels: Any  # placeholder, int32 [batch]
    normalised: Any  # float32, the shape of `images`
    statistics: Any  # a Statistics of variables, which checkpoints store
    classes: int

    def to_uint8(self, normalised):
        """Return normalised images, float32, converted back to uint8."""
        with tf.name_scope("to_uint8"):
            values = tf.round(normalised * self.statistics.std + self.statistics.mean)
            return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


class Statistics(NamedTuple):
    """The properties of the training set that checkpoints store, as three variables."""

    mean: Any  # float32 [3]: mean of each channel, in pixel values
    std: Any  # float32 [3]: standard deviation of each channel
    label_names: Any  # int64 [length]: `encode_json` of the list of names


SCOPE = "input"  # the variable scope of Statistics
STATISTICS = frozenset(f"{SCOPE}/{name}" for name in Statistics._fields)  # their variables


def image_inputs(data, seed=0):
    """Set the seed of the graph, and return its Inputs for a Dataset. Images are normalised with
    the statistics of its training set."""
    tf.set_random_seed(seed)
    return inputs_with(data.train.images.shape[1], statistics_of(data))


def statistics_of(data):
    """Return the Statistics of a Dataset, as arrays."""
    mean, std = data.channel_statistics()
    return Statistics(mean, std, encode_json(data.label_names))


def read_statistics(reader):
    """Return the Statistics in a checkpoint, as arrays, from TensorFlow's checkpoint `reader`."""
    return Statistics._make(reader.get_tensor(f"{SCOPE}/{name}") for name in Statistics._fields)


def inputs_with(image_size, statistics):
    """Return the Inputs for images of `image_size` pixels a side, with the given Statistics."""
    with tf.variable_scope(SCOPE):
        images = tf.placeholder(tf.uint8, [None, image_size, image_size, 3], "images")
        labels = tf.placeholder(tf.int32, [None], "labels")
        variables = Statistics._make(
            tf.get_variable(name, initializer=value, trainable=False)
            for name, value in statistics._asdict().items()
        )
        normalised = (tf.cast(images, tf.float32) - variables.mean) / variables.std
        classes = len(decode_json(statistics.label_names))
        return Inputs(images, labels, normalised, variables, classes)


def encode_json(value):
    """Return the bytes of a value's JSON as int64 [length], since GPUs and collective operations
    between hosts support neither strings nor uint8."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8).astype(np.int64)


def decode_json(numbers):
    """Return the value that `encode_json` encoded as `numbers`, int64 [length]."""
    return json.loads(numbers.astype(np.uint8).tobytes())
