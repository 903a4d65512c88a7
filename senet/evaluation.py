"""Sums over batches, from which come the loss and accuracy of a whole split."""

from senet.compat import tf


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


def evaluate(session, sums, inputs, todo):
    """The loss and accuracy over the batches `todo`; `sums` is the tensor of batch sums for what
    `inputs` (a `senet.input.Inputs`) is fed."""
    return loss_and_accuracy(sum(session.run(sums, inputs.feed(batch)) for batch in todo))
