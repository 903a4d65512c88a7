"""One training step: gradients over micro-batches and devices, then the update."""

from typing import Any, NamedTuple

from senet.averaging import update_averages
from senet.data.datasets import steps_per_epoch
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.engine.memory import check_training_memory
from senet.engine.micro_batches import sum_over_micro_batches
from senet.engine.text import shortened
from senet.evaluation import batch_sums
from senet.layers import moving_averages
from senet.losses import correct, cross_entropy
from senet.schedules import learning_rate


class Graph(NamedTuple):
    """The parts of a graph that the training loop uses."""

    inputs: Any  # Inputs
    train_step: dict  # {name: scalar}; fetching it performs a training step
    epoch_end: dict  # {name: scalar}, and the "images" for TensorBoard
    test_outputs: dict  # the `evaluation_outputs`

    def feed(self, batch):
        """Return the `feed_dict` of a batch, a Split."""
        return {self.inputs.images: batch.images, self.inputs.labels: batch.labels}


def current_step():
    """Return the number of completed steps, an int64 scalar, read before the update."""
    return tf.identity(tf.train.get_or_create_global_step(), name="step")


def training_step(batch, network, loss, adjusted, optimizer, data, hyperparameters):
    """Return two dicts of tensors. Fetching the first performs a training step and gives the loss,
    the accuracy and the learning rate; the second has the scalars for TensorBoard at the end of an
    epoch. The loss (plain cross-entropy, unless `loss` reports another) and the accuracy are means
    over the epoch so far; `gradient_norm` covers the fed batch only.

    `batch` is a dict of tensors with one row per image, among them "images" and "labels". The other
    arguments are the functions of a script:

    * `loss(batch, network, hyperparameters)` returns the training loss of each image, [batch], and
      the logits. It is called for each micro-batch: every device processes its part of the batch in
      micro-batches of at most `micro_batch_size` images. Batch norm uses each micro-batch's
      statistics; gradients and moving averages are means over all micro-batches, weighted by number
      of images. A third result, {"loss" or "acc": value of each image}, replaces what is reported.
    * `adjusted(gradients, variables, hyperparameters)` returns the gradients that the optimizer
      gets. It is called with those of the mean loss over the whole batch, summed over all
      micro-batches and devices. It runs after the backward pass.
    * `optimizer(learning_rate, hyperparameters)` returns a `tf.train.Optimizer`.

    Raises HyperparameterError if the network does not fit into memory, and Failure if part of the
    graph would have no effect or could not be resumed.
    """
    hp = hyperparameters
    epoch_steps = steps_per_epoch(data.train, hp.batch_size)
    check_training_memory(len(data.train.labels), hp)
    for name, part in batch.items():
        if part.shape.rank == 0 or (part.shape.rank and part.shape[0].value is not None):
            raise Failure(f"batch[{name!r}] must have one row per image, got {part.shape}")
    step = current_step()
    rate = learning_rate(step, epoch_steps, hp)
    update = optimizer(rate, hp)
    for method in "minimize", "compute_gradients", "apply_gradients":
        if getattr(type(update), method) is not getattr(tf.train.Optimizer, method):
            raise Failure(
                f"{type(update).__name__} overrides {method}, which here would have no effect, or "
                f"one per device; change gradients in adjusted()"
            )
    trainable = tf.trainable_variables()
    averages = tf.moving_average_variables()
    sums_so_far = tf.get_variable(
        "epoch_sums", [3], tf.float64, tf.zeros_initializer(), trainable=False
    )
    existing = len(tf.global_variables())
    batch_size = tf.size(batch["labels"])

    def micro_batch(part):
        """Return the contribution of a micro-batch to gradients, moving averages and sums."""
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            losses, logits, *other = loss(part, network, hp)
        labels = part["labels"]
        reported = {"loss": cross_entropy(logits, labels), "acc": correct(logits, labels)}
        reported |= dict(*other)
        if unknown := reported.keys() - {"loss", "acc"}:
            raise Failure(f"loss() may replace only loss and acc, got {unknown.pop()}")
        _check_loss(losses, part, existing)
        share = tf.cast(tf.size(labels) / batch_size, tf.float32)
        gradients = tf.gradients(share * tf.reduce_mean(losses), trainable)
        check_gradients(gradients, trainable)
        new_averages = [share * value for value in moving_averages()]
        return gradients, new_averages, batch_sums(reported)

    def sum_over_devices(strategy, gradients):
        pairs = list(zip(gradients, trainable, strict=True))
        return strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)

    def replica():
        """Perform one device's part of the step. Return its sums and the norm of the gradient."""
        gradients, new_averages, sums = sum_over_micro_batches(
            micro_batch, batch, hp.micro_batch_size, (trainable, averages, sums_so_far)
        )
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = context.merge_call(sum_over_devices, (gradients,))
        # Only now may a variable change: all that the backward pass needs has been read. One
        # operation waits for all gradients: if each part of the update did, the graph of an
        # Inception would have 400,000 edges, and its start would take a quarter longer.
        with tf.control_dependencies([tf.group(*gradients)]):
            changes = list(adjusted(gradients, trainable, hp))
            check_gradients(changes, trainable)
            if context.num_replicas_in_sync > 1:
                # apply_gradients sums over the devices; the sum is exact if only one adds a value.
                first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.float32)
                changes = [first * change for change in changes]
            pairs = zip(changes, trainable, strict=True)
            updates = [update.apply_gradients(pairs, tf.train.get_global_step())]
        updates += [v.assign(value) for v, value in zip(averages, new_averages, strict=True)]
        with tf.control_dependencies([tf.group(*updates)]):
            updates += update_averages(hp.ema, step)
        with tf.control_dependencies(updates):
            sums = tf.identity(sums)
        return sums, global_norm(gradients)

    strategy = tf.distribute.get_strategy()
    with tf.name_scope("train"):
        sums, norms = strategy.run(replica)
        sums = strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
        norm = strategy.experimental_local_results(norms)[0]  # the same on every device
    with tf.name_scope("epoch_sums/"):
        # The first step of an epoch resets the sums.
        same_epoch = tf.cast(step % epoch_steps > 0, tf.float64)
        added = sums_so_far.assign(same_epoch * sums_so_far + sums)
    train_step = {
        "loss": added[0] / added[2],
        "acc": added[1] / added[2],
        "learning_rate": rate,
    }
    epoch_end = {
        "train_loss": sums_so_far[0] / sums_so_far[2],
        "train_acc": sums_so_far[1] / sums_so_far[2],
        "gradient_norm": norm,
    }
    return train_step, epoch_end


def global_norm(tensors):
    """Return the square root of the sum of the squares of all elements of `tensors`, float32."""
    return tf.norm(tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0))


def clipped(gradients, largest):
    """Return `gradients`, scaled down if their norm exceeds `largest` (Pascanu et al., arXiv
    1211.5063, algorithm 1). With 0, they are unchanged."""
    if not largest:
        return gradients
    factor = tf.minimum(1.0, largest / global_norm(gradients))
    return [factor * gradient for gradient in gradients]


def with_weight_decay(gradients, variables, decayed, weight_decay):
    """Return `gradients` plus those of `weight_decay` times half the sum of squares of `decayed`,
    which must be among the `variables`."""
    names = {variable.op.name for variable in decayed}
    if unknown := names - {variable.op.name for variable in variables}:
        raise Failure(f"only trainable variables can decay, got {shortened(sorted(unknown))}")
    return [
        gradient + weight_decay * variable if variable.op.name in names else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def l2_loss(variables, weight_decay):
    """Return the L2 penalty: `weight_decay` times half the sum of squares of `variables`."""
    with tf.name_scope("l2_loss"):
        squares = [tf.nn.l2_loss(variable) for variable in variables]
        return weight_decay * tf.add_n(squares) if squares else tf.constant(0.0)


def check_gradients(gradients, variables):
    """Raise Failure, with the names of the variables, if a gradient is None."""
    pairs = zip(gradients, variables, strict=True)
    if missing := [v.op.name for gradient, v in pairs if gradient is None]:
        raise Failure(
            f"the loss does not depend on {shortened(missing)}; use each variable in the network, "
            f"or create it with trainable=False"
        )


def _check_loss(losses, part, existing):
    """Raise Failure if `losses`, of the micro-batch `part`, are not one per image, or if part of
    their graph would have no effect or could not be resumed. The first `existing` variables were
    created before the loss."""
    # The number of images is not known when the graph is built.
    if losses.shape.rank != 1 or losses.shape[0].value is not None:
        raise Failure(f"loss() must return one loss per image, [batch], got {losses.shape}")
    if new := [v.op.name for v in tf.global_variables()[existing:]]:
        raise Failure(
            f"loss() created {shortened(new)}, which would not be trained; create it in the "
            f"network with tf.get_variable, for both values of `training`"
        )
    if tf.get_collection(tf.GraphKeys.UPDATE_OPS):
        raise Failure(
            "UPDATE_OPS are not run; remove them (Batch_Normalization of senet/layers.py does "
            "not need them)"
        )
    if tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES):
        raise Failure(
            "regularizers of variables are not supported; remove them, and use "
            "with_weight_decay() in adjusted(), or add a term to the loss in loss()"
        )
    needed = _needed_by(losses)
    for name, tensor in part.items():
        # Soft targets in another entry may replace the labels.
        if tensor.op not in needed and name != "labels":
            raise Failure(f"loss() does not use batch[{name!r}]; use it, or remove it")
    if stateful := [op.name for op in needed if _is_random(op)]:
        raise Failure(
            f"{stateful[0]} draws random numbers that differ when a run is resumed; use Dropout() "
            f"of senet/layers.py in the network, and tf.random.stateless_uniform with random_key() "
            f"of senet/augmentation.py for images"
        )


def _is_random(op):
    """Return whether an operation has, or may have, a random state outside the graph."""
    if "PyFunc" in op.type:  # Python code, which may draw random numbers
        return True
    stateful = "Random" in op.type or op.type in ("TruncatedNormal", "Multinomial")
    return stateful and op.op_def.is_stateful


def _needed_by(tensor):
    """Return the operations that a tensor depends on."""
    waiting = [tensor.op]
    needed = set()
    while waiting:
        op = waiting.pop()
        if op not in needed:
            needed.add(op)
            waiting += [x.op for x in op.inputs] + op.control_inputs
    return needed
