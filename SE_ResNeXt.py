"""SE-ResNeXt-29 on CIFAR-10: ResNeXt (arXiv 1611.05431, section 5.3) with a squeeze-and-excitation
block (arXiv 1709.01507) on every residual branch."""

import functools
import math
import sys
from dataclasses import dataclass
from typing import ClassVar

from senet.augmentation import augment
from senet.cli.command_line import run_command
from senet.cli.commands import commands_for
from senet.compat import tf
from senet.data.datasets import batches, epoch_order, load_dataset, steps_per_epoch
from senet.data.inputs import picture_inputs
from senet.devices import compute_type
from senet.errors import HyperparameterError
from senet.evaluation import EpochMeans, batch_sums, evaluate, evaluation_outputs, gradient_norm
from senet.hyperparameters import above, at_least, between, check_fields, device_names, path
from senet.layers import (
    Fully_connected,
    Global_Average_Pooling,
    Relu,
    Squeeze_excitation_layer,
    conv_bn,
    moving_averages,
)
from senet.micro_batches import sum_over_micro_batches
from senet.run.cluster import Cluster
from senet.run.run import Run

# ---------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class Hyperparameters:
    # the network
    cardinality: at_least(1) = 8  # paths of a block
    depth: at_least(1) = 64  # channels of one path in the first stage; doubles with each stage
    blocks: at_least(1) = 3  # blocks of each of the three stages
    reduction_ratio: at_least(0) = 16  # of the SE blocks' bottleneck; 0: a network without them
    padding: at_least(0) = 32  # zeros on each side of a picture: 32 makes 32x32 into 96x96

    # training
    weight_decay: at_least(0.0) = 5e-4  # times half the squares of all trained values
    momentum: between(0.0, 1.0) = 0.9  # Nesterov's
    init_learning_rate: above(0.0) = 0.1  # divided by 10 at 30, 60 and 90 % of the epochs
    batch_size: at_least(1) = 128  # pictures a step, at most
    total_epochs: between(1, 10**6) = 100  # passes over the training set
    seed: between(0, 2**32) = 0  # of initial weights, order of the pictures and augmentation

    # surroundings
    dataset: path = "cifar10"  # or shapes, drawn here; or a folder of train/<class>/, test/<class>/
    image_size: at_least(8) = 32  # side of a picture; a folder's pictures are resized to it
    data_dir: path = "data"  # where CIFAR-10 is, or is downloaded to
    run_dir: path = "runs/SE_ResNeXt"  # checkpoints and logs of the run
    save_minutes: above(0.0) = 10.0  # between checkpoints, besides the one of each epoch

    # devices, memory and speed
    devices: device_names = "all"  # GPUs, or some: "0,1"; without any, "cpu:0,cpu:1" makes two
    micro_batch_size: at_least(0) = 8  # pictures in memory at once; 0: all of a batch
    mixed_precision: bool = True  # compute in bfloat16 where the device does, else in float32
    xla: bool = False  # on a GPU, let XLA compile what it can: a slow start; not measured yet
    allow_soft_placement: bool = True  # let TensorFlow move what a GPU cannot do to the CPU

    # for a first run without a GPU
    SMALLER: ClassVar[str] = "--padding=0 --depth=8 --micro_batch_size=0 --total_epochs=3"

    def __post_init__(self):
        check_fields(self)
        if self.reduction_ratio > 4 * self.depth:
            raise HyperparameterError(
                f"reduction_ratio={self.reduction_ratio}: the first stage has {4 * self.depth} "
                f"channels (4 x depth), reduction_ratio takes 0 to {4 * self.depth}"
            )


# ------------------------------------------------------------------------------------ network


class SE_ResNeXt:
    """`model` is the logits, float32 [batch, classes], of `x`, float32 [batch, height, width, 3]
    already normalised. `training` is a Python bool: whether batch norm uses the batch."""

    def __init__(self, x, training, hyperparameters, classes=10):
        self.training = training
        self.hyperparameters = hyperparameters
        self.conv_bn = functools.partial(conv_bn, training=training)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        padding, depth = [self.hyperparameters.padding] * 2, self.hyperparameters.depth
        x = tf.cast(x, compute_type(self.hyperparameters.mixed_precision))
        x = tf.pad(x, [[0, 0], padding, padding, [0, 0]])
        # Map sizes for 96x96.
        x = Relu(self.conv_bn(x, 64, 3, layer_name="stem"))
        # 96x96x64
        x = self.stage(x, depth, stride=1, layer_name="stage1")
        # 96x96x256
        x = self.stage(x, 2 * depth, stride=2, layer_name="stage2")
        # 48x48x512
        x = self.stage(x, 4 * depth, stride=2, layer_name="stage3")
        # 24x24x1024
        x = Global_Average_Pooling(x)
        return Fully_connected(x, classes, layer_name="classifier")

    def stage(self, x, depth, stride, layer_name):
        """A row of blocks, the first of which may halve the map."""
        with tf.variable_scope(layer_name):
            for number in range(1, self.hyperparameters.blocks + 1):
                x = self.block(x, depth, stride if number == 1 else 1, layer_name=f"block{number}")
        return x

    def block(self, x, depth, stride, layer_name):
        """relu(shortcut + SE(branch)), with 4 * depth channels."""
        # All paths at once: one wide 1x1, then one 3x3 in `groups` groups (figure 3c).
        groups, out_dim = self.hyperparameters.cardinality, 4 * depth
        width = groups * depth
        with tf.variable_scope(layer_name):
            branch = Relu(self.conv_bn(x, width, 1, layer_name="reduce"))
            branch = self.conv_bn(branch, width, 3, stride, groups=groups, layer_name="paths")
            branch = self.SE(self.conv_bn(Relu(branch), out_dim, 1, layer_name="merge"))
            if stride != 1 or x.shape[-1].value != out_dim:
                x = self.conv_bn(x, out_dim, 1, stride, layer_name="shortcut")
            return Relu(x + branch)

    def SE(self, x):
        """`x` with its channels gated, unless the network is one without SE blocks."""
        ratio = self.hyperparameters.reduction_ratio
        return Squeeze_excitation_layer(x, x.shape[-1].value, ratio, "SE") if ratio else x


# -------------------------------------------------------------------------- loss and schedule


def learning_rate_schedule(step, epoch_steps, hyperparameters):
    """The learning rate of `step`, an int64 scalar from 0: a linear warm-up over the first 5 % of
    all steps (one epoch at most), then divided by 10 at 30, 60 and 90 % of them."""
    hp, total_steps = hyperparameters, hyperparameters.total_epochs * epoch_steps
    rates = [hp.init_learning_rate / 10**drops for drops in range(4)]
    last_steps = [math.ceil(share * total_steps) - 1 for share in (0.3, 0.6, 0.9)]
    warm_up = min(math.ceil(0.05 * total_steps), epoch_steps)
    with tf.name_scope("learning_rate"):
        rise = tf.minimum(tf.cast(step + 1, tf.float32) / warm_up, 1.0)
        return rise * tf.train.piecewise_constant(step, last_steps, rates)


def build_graph(data, epoch_steps, hyperparameters):
    """The Inputs, and what is fetched by a training step, at the end of an epoch, and by a batch
    of the test set: three dicts."""
    hp, classes = hyperparameters, len(data.label_names)
    network = functools.partial(SE_ResNeXt, hyperparameters=hp, classes=classes)
    tf.set_random_seed(hp.seed)
    global_step = tf.train.get_or_create_global_step()
    inputs = picture_inputs(data)
    means = EpochMeans()

    with tf.name_scope("test"):
        logits = network(inputs.normalised, training=False).model
        test_batch = evaluation_outputs(logits, inputs.labels)
    trainable, averages = tf.trainable_variables(), tf.moving_average_variables()

    def l2_loss():
        with tf.name_scope("l2_loss"):
            return hp.weight_decay * tf.add_n([tf.nn.l2_loss(v) for v in trainable])

    def tower(images, labels):
        """What a micro-batch adds to the gradients, the moving averages and the sums of a batch."""
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            logits = network(images, training=True).model
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        share = tf.cast(tf.size(labels) / tf.size(inputs.labels), tf.float32)
        gradients = tf.gradients(share * tf.reduce_mean(cross_entropy), trainable)
        values = [share * value for value in moving_averages()]
        return gradients, values, batch_sums(cross_entropy, logits, labels)

    x = augment(inputs.normalised, hp.seed, inputs.step)
    learning_rate = learning_rate_schedule(inputs.step, epoch_steps, hp)
    optimizer = tf.train.MomentumOptimizer(learning_rate, hp.momentum, use_nesterov=True)
    strategy = tf.distribute.get_strategy()

    def replica_step():
        """A device's part of a step. Gradients and moving averages are summed over all devices."""
        like = trainable, averages, means.total
        gradients, values, sums = sum_over_micro_batches(
            tower, x, inputs.labels, hp.micro_batch_size, like
        )
        l2_gradients = tf.gradients(l2_loss() / strategy.num_replicas_in_sync, trainable)
        gradients = map(tf.add, gradients, l2_gradients)
        minimize = optimizer.apply_gradients(zip(gradients, trainable, strict=True), global_step)
        move = [v.assign(value) for v, value in zip(averages, values, strict=True)]
        with tf.control_dependencies([minimize, *move]):
            return tf.identity(sums)

    with tf.name_scope("train"):
        sums = strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica_step), axis=None)
    add, (loss, accuracy) = means.add(sums, inputs.step, epoch_steps)
    train_step = {
        "train": add,
        "loss": loss,
        "accuracy": accuracy,
        "learning_rate": learning_rate,
    }
    with tf.name_scope("epoch_end"):
        epoch_end = {
            "train_loss": means.kept[0],
            "train_accuracy": means.kept[1],
            "l2_loss": l2_loss(),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm(optimizer, hp.momentum),
            "augmented": inputs.pictures(x),
        }
    return inputs, train_step, epoch_end, test_batch


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    hp = hyperparameters
    cluster = Cluster(hp)
    data = load_dataset(hp.dataset, hp.data_dir, hp.image_size)
    epoch_steps = steps_per_epoch(data.train, hp.batch_size)
    with tf.Graph().as_default(), cluster, Run(hp, cluster) as run:
        inputs, train_step, epoch_end, test = build_graph(data, epoch_steps, hp)
        with cluster.session() as session:
            step, epochs_done = run.start(session, "SE_ResNeXt", data, inputs, test)
            for epoch in range(epochs_done + 1, hp.total_epochs + 1):
                # Of an epoch that was stopped in its middle, the first steps are done.
                first = step - (epoch - 1) * epoch_steps
                order = epoch_order(data.train, hp.seed, epoch)
                todo = batches(data.train, hp.batch_size, order, first)
                for batch in run.train_batches(todo, epoch, first):
                    result = session.run(train_step, inputs.feed(batch, step))
                    step += 1
                    run.show(step, result)
                values = session.run(epoch_end, inputs.feed(data.train.first(64), step - 1))
                todo = run.test_batches(batches(data.test, hp.micro_batch_size or hp.batch_size))
                run.end_epoch(epoch, values, evaluate(session, test, inputs, todo))
            run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    commands = {"train": train, **commands_for(SE_ResNeXt)}
    return run_command(commands, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
