"""Evaluate a network on a whole split, batch by batch."""

from typing import NamedTuple

import numpy as np

from senet.compat import tf
from senet.errors import Failure
from senet.layers import GATES
from senet.losses import cross_entropy


def batch_sums(losses, logits, labels):
    """Return float64 [3] for a batch: its summed cross-entropy, its number of correct predictions
    and its number of images. `losses` and `labels` are [batch] and `logits` is [batch, classes]."""
    with tf.name_scope("batch_sums"):
        correct = tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)
        parts = losses, correct, tf.ones_like(labels)
        return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])


def loss_and_accuracy(sums):
    """Return the mean cross-entropy and the fraction of correct predictions, from `batch_sums`."""
    return sums[0] / sums[2], sums[1] / sums[2]


class Evaluation(NamedTuple):
    """A network's predictions for N images."""

    loss: float  # mean cross-entropy
    accuracy: float  # fraction of correct predictions
    labels: np.ndarray  # [N], the true classes
    predicted: np.ndarray  # [N], the most probable classes
    probability: np.ndarray  # [N], their probabilities
    gates: dict  # {SE layer: the mean gate of each class and channel, [classes, channels]}

    def confusion_matrix(self, classes):
        """Return the number of images of each class (row) that were assigned to each class
        (column), int [classes, classes]."""
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluation_outputs(logits, labels, classes):
    """Return the dict of tensors that `evaluate` fetches for a batch. `logits` is [batch, classes],
    `labels` is int32 [batch]. Call this in the network's name scope: it collects the gates there.

    Raises Failure if the shape or type of the logits or of a gate is wrong."""
    right_shape = logits.shape.rank == 2 and logits.shape[1].value == classes
    if not right_shape or logits.dtype != tf.float32:
        raise Failure(
            f"the network must return logits of shape [batch, {classes}] in float32, got "
            f"{logits.dtype.name} {logits.shape}"
        )
    scope = tf.get_default_graph().get_name_scope()
    gates = tf.get_collection(GATES, scope)
    for gate in gates:
        if gate.values.shape.rank != 2 or gate.values.dtype != tf.float32:
            raise Failure(
                f"{gate.layer}: a Gate must be float32 [batch, channels], got "
                f"{gate.values.dtype.name} {gate.values.shape}"
            )
    with tf.name_scope("outputs"):
        return {
            "sums": batch_sums(cross_entropy(logits, labels), logits, labels),
            "predicted": tf.argmax(logits, axis=-1, output_type=labels.dtype),
            "probability": tf.reduce_max(tf.nn.softmax(logits), axis=-1),
            "gates": {
                gate.layer: tf.math.unsorted_segment_sum(gate.values, labels, classes)
                for gate in gates
            },
        }


def evaluate(session, outputs, inputs, batches):
    """Run the network on `batches`, an iterable of Splits, and return the Evaluation. `outputs` are
    the network's `evaluation_outputs`, `inputs` are its Inputs."""
    results, labels = [], []
    for batch in batches:
        results.append(session.run(outputs, inputs.feed(batch)))
        labels.append(batch.labels)
    labels = np.concatenate(labels)
    predicted, probability = (
        np.concatenate([result[name] for result in results])
        for name in ("predicted", "probability")
    )
    gates = {}
    for layer in outputs["gates"]:
        total = np.stack([r["gates"][layer] for r in results]).sum(axis=0, dtype=np.float64)
        images = np.bincount(labels, minlength=len(total))
        gates[layer] = total / np.maximum(images, 1)[:, None]
    loss, accuracy = loss_and_accuracy(sum(result["sums"] for result in results))
    return Evaluation(loss, accuracy, labels, predicted, probability, gates)
