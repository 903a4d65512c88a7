"""One training step: gradients over micro-batches and devices, then the update."""

from senet.data.datasets import steps_per_epoch
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.engine.memory import check_training_memory
from senet.engine.micro_batches import check_micro_batches, sum_over_micro_batches
from senet.engine.text import shortened
from senet.evaluation import batch_sums, loss_and_accuracy
from senet.layers import moving_averages
from senet.losses import cross_entropy


def current_step():
    """Return the number of completed steps, an int64 scalar, read before the update."""
    return tf.identity(tf.train.get_or_create_global_step(), name="step")


def training_step(loss, optimizer, decayed, batch, step, data, hyperparameters):
    """Return two dicts of tensors. Fetching the first performs a training step and gives the loss
    and the accuracy; the second has the scalars for TensorBoard at the end of an epoch, by tag.

    The objective is the mean of `loss` over the batch, plus `weight_decay` times half the sum of
    squares of the variables `decayed`. The returned loss (plain cross-entropy, without smoothing or
    decay) and accuracy are means over the epoch so far; `gradient_norm` covers the fed batch only.

    `loss(images, labels)` returns the training loss of each image, [batch], and the logits. It is
    called for each micro-batch: every device processes its part of the batch in micro-batches of at
    most `micro_batch_size` images. Batch norm uses each micro-batch's statistics; gradients and
    moving averages are means over all micro-batches, weighted by number of images. `batch` is
    (images, labels), `step` is the `current_step`, `data` is the Dataset.

    Raises HyperparameterError if the network does not fit into memory, or if a device or a
    micro-batch would get too few images. Raises Failure if there is a trainable variable that the
    loss does not depend on, if a decayed variable is not trainable, if the loss does not have the
    shape [batch] or creates variables, or if there are UPDATE_OPS or REGULARIZATION_LOSSES, which
    nothing adds to the loss.
    """
    hp = hyperparameters
    images, labels = batch
    decayed = list(decayed)
    epoch_steps = steps_per_epoch(data.train, hp.batch_size)
    check_micro_batches(len(data.train.labels), epoch_steps, hp)
    check_training_memory(len(data.train.labels), hp)
    trainable = tf.trainable_variables()
    averages = tf.moving_average_variables()
    names = {variable.op.name for variable in trainable}
    if untrained := [v.op.name for v in decayed if v.op.name not in names]:
        raise Failure(
            f"decayed_variables() must return only trainable variables, got {shortened(untrained)}"
        )
    sums_so_far = tf.get_variable(
        "epoch_sums", [3], tf.float64, tf.zeros_initializer(), trainable=False
    )
    strategy = tf.distribute.get_strategy()
    existing = len(tf.global_variables())

    def micro_batch(images, labels):
        """Return the contribution of a micro-batch to gradients, moving averages and sums."""
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            losses, logits = loss(images, labels)
        # The number of images is not known when the graph is built.
        if losses.shape.rank != 1 or losses.shape[0].value is not None:
            raise Failure(f"loss() must return one loss per image, [batch], got {losses.shape}")
        if new := [v.op.name for v in tf.global_variables()[existing:]]:
            raise Failure(
                f"loss() created {shortened(new)}, which would not be trained; create it in the "
                f"network, for both values of `training`"
            )
        if tf.get_collection(tf.GraphKeys.UPDATE_OPS):
            raise Failure(
                "UPDATE_OPS are not run; remove them (Batch_Normalization of senet/layers.py does "
                "not need them)"
            )
        if tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES):
            raise Failure(
                "regularizers of variables are not supported; remove them, and use "
                "decayed_variables(), or add a term to the loss in loss()"
            )
        share = tf.cast(tf.size(labels) / batch_size, tf.float32)
        gradients = tf.gradients(share * tf.reduce_mean(losses), trainable)
        check_gradients(gradients, trainable)
        new_averages = [share * value for value in moving_averages()]
        return gradients, new_averages, batch_sums(cross_entropy(logits, labels), logits, labels)

    def replica():
        """Perform one device's part of the step. Return its sums and its gradient, to be summed
        over the devices."""
        gradients, new_averages, sums = sum_over_micro_batches(
            micro_batch, images, labels, hp.micro_batch_size, (trainable, averages, sums_so_far)
        )
        decay = hp.weight_decay / strategy.num_replicas_in_sync
        decayed_names = {variable.op.name for variable in decayed}
        gradients = [
            gradient + decay * variable if variable.op.name in decayed_names else gradient
            for gradient, variable in zip(gradients, trainable, strict=True)
        ]
        pairs = zip(gradients, trainable, strict=True)
        updates = [optimizer.apply_gradients(pairs, tf.train.get_global_step())]
        updates += [v.assign(value) for v, value in zip(averages, new_averages, strict=True)]
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
        # The first step of an epoch resets the sums.
        same_epoch = tf.cast(step % epoch_steps > 0, tf.float64)
        added = sums_so_far.assign(same_epoch * sums_so_far + sums)
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
    """Raise Failure, with the names of the variables, if a gradient is None."""
    pairs = zip(gradients, variables, strict=True)
    if missing := [v.op.name for gradient, v in pairs if gradient is None]:
        raise Failure(
            f"the loss does not depend on {shortened(missing)}; use each variable in the network, "
            f"or create it with trainable=False"
        )
