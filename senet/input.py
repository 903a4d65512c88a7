"""From uint8 pictures to what a network takes, inside the graph.

Random numbers are stateless and keyed by (seed, step): a step's augmentation is the same whether
the run was stopped before it or not, and on any device.
"""

from typing import Any, NamedTuple

from senet.compat import tf

CROP = 4  # pixels a picture can shift, each way


class Inputs(NamedTuple):
    """What a step is fed, and the pictures as the network sees them."""

    images: Any  # placeholder, uint8 [batch, height, width, 3]
    labels: Any  # placeholder, int32 [batch]
    step: Any  # placeholder, int64 scalar: the number of this step, from 0
    normalised: Any  # float32, of the shape of `images`

    def feed(self, batch, step=0):
        """The `feed_dict` of a batch, a `senet.datasets.Split`."""
        return {self.images: batch.images, self.labels: batch.labels, self.step: step}


def picture_inputs(data):
    """The Inputs for a `senet.datasets.Dataset`: each channel of a picture less the training set's
    mean, over its standard deviation. The two are variables: a checkpoint holds them."""
    mean, std = data.channel_statistics()
    with tf.variable_scope("input"):
        images = tf.placeholder(tf.uint8, [None, *data.train.images.shape[1:]], "images")
        labels = tf.placeholder(tf.int32, [None], "labels")
        step = tf.placeholder(tf.int64, [], "step")
        mean = tf.get_variable("mean", initializer=mean, trainable=False)
        std = tf.get_variable("std", initializer=std, trainable=False)
        return Inputs(images, labels, step, (tf.cast(images, tf.float32) - mean) / std)


def augment(images, seed, step):
    """Shift each picture by up to 4 pixels each way, zeros moving in, and flip half of them, at
    random, left to right: the usual CIFAR augmentation (ResNet, arXiv 1512.03385, section 4.2).

    `images` is float32 [batch, height, width, channels], `step` an int64 scalar.
    """
    with tf.name_scope("augment"):
        return _shift_and_flip(images, seed, step)


def _shift_and_flip(images, seed, step):
    batch = tf.shape(images)[0]
    height, width, channels = images.shape[1:].as_list()
    shifts = 2 * CROP + 1  # 9 of them each way
    draw = tf.random.stateless_uniform([batch, 1], [seed, step], 0, 2 * shifts**2, tf.int32)
    flip, down, right = draw // shifts**2, draw // shifts % shifts, draw % shifts

    # One gather of whole pixels: `source` is where each output pixel is in the padded picture.
    rows = down + tf.range(height)
    columns = right + tf.abs(flip * (width - 1) - tf.range(width))
    source = rows[:, :, None] * (width + 2 * CROP) + columns[:, None, :]
    padded = tf.pad(images, [[0, 0], [CROP, CROP], [CROP, CROP], [0, 0]])
    return tf.gather(tf.reshape(padded, [batch, -1, channels]), source, batch_dims=1)
