"""Loss, accuracy and what else is to be said of a whole split, from its batches."""

from typing import NamedTuple

import numpy as np

from senet.compat import tf
from senet.layers import GATES


def batch_sums(cross_entropy, logits, labels):
    """What a batch adds to a split's sums, float64 [3]: cross-entropy, correct answers, pictures.

    `cross_entropy` and `labels` are [batch], `logits` [batch, classes]."""
    with tf.name_scope("batch_sums"):
        correct = tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)
        parts = cross_entropy, correct, tf.ones_like(labels)
        return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])


def loss_and_accuracy(sums):
    """The mean cross-entropy and the share of correct answers, from sums over batches."""
    return sums[0] / sums[2], sums[1] / sums[2]


class EpochMeans:
    """Loss and accuracy over the batches of the running epoch. Their sums, `total`, are a variable:
    a checkpoint in the middle of an epoch has them. `kept` are the two means so far."""

    def __init__(self):
        self.total = tf.get_variable(
            "epoch_sums", [3], tf.float64, tf.zeros_initializer(), trainable=False
        )
        with tf.name_scope("epoch_sums/"):
            self.kept = loss_and_accuracy(self.total)

    def add(self, sums, step, epoch_steps):
        """The operation that adds a step's batch sums, and the two means after it. The first step
        of an epoch starts anew."""
        with tf.name_scope("epoch_sums/"):
            goes_on = tf.cast(step % epoch_steps > 0, tf.float64)
            update = self.total.assign(goes_on * self.total + sums)
            return update, loss_and_accuracy(update)


def gradient_norm(optimizer, momentum):
    """The norm of the gradients' running mean, which a tf.train.MomentumOptimizer keeps anyway: no
    step has to compute it, and it is the same on one device and on many."""
    momenta = [optimizer.get_slot(v, "momentum") for v in tf.trainable_variables()]
    return (1 - momentum) * tf.linalg.global_norm(momenta)


class Evaluation(NamedTuple):
    """What a network makes of N pictures."""

    loss: float  # mean cross-entropy
    accuracy: float  # share of correct answers
    labels: np.ndarray  # [N], the true classes
    predicted: np.ndarray  # [N], the most probable ones
    probability: np.ndarray  # [N], their probabilities
    gates: dict  # {SE block: the mean gate of each class and channel, [classes, channels]}

    def confusion_matrix(self, classes):
        """How many pictures of a class (row) are taken for each (column), int [classes, classes].
        Summed over a row: the pictures of the class."""
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def evaluation_outputs(logits, labels):
    """What `evaluate` fetches for a batch of pictures, by name: to be called in the name scope in
    which the network was built. `logits` is [batch, classes], `labels` int32 [batch]."""
    classes = logits.shape[-1].value
    scope = tf.get_default_graph().get_name_scope()
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    with tf.name_scope("outputs"):
        return {
            "sums": batch_sums(cross_entropy, logits, labels),
            "predicted": tf.argmax(logits, axis=-1, output_type=labels.dtype),
            "probability": tf.reduce_max(tf.nn.softmax(logits), axis=-1),
            "gates": {
                gate.op.name.removeprefix(f"{scope}/").rpartition("/SE/")[0]: (
                    tf.math.unsorted_segment_sum(gate, labels, classes)
                )
                for gate in tf.get_collection(GATES, scope)
            },
        }


def evaluate(session, outputs, inputs, todo):
    """The Evaluation of the batches `todo`; `outputs` are the `evaluation_outputs` of what `inputs`
    (a `senet.data.inputs.Inputs`) is fed."""
    results, labels = [], []
    for batch in todo:
        results.append(session.run(outputs, inputs.feed(batch)))
        labels.append(batch.labels)
    labels = np.concatenate(labels)
    predicted, probability = (
        np.concatenate([result[name] for result in results])
        for name in ("predicted", "probability")
    )
    gates = {}
    for block in outputs["gates"]:
        total = sum(result["gates"][block].astype(np.float64) for result in results)
        pictures = np.bincount(labels, minlength=len(total))
        gates[block] = total / np.maximum(pictures, 1)[:, None]
    loss, accuracy = loss_and_accuracy(sum(result["sums"] for result in results))
    return Evaluation(loss, accuracy, labels, predicted, probability, gates)
