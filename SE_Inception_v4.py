"""SE-Inception-v4 on CIFAR-10: Inception-v4 (arXiv 1602.07261, figures 3 to 9) with a
squeeze-and-excitation block (arXiv 1709.01507, figure 2) on the output of every module."""

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
    Avg_pooling,
    Concatenation,
    Dropout,
    Fully_connected,
    Global_Average_Pooling,
    Max_pooling,
    Squeeze_excitation_layer,
    chain,
    moving_averages,
)
from senet.micro_batches import sum_over_micro_batches
from senet.run.cluster import Cluster
from senet.run.run import Run

# ---------------------------------------------------------------------------- hyperparameters


@dataclass(frozen=True)
class Hyperparameters:
    # the network
    reduction_ratio: at_least(0) = 16  # of the SE blocks' bottleneck; 0: a network without them
    padding: at_least(0) = 32  # zeros on each side of a picture: 32 makes 32x32 into 96x96

    # training
    weight_decay: at_least(0.0) = 5e-4  # times half the squares of all trained values
    momentum: between(0.0, 1.0) = 0.9  # Nesterov's
    init_learning_rate: above(0.0) = 0.1  # divided by 10 at 30, 60 and 90 % of the epochs
    batch_size: at_least(2) = 128  # pictures a step, at most; batch norm of 1x1 maps needs two
    total_epochs: between(1, 10**6) = 100  # passes over the training set
    seed: between(0, 2**32) = 0  # of weights, order of the pictures, augmentation and dropout

    # surroundings
    dataset: path = "cifar10"  # or shapes, drawn here; or a folder of train/<class>/, test/<class>/
    image_size: at_least(8) = 32  # side of a picture; a folder's pictures are resized to it
    data_dir: path = "data"  # where CIFAR-10 is, or is downloaded to
    run_dir: path = "runs/SE_Inception_v4"  # checkpoints and logs of the run
    save_minutes: above(0.0) = 10.0  # between checkpoints, besides the one of each epoch

    # devices, memory and speed
    devices: device_names = "all"  # GPUs, or some: "0,1"; without any, "cpu:0,cpu:1" makes two
    micro_batch_size: at_least(0) = 0  # pictures in memory at once; 0: all of a batch
    mixed_precision: bool = True  # compute in bfloat16 where the device does, else in float32
    xla: bool = False  # on a GPU, let XLA compile what it can: a slow start; not measured yet
    allow_soft_placement: bool = True  # let TensorFlow move what a GPU cannot do to the CPU

    # for a first run without a GPU
    SMALLER: ClassVar[str] = "--padding=22 --total_epochs=3"

    def __post_init__(self):
        check_fields(self)
        if self.reduction_ratio > 384:
            raise HyperparameterError(
                f"reduction_ratio={self.reduction_ratio}: the first stage has 384 channels, "
                f"reduction_ratio takes 0 to 384"
            )
        if self.micro_batch_size in (1, 2):  # of 2, a batch of 3 would be 1 and 2
            raise HyperparameterError(
                f"micro_batch_size={self.micro_batch_size}: batch norm of 1x1 maps needs two "
                f"pictures; micro_batch_size takes 0, or 3 or more"
            )
        side = self.image_size + 2 * self.padding
        if side < 75:
            raise HyperparameterError(
                f"padding={self.padding}: makes pictures of {side} pixels a side, this network "
                f"needs 75 at least; padding takes {(76 - self.image_size) // 2} or more"
            )


# ------------------------------------------------------------------------------------ network


class SE_Inception_v4:
    """`model` is the logits, float32 [batch, classes], of `x`, float32 [batch, height, width, 3]
    already normalised. `training` is a Python bool: whether batch norm uses the batch and dropout
    is on."""

    def __init__(self, x, training, hyperparameters, classes=10):
        self.training = training
        self.hyperparameters = hyperparameters
        self.chain = functools.partial(chain, training=training)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        padding = [self.hyperparameters.padding] * 2
        x = tf.cast(x, compute_type(self.hyperparameters.mixed_precision))
        x = tf.pad(x, [[0, 0], padding, padding, [0, 0]])
        # Map sizes for 96x96.
        x = self.Stem(x)
        # 9x9x384
        for number in range(1, 5):
            x = self.Inception_A(x, f"Inception_A{number}")
        x = self.Reduction_A(x, "Reduction_A")
        # 4x4x1024
        for number in range(1, 8):
            x = self.Inception_B(x, f"Inception_B{number}")
        x = self.Reduction_B(x, "Reduction_B")
        # 1x1x1536
        for number in range(1, 4):
            x = self.Inception_C(x, f"Inception_C{number}")
        x = Global_Average_Pooling(x)
        x = Dropout(x, rate=0.2, training=self.training)
        return Fully_connected(x, classes, layer_name="classifier")

    def Stem(self, x):
        """Figure 3."""
        with tf.variable_scope("Stem"):
            x = self.chain(x, (32, [3, 3], 2, "VALID"), (32, [3, 3], 1, "VALID"), (64, [3, 3]))
            # 45x45
            x = Concatenation([Max_pooling(x), self.chain(x, (96, [3, 3], 2, "VALID"))])
            # 22x22
            x = Concatenation(
                [
                    self.chain(x, (64, [1, 1]), (96, [3, 3], 1, "VALID")),
                    self.chain(
                        x, (64, [1, 1]), (64, [7, 1]), (64, [1, 7]), (96, [3, 3], 1, "VALID")
                    ),
                ]
            )
            # 20x20
            return Concatenation([self.chain(x, (192, [3, 3], 2, "VALID")), Max_pooling(x)])

    def Inception_A(self, x, layer_name):
        """Figure 4."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(Avg_pooling(x), (96, [1, 1])),
                self.chain(x, (96, [1, 1])),
                self.chain(x, (64, [1, 1]), (96, [3, 3])),
                self.chain(x, (64, [1, 1]), (96, [3, 3]), (96, [3, 3])),
            ]
            return self.SE(Concatenation(branches))

    def Reduction_A(self, x, layer_name):
        """Figure 7 with k, l, m, n = 192, 224, 256, 384 (table 1)."""
        with tf.variable_scope(layer_name):
            branches = [
                Max_pooling(x),
                self.chain(x, (384, [3, 3], 2, "VALID")),
                self.chain(x, (192, [1, 1]), (224, [3, 3]), (256, [3, 3], 2, "VALID")),
            ]
            return self.SE(Concatenation(branches))

    def Inception_B(self, x, layer_name):
        """Figure 5. It prints 1x7 twice in the third branch; two of them would never look up or
        down, and the authors' own code has 1x7, then 7x1."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(Avg_pooling(x), (128, [1, 1])),
                self.chain(x, (384, [1, 1])),
                self.chain(x, (192, [1, 1]), (224, [1, 7]), (256, [7, 1])),
                self.chain(
                    x, (192, [1, 1]), (192, [1, 7]), (224, [7, 1]), (224, [1, 7]), (256, [7, 1])
                ),
            ]
            return self.SE(Concatenation(branches))

    def Reduction_B(self, x, layer_name):
        """Figure 8."""
        with tf.variable_scope(layer_name):
            branches = [
                Max_pooling(x),
                self.chain(x, (192, [1, 1]), (192, [3, 3], 2, "VALID")),
                self.chain(
                    x, (256, [1, 1]), (256, [1, 7]), (320, [7, 1]), (320, [3, 3], 2, "VALID")
                ),
            ]
            return self.SE(Concatenation(branches))

    def Inception_C(self, x, layer_name):
        """Figure 6: two of the branches fork at their ends."""
        with tf.variable_scope(layer_name):
            short = self.chain(x, (384, [1, 1]))
            long = self.chain(x, (384, [1, 1]), (448, [1, 3]), (512, [3, 1]))
            branches = [
                self.chain(Avg_pooling(x), (256, [1, 1])),
                self.chain(x, (256, [1, 1])),
                self.chain(short, (256, [1, 3])),
                self.chain(short, (256, [3, 1])),
                self.chain(long, (256, [1, 3])),
                self.chain(long, (256, [3, 1])),
            ]
            return self.SE(Concatenation(branches))

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
    network = functools.partial(SE_Inception_v4, hyperparameters=hp, classes=classes)
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
            step, epochs_done = run.start(session, "SE_Inception_v4", data, inputs, test)
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
    commands = {"train": train, **commands_for(SE_Inception_v4)}
    return run_command(commands, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
