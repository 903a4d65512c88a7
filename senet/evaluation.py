"""Sums over batches, from which come the loss and accuracy of a whole split."""

from senet.compat import tf
from senet.datasets import batches


def batch_sums(cross_entropy, logits, labels):
    """What a batch adds to a split's sums, float64 [3]: cross-entropy, correct answers, pictures.

    `cross_entropy` and `labels` are [batch], `logits` [batch, classes]."""
    with tf.name_scope("batch_sums"):
        correct = tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), labels)
        parts = cross_entropy, correct, tf.ones_like(labels)
        return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])


def loss_and_accuracy(sums):
    """The mean cross-entropy and the share of correct answers, from sums over batches."""
    cross_entropy, correct, pictures = sums
    return cross_entropy / pictures, correct / pictures


def epoch_sums(sums, step, epoch_steps):
    """The sums over all batches of the running epoch, `step`'s own `sums` included.

    They are a variable, so that a checkpoint in the middle of an epoch holds them too."""
    total = tf.get_variable("epoch_sums", [3], tf.float64, tf.zeros_initializer(), trainable=False)
    with tf.name_scope("epoch_sums/"):
        goes_on = tf.cast(step % epoch_steps > 0, tf.float64)
        return total.assign(goes_on * total + sums)


def evaluate(session, sums, inputs, split, batch_size):
    """The loss and accuracy of `split`, each picture seen once; `sums` is the tensor of batch sums
    for what `inputs` (a `senet.input.Inputs`) is fed."""
    return loss_and_accuracy(
        sum(session.run(sums, inputs.feed(batch)) for batch in batches(split, batch_size))
    )
