"""SE-ResNeXt-29 on CIFAR-10: ResNeXt (arXiv 1611.05431, section 5.3) with a squeeze-and-excitation
block (arXiv 1709.01507) on every residual branch."""

import functools
import sys
from dataclasses import dataclass
from typing import ClassVar

from senet.augmentation import shift_and_flip
from senet.cli.command_line import run_command
from senet.cli.commands import commands_for
from senet.compat import tf
from senet.data.datasets import load_dataset, steps_per_epoch
from senet.data.inputs import image_inputs
from senet.devices import compute_type
from senet.errors import HyperparameterError
from senet.evaluation import evaluate, evaluation_outputs
from senet.hyperparameters import above, at_least, between, check_fields, device_names, path
from senet.layers import (
    Fully_connected,
    Global_Average_Pooling,
    Relu,
    Squeeze_excitation_layer,
    conv_bn,
)
from senet.losses import cross_entropy
from senet.run.run import Run
from senet.schedules import learning_rate
from senet.training import current_step, training_step

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
    schedule: path = "steps"
    label_smoothing: at_least(0.0) = 0.0
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


# ---------------------------------------------------------------------------- loss and update


def loss(images, labels, network, hyperparameters):
    """Return the training loss of each image, [batch], and the logits."""
    logits = network(images, training=True).model
    return cross_entropy(logits, labels, hyperparameters.label_smoothing), logits


def decayed_variables():
    """Return the variables that `weight_decay` applies to: all trained ones, as in the papers."""
    return tf.trainable_variables()


def optimizer(learning_rate, hyperparameters):
    """Return the optimizer: SGD with Nesterov momentum."""
    return tf.train.MomentumOptimizer(learning_rate, hyperparameters.momentum, use_nesterov=True)


def build_graph(data, hyperparameters):
    """Return the Inputs, and three dicts to fetch: a training step, the end of an epoch, and a
    batch of the test set."""
    hp = hyperparameters
    tf.set_random_seed(hp.seed)
    step, epoch_steps = current_step(), steps_per_epoch(data.train, hp.batch_size)
    inputs = image_inputs(data)
    network = functools.partial(SE_ResNeXt, hyperparameters=hp, classes=len(data.label_names))

    with tf.name_scope("test"):
        logits = network(inputs.normalised, training=False).model
        test_batch = evaluation_outputs(logits, inputs.labels)

    images = shift_and_flip(inputs.normalised, hp.seed, step)
    rate = learning_rate(step, epoch_steps, hp)
    train_step, epoch_end = training_step(
        functools.partial(loss, network=network, hyperparameters=hp),
        optimizer(rate, hp),
        decayed_variables(),
        images,
        inputs.labels,
        step,
        epoch_steps,
        hp,
    )
    # Scalars of these two go to TensorBoard.
    train_step = {**train_step, "learning_rate": rate}
    epoch_end = {**epoch_end, "images": inputs.to_uint8(images)}
    return inputs, train_step, epoch_end, test_batch


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    hp = hyperparameters
    run = Run(hp, SE_ResNeXt)
    data = load_dataset(hp.dataset, hp.data_dir, hp.image_size)
    with run:
        inputs, train_step, epoch_end, test_batch = build_graph(data, hp)
        session = run.start(data, inputs, test_batch)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.show(session.run(train_step, inputs.feed(batch)))
            values = session.run(epoch_end, inputs.feed(data.train.first(hp.batch_size)))
            tested = evaluate(session, test_batch, inputs, run.test_batches())
            run.end_epoch(epoch, values, tested)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    commands = {"train": train, **commands_for(SE_ResNeXt)}
    return run_command(commands, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
