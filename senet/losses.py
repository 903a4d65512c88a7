"""Losses, one value for each image."""

from senet.engine.compat import tf


def cross_entropy(logits, labels, label_smoothing=0.0):
    """Return the cross-entropy of each image, float32 [batch], from `logits` [batch, classes] and
    `labels`, int [batch].

    `label_smoothing` is the fraction of the target that is spread evenly over all classes
    (Inception v3, arXiv 1512.00567, section 7)."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not label_smoothing:
        return loss
    uniform = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform
