"""Losses and metrics, one value for each image.

`logits` are float32 [batch, classes], `labels` are int [batch]. To add a metric, write a function
of (logits, labels) and add it to `metrics`: it then is in the rows, in TensorBoard, in `evaluate`
and on the model card.
"""

from senet.engine.compat import tf


def cross_entropy(logits, labels, label_smoothing=0.0):
    """Return the cross-entropy of each image, float32 [batch].

    `label_smoothing` is the fraction of the target that is spread evenly over all classes
    (Inception v3, arXiv 1512.00567, section 7)."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not label_smoothing:
        return loss
    uniform = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def batch_loss(logits, batch, label_smoothing=0.0):
    """Return the cross-entropy of each image of a batch, a dict with "labels", float32 [batch]. For
    images mixed by `mixup`, it is the weighted mean for both labels."""
    loss = cross_entropy(logits, batch["labels"], label_smoothing)
    if "other_labels" not in batch:
        return loss
    other = cross_entropy(logits, batch["other_labels"], label_smoothing)
    return batch["weights"] * loss + (1 - batch["weights"]) * other


def correct(logits, labels):
    """Return whether the most probable class of each image is its label, bool [batch]."""
    return tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)


def in_top5(logits, labels):
    """Return whether the label of each image is one of the five most probable classes, bool
    [batch]."""
    return tf.math.in_top_k(logits, labels, 5)


def metrics(classes):
    """Return {name: function} of the metrics of the test set for a number of `classes`. The loss
    and the accuracy are measured in training too."""
    return {"loss": cross_entropy, "acc": correct} | ({"top5": in_top5} if classes >= 20 else {})
