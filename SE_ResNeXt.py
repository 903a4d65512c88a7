"""SE-ResNeXt-29 on CIFAR-10: ResNeXt (arXiv 1611.05431, section 5.3) with a squeeze-and-excitation
block (arXiv 1709.01507) on every residual branch."""

import functools
import sys
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from senet.augmentation import SHIFT_PADDINGS, cutout, shift_and_flip, whole_pixels
from senet.cli.command_line import run_command
from senet.compat import tf
from senet.data.datasets import load_dataset, steps_per_epoch
from senet.data.inputs import image_inputs
from senet.devices import compute_dtype
from senet.errors import HyperparameterError
from senet.evaluation import evaluate, evaluation_outputs
from senet.hyperparameters import MAY_CHANGE, MAY_GROW, NOT_EMPTY, RunHyperparameters, one_of
from senet.layers import (
    CLASSIFIER,
    Fully_connected,
    Global_Average_Pooling,
    Max_pooling,
    Relu,
    Squeeze_excitation_layer,
    conv_bn,
)
from senet.losses import cross_entropy
from senet.memory import check_training_memory
from senet.micro_batches import check_micro_batches
from senet.run.run import Run
from senet.schedules import SCHEDULES, learning_rate
from senet.training import current_step, training_step
from senet.whitening import whitening_filters, whitening_layer

# ---------------------------------------------------------------------------- hyperparameters

# {downsampling: number of filters, kernel size and stride of a whitening stem}. At full resolution,
# 24 filters are enough: both signs of the 12 directions with the largest variances.
WHITENING_STEM = {"stride": (96, 4, 2), "max_pool": (24, 3, 1)}


@dataclass(frozen=True)
class Hyperparameters(RunHyperparameters):
    run_dir = "runs/SE_ResNeXt"

    # network
    cardinality: Annotated[int, Interval(ge=1, le=256)] = 8  # paths per block
    depth: Annotated[int, Interval(ge=1, le=1024)] = 64  # channels per path in the first stage
    blocks: Annotated[int, Interval(ge=1, le=32)] = 3  # blocks per stage; there are three stages
    bottleneck: bool = True  # False: two 3x3 convolutions per block, without groups
    stem: Annotated[str, one_of("conv", "whitening")] = "conv"  # whitening: frozen filters
    downsampling: Annotated[str, one_of(*WHITENING_STEM)] = "stride"  # by stride or max pooling
    reduction_ratio: Annotated[int, Interval(ge=0, le=4096)] = 16  # in SE blocks; 0: no SE blocks
    padding: Annotated[int, Interval(ge=0, le=512)] = 32  # zeros on each side: 32x32 becomes 96x96

    # training
    weight_decay: Annotated[float, Ge(0)] = 5e-4  # L2 penalty on decayed_variables()
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9  # Nesterov momentum
    init_learning_rate: Annotated[float, Gt(0)] = 0.1  # peak learning rate
    schedule: Annotated[str, one_of(*SCHEDULES)] = "steps"  # learning-rate schedule
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # training loss only
    max_shift: Annotated[float, Interval(ge=0, le=0.5)] = 0.125  # largest shift (fraction of side)
    shift_padding: Annotated[str, one_of(*SHIFT_PADDINGS)] = "zeros"  # beyond the edges
    cutout: Annotated[float, Interval(ge=0, le=1)] = 0.0  # zeroed square (fraction of side)
    batch_size: Annotated[int, Interval(ge=1, le=2**20)] = 128  # images per step
    total_epochs: Annotated[int, Interval(ge=1, le=10**6), MAY_GROW] = 100  # raise to extend a run
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0  # weights, shuffling, augmentation

    # data, memory and speed
    dataset: Annotated[str, NOT_EMPTY, MAY_CHANGE] = "cifar10"  # cifar10, cifar100, shapes, FOLDER
    micro_batch_size: Annotated[int, Interval(ge=0, le=2**20), MAY_CHANGE] = 8  # 0: whole batch
    mixed_precision: bool = True  # use bfloat16 if the device supports it
    allow_soft_placement: Annotated[bool, MAY_CHANGE] = True  # run ops on CPU if a GPU cannot

    def __post_init__(self):
        super().__post_init__()
        channels = self.out_dim(self.depth)
        if self.reduction_ratio > channels:
            raise HyperparameterError(
                f"--reduction_ratio must be at most {channels}, the number of channels in the "
                f"first stage, got {self.reduction_ratio}"
            )
        for name, value in ("max_shift", self.max_shift), ("cutout", self.cutout):
            if value and not whole_pixels(value, self.image_size):
                least = f"1/{self.image_size}, one pixel"
                raise HyperparameterError(f"--{name} must be 0 or at least {least}, got {value}")

    @property
    def shorter_run(self):
        """Options of a shorter run, suggested if training without a GPU takes over a day."""
        return "--padding=0 --depth=8 --micro_batch_size=0 --total_epochs=3"

    def out_dim(self, depth):
        """Return the number of channels of a block whose paths have `depth` channels."""
        return (4 if self.bottleneck else self.cardinality) * depth


# ------------------------------------------------------------------------------------ network


class SE_ResNeXt:
    """Build the network on `x`, normalised float32 images [batch, height, width, 3]. Its logits are
    in the attribute `model`, float32 [batch, classes].

    `training` is a Python bool. If it is true, batch norm uses the statistics of the batch;
    otherwise, batch norm uses its moving averages. Raises ValueError if `training` is true and the
    stem is "whitening", but `stem_filters`, the `whitening_filters` of the training images, is
    missing."""

    def __init__(self, x, training, hyperparameters, classes=10, stem_filters=None):
        if training and hyperparameters.stem == "whitening" and stem_filters is None:
            raise ValueError("stem_filters is required to train with stem='whitening', got None")
        self.hyperparameters = hyperparameters
        self.stem_filters = stem_filters
        self.conv_bn = functools.partial(conv_bn, training=training)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        """Return the logits for `x`, float32 [batch, classes]."""
        padding, depth = [self.hyperparameters.padding] * 2, self.hyperparameters.depth
        x = tf.cast(x, compute_dtype(self.hyperparameters.mixed_precision))
        x = tf.pad(x, [[0, 0], padding, padding, [0, 0]])
        # Map sizes are for 96x96 images, stem="conv" and downsampling="stride". With "max_pool",
        # maps are half as wide and high from the output of stage 1 on; with a whitening stem and
        # "stride", from the output of the stem on.
        downsampling = self.hyperparameters.downsampling
        if self.hyperparameters.stem == "whitening":
            shape = WHITENING_STEM[downsampling]
            x = whitening_layer(x, *shape, self.stem_filters, layer_name="stem")
        else:
            x = self.conv_bn(x, 64, 3, layer_name="stem")
        x = Relu(x)
        # 96x96x64
        stride = 2 if downsampling == "max_pool" else 1
        x = self.stage(x, depth, stride, layer_name="stage1")
        # 96x96x256
        x = self.stage(x, 2 * depth, stride=2, layer_name="stage2")
        # 48x48x512
        x = self.stage(x, 4 * depth, stride=2, layer_name="stage3")
        # 24x24x1024
        x = Global_Average_Pooling(x)
        return Fully_connected(x, classes, layer_name=CLASSIFIER)

    def stage(self, x, depth, stride, layer_name):
        """Return the output of a stage of residual blocks, the first of which downsamples `x` by
        `stride`."""
        with tf.variable_scope(layer_name):
            for number in range(1, self.hyperparameters.blocks + 1):
                x = self.block(x, depth, stride if number == 1 else 1, layer_name=f"block{number}")
        return x

    def block(self, x, depth, stride, layer_name):
        """Return relu(shortcut + SE(branch)), with `out_dim(depth)` channels."""
        groups, out_dim = self.hyperparameters.cardinality, self.hyperparameters.out_dim(depth)
        width = groups * depth
        pool = 1
        if self.hyperparameters.downsampling == "max_pool":
            stride, pool = 1, stride
        with tf.variable_scope(layer_name):
            if self.hyperparameters.bottleneck:
                # Compute all paths at once: a wide 1x1 convolution, then a 3x3 one in `groups`
                # groups (figure 3c).
                branch = Relu(self.conv_bn(x, width, 1, layer_name="reduce"))
                branch = self.conv_bn(
                    branch, width, 3, stride, groups=groups, pool=pool, layer_name="paths"
                )
                branch = self.conv_bn(Relu(branch), out_dim, 1, layer_name="merge")
            else:
                # Paths of two layers are equivalent to one wide path (figure 4).
                branch = self.conv_bn(x, width, 3, stride, pool=pool, layer_name="conv1")
                branch = self.conv_bn(Relu(branch), out_dim, 3, layer_name="conv2")
            branch = self.SE(branch)
            if pool > 1:
                x = Max_pooling(x, pool, pool, "SAME")
            if stride != 1 or x.shape[-1].value != out_dim:
                x = self.conv_bn(x, out_dim, 1, stride, layer_name="shortcut")
            return Relu(x + branch)

    def SE(self, x):
        """Return `x` with its channels gated, or unchanged in a network without SE blocks."""
        ratio = self.hyperparameters.reduction_ratio
        return Squeeze_excitation_layer(x, x.shape[-1].value, ratio, "SE") if ratio else x


# ---------------------------------------------------------------------------- loss and update


def loss(images, labels, network, hyperparameters):
    """Return the training loss of each image, [batch], and the logits, [batch, classes]."""
    logits = network(images, training=True).model
    return cross_entropy(logits, labels, hyperparameters.label_smoothing), logits


def decayed_variables():
    """Return the variables that `weight_decay` applies to: all trainable ones, as in the papers."""
    return tf.trainable_variables()


def optimizer(learning_rate, hyperparameters):
    """Return the optimizer: SGD with Nesterov momentum."""
    return tf.train.MomentumOptimizer(learning_rate, hyperparameters.momentum, use_nesterov=True)


def build_graph(data, hyperparameters):
    """Build the graph for the Dataset `data`. Return its Inputs and three dicts of tensors to
    fetch: in a training step, at the end of an epoch, and for a batch of the test set.

    Raises HyperparameterError if the network does not fit into memory, or if a device or a
    micro-batch would get too few images."""
    hp = hyperparameters
    tf.set_random_seed(hp.seed)
    step, epoch_steps = current_step(), steps_per_epoch(data.train, hp.batch_size)
    check_micro_batches(len(data.train.labels), epoch_steps, hp)
    inputs = image_inputs(data)
    stem_filters = None
    if hp.stem == "whitening":
        filters, kernel, _ = WHITENING_STEM[hp.downsampling]
        mean, std = data.channel_statistics()
        stem_filters = whitening_filters(data.train.images, mean, std, filters, kernel)
    network = functools.partial(
        SE_ResNeXt, hyperparameters=hp, classes=len(data.label_names), stem_filters=stem_filters
    )

    with tf.name_scope("test"):
        logits = network(inputs.normalised, training=False).model
        test_outputs = evaluation_outputs(logits, inputs.labels, len(data.label_names))
    check_training_memory(data, hp)  # before the larger part of the graph is built

    images = shift_and_flip(inputs.normalised, hp.seed, step, hp.max_shift, hp.shift_padding)
    if hp.cutout:
        images = cutout(images, hp.seed, step, hp.cutout)
    rate = learning_rate(step, epoch_steps, hp)
    image_losses = functools.partial(loss, network=network, hyperparameters=hp)
    batch = images, inputs.labels
    train_step, epoch_end = training_step(
        image_losses, optimizer(rate, hp), decayed_variables(), batch, step, epoch_steps, hp
    )
    # Scalars added to these two dicts are written to TensorBoard.
    train_step = {**train_step, "learning_rate": rate}
    epoch_end = {**epoch_end, "images": inputs.to_uint8(images)}
    return inputs, train_step, epoch_end, test_outputs


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    hp = hyperparameters
    run = Run(hp, SE_ResNeXt)
    data = load_dataset(hp.dataset, hp.data_dir, hp.image_size)
    with run:
        inputs, train_step, epoch_end, test_outputs = build_graph(data, hp)
        session = run.start(data, inputs, test_outputs)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.end_step(session.run(train_step, inputs.feed(batch)))
            values = session.run(epoch_end, inputs.feed(data.train.evenly_spaced(hp.batch_size)))
            evaluation = evaluate(session, test_outputs, inputs, run.test_batches())
            run.end_epoch(epoch, values, evaluation)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    return run_command(train, SE_ResNeXt, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
