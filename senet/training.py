"""One training step: gradients over micro-batches and devices, then the update."""

from senet.compat import tf
from senet.errors import Failure, shortened
from senet.evaluation import batch_sums, loss_and_accuracy
from senet.layers import moving_averages
from senet.losses import cross_entropy
from senet.micro_batches import sum_over_micro_batches


def current_step():
    """Return the number of steps done, an int64 scalar: the graph's only step counter, read once a
    step and before the update."""
    return tf.identity(tf.train.get_or_create_global_step(), name="step")


def training_step(loss, optimizer, decayed, batch, step, epoch_steps, hyperparameters):
    """Return two dicts to fetch: one takes a step when it is fetched, the other has the scalars of
    an epoch's end for TensorBoard, by tag.

    A step minimises the mean of `loss` over the batch plus `weight_decay` times half the squares of
    the variables `decayed`. Loss and accuracy are means of the plain cross-entropy and of correct
    answers over the epoch so far; `gradient_norm` is that of the batch fed with the fetch.

    `loss(images, labels)` returns the training loss of each image, [batch], and the logits. It is
    called for each piece of the batch: every device takes its share, in micro-batches of at most
    `micro_batch_size` images. Batch norm uses the statistics of its piece; gradients and moving
    averages are means over all pieces, weighted by their images. `batch` is the images and labels,
    `step` the `current_step`. Raises Failure if the loss leaves a trained variable without
    a gradient, or if a decayed variable is not trained.
    """
    hp, (images, labels) = hyperparameters, batch
    trainable, averages = tf.trainable_variables(), tf.moving_average_variables()
    names = {variable.op.name for variable in trainable}
    if untrained := [v.op.name for v in decayed if v.op.name not in names]:
        raise Failure(f"weight decay needs trained variables, got {shortened(untrained)}")
    sums_so_far = tf.get_variable(
        "epoch_sums", [3], tf.float64, tf.zeros_initializer(), trainable=False
    )
    strategy = tf.distribute.get_strategy()

    def piece(images, labels):
        """Return what one piece adds to the gradients, the moving averages and the batch's sums."""
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            losses, logits = loss(images, labels)
        share = tf.cast(tf.size(labels) / batch_size, tf.float32)
        gradients = tf.gradients(share * tf.reduce_mean(losses), trainable)
        check_gradients(gradients, trainable)
        moved = [share * value for value in moving_averages()]
        return gradients, moved, batch_sums(cross_entropy(logits, labels), logits, labels)

    def replica():
        """Take one device's part of the step; return the batch's sums and the gradient, which are
        to be summed over the devices."""
        like = trainable, averages, sums_so_far
        gradients, moved, sums = sum_over_micro_batches(
            piece, images, labels, hp.micro_batch_size, like
        )
        decay = hp.weight_decay / strategy.num_replicas_in_sync
        in_decay = {variable.op.name for variable in decayed}
        gradients = [
            gradient + decay * variable if variable.op.name in in_decay else gradient
            for gradient, variable in zip(gradients, trainable, strict=True)
        ]
        pairs = zip(gradients, trainable, strict=True)
        updates = [optimizer.apply_gradients(pairs, tf.train.get_global_step())]
        updates += [v.assign(value) for v, value in zip(averages, moved, strict=True)]
        with tf.control_dependencies(updates):
            sums = tf.identity(sums)
        return sums, tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)

    with tf.name_scope("train"):
        batch_size = tf.size(labels)
        sums, gradient = (
            strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for value in strategy.run(replica)
        )
    with tf.name_scope("epoch_sums/"):
        # The first step of an epoch starts the sums from zero.
        continues = tf.cast(step % epoch_steps > 0, tf.float64)
        added = sums_so_far.assign(continues * sums_so_far + sums)
        loss_so_far, accuracy_so_far = loss_and_accuracy(added)
        train_loss, train_accuracy = loss_and_accuracy(sums_so_far)
    with tf.name_scope("epoch_end"):
        squares = [tf.nn.l2_loss(variable) for variable in decayed]
        epoch_end = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "l2_loss": hp.weight_decay * tf.add_n(squares) if squares else tf.constant(0.0),
            "gradient_norm": tf.norm(gradient),
        }
    return {"loss": loss_so_far, "accuracy": accuracy_so_far}, epoch_end


def check_gradients(gradients, variables):
    """Raise Failure if a gradient is None, naming the variables."""
    pairs = zip(gradients, variables, strict=True)
    if missing := [v.op.name for gradient, v in pairs if gradient is None]:
        raise Failure(
            f"the loss does not depend on {shortened(missing)}; use them in the network, or make "
            f"them with trainable=False"
        )
