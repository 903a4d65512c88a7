"""Evaluate a network on a whole split, batch by batch."""

import re
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from senet.averaging import averaged
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.layers import GATES, MOVING_AVERAGES
from senet.losses import correct, metrics


def batch_sums(values):
    """Return float64 [len(values) + 1] for a batch: the sum of each of `values`, {name: tensor
    [batch]}, and the number of images. Raises Failure for a tensor of another shape, or a name that
    a row cannot have."""
    for name, value in values.items():
        if value.shape.rank != 1:
            raise Failure(f"{name} must have one value per image, [batch], got {value.shape}")
        if not NAME.fullmatch(name):
            raise Failure(f"the name of a metric must match {NAME.pattern}, got {name!r}")
    with tf.name_scope("batch_sums"):
        parts = *values.values(), tf.ones_like(next(iter(values.values())), tf.float64)
        return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])


NAME = re.compile(r"[\w/@.-]+")  # of a metric, as in a row of logs.txt


class Evaluation(NamedTuple):
    """A network's predictions for N images."""

    metrics: dict  # {name: mean of the metric}, the cross-entropy "loss" and the accuracy "acc"
    labels: np.ndarray  # [N], the true classes
    predicted: np.ndarray  # [N], the most probable classes
    probability: np.ndarray  # [N], their probabilities
    gates: dict  # {SE layer: the mean gate of each class and channel, [classes, channels]}
    plain_accuracy: float  # without test-time augmentation

    def confusion_matrix(self, classes):
        """Return the number of images of each class (row) that were assigned to each class
        (column), int [classes, classes]."""
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


# {test-time augmentation: weights of an image, its mirror image, and four shifted images}
VARIANTS = {
    "none": [1.0],
    "flip": [1 / 2] * 2,
    "flip_and_shift": [1 / 4] * 2 + [1 / 8] * 4,
}
Variants: TypeAlias = Literal[tuple(VARIANTS)]  # pyright: ignore[reportInvalidTypeForm]


def evaluation_outputs(network, inputs, hyperparameters):
    """Build the network for evaluation, with averaged weights if `ema` is set, and return the dict
    of tensors that `evaluate` fetches for a batch. `network` is a function of normalised images and
    `training`; `inputs` are the Inputs.

    Raises Failure if the shape or type of the logits or of a gate is wrong, or if batch norm uses
    the statistics of the batch."""
    labels = inputs.labels
    classes = inputs.classes
    augmentation = hyperparameters.test_time_augmentation
    with tf.name_scope("test"), averaged(hyperparameters.ema):
        registered = len(tf.get_collection(MOVING_AVERAGES))
        logits, plain_logits = averaged_logits(network, inputs.normalised, augmentation)
        if len(tf.get_collection(MOVING_AVERAGES)) > registered:
            raise Failure(
                "with training=False, batch norm uses the statistics of the batch, so predictions "
                "would depend on the other images; pass the network's `training` to batch norm"
            )
        if logits.shape.as_list()[1:] != [classes] or logits.dtype != tf.float32:
            raise Failure(
                f"the network must return logits of shape [batch, {classes}] in float32, got "
                f"{logits.dtype.name} {logits.shape}"
            )
        gates = tf.get_collection(GATES, "test/")
        for gate in gates:
            if gate.values.shape.rank != 2 or gate.values.dtype != tf.float32:
                raise Failure(
                    f"{gate.layer}: a Gate must be float32 [batch, channels], got "
                    f"{gate.values.dtype.name} {gate.values.shape}"
                )
        with tf.name_scope("outputs"):
            return {
                "sums": batch_sums({n: m(logits, labels) for n, m in metrics(classes).items()}),
                "plain_sums": batch_sums({"acc": correct(plain_logits, labels)}),
                "predicted": tf.argmax(logits, axis=-1, output_type=labels.dtype),
                "probabilities": tf.nn.softmax(logits),
                "gates": {
                    # With variants, the first gates are those of the images themselves.
                    gate.layer: tf.math.unsorted_segment_sum(
                        gate.values[: tf.size(labels)], labels, classes
                    )
                    for gate in gates
                },
            }


def averaged_logits(network, images, augmentation):
    """Return the logits of `images`, normalised float32 [batch, height, width, 3], averaged over
    each image and its variants, and those of the images alone, both [batch, classes].

    With the `augmentation` "flip", the variant is the mirror image; with "flip_and_shift", there
    are two more, shifted by one pixel up and left or down and right, and their mirror images
    (Jordan, arXiv 2404.00498, section 3.5)."""
    weights = VARIANTS[augmentation]
    if len(weights) == 1:
        logits = network(images, training=False).model
        return logits, logits
    height, width = images.shape[1:3].as_list()
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    shifted = [padded[:, first : first + height, first : first + width] for first in (2, 0)]
    variants = [variant for x in (images, *shifted) for variant in (x, x[:, :, ::-1])]
    logits = network(tf.concat(variants[: len(weights)], axis=0), training=False).model
    parts = tf.split(logits, len(weights))
    return tf.add_n([w * part for w, part in zip(weights, parts, strict=True)]), parts[0]


def evaluate(session, outputs, inputs, batches):
    """Run the network on `batches`, an iterable of Splits, and return the Evaluation. `outputs` are
    the network's `evaluation_outputs`, `inputs` are its Inputs."""
    results, labels = [], []
    for batch in batches:
        fed = {inputs.images: batch.images, inputs.labels: batch.labels}
        results.append(session.run(outputs, fed))
        labels.append(batch.labels)
    labels = np.concatenate(labels)
    predicted = np.concatenate([result["predicted"] for result in results])
    probability = np.concatenate([result["probabilities"].max(axis=-1) for result in results])
    gates = {}
    for layer in outputs["gates"]:
        total = np.stack([r["gates"][layer] for r in results]).sum(axis=0, dtype=np.float64)
        images = np.bincount(labels, minlength=len(total))
        gates[layer] = total / np.maximum(images, 1)[:, None]
    *totals, images = np.sum([result["sums"] for result in results], axis=0)
    names = metrics(inputs.classes)
    means = {name: total / images for name, total in zip(names, totals, strict=True)}
    plain, images = np.sum([result["plain_sums"] for result in results], axis=0)
    return Evaluation(means, labels, predicted, probability, gates, plain / images)
