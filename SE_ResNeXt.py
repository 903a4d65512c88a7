"""SE-ResNeXt-29 on CIFAR-10: ResNeXt (arXiv 1611.05431, section 5.3) with a squeeze-and-excitation
block (arXiv 1709.01507) on every residual branch."""

import functools
import sys
from typing import Literal

from senet.augmentation import cutout, flip, mixup, shift
from senet.cli.command_line import run_command
from senet.data.inputs import image_inputs
from senet.engine.compat import tf
from senet.evaluation import evaluation_outputs
from senet.fields import Count, Fraction, Network, NotNegative
from senet.hyperparameters import RunHyperparameters
from senet.layers import (
    CLASSIFIER,
    Fully_connected,
    Global_Average_Pooling,
    Relu,
    Squeeze_excitation_layer,
    conv_bn,
    padded,
)
from senet.losses import batch_loss
from senet.run.run import Run
from senet.training import Graph, clipped, current_step, l2_loss, training_step, with_weight_decay

# ---------------------------------------------------------------------------- hyperparameters


class Hyperparameters(RunHyperparameters):
    run_dir = "runs/SE_ResNeXt"

    # network
    cardinality: Network[Count] = 8  # paths per block
    depth: Network[Count] = 64  # channels per path in the first stage
    blocks: Network[Count] = 3  # blocks per stage; there are three stages
    reduction_ratio = 16
    padding = 32

    # training
    init_learning_rate = 0.1
    schedule = "steps"
    momentum = 0.9
    weight_decay = 5e-4
    label_smoothing = 0.0
    max_shift: Fraction = 1 / 8  # largest shift of a training image (fraction of its side)
    shift_padding: Literal["zeros", "reflect"] = "zeros"  # beyond the edges
    cutout: Fraction = 0.0  # zeroed square (fraction of side)
    mixup: NotNegative = 0.0  # alpha of the weights of mixed images; 0: not mixed
    batch_size = 128
    micro_batch_size = 8
    total_epochs = 100


# ------------------------------------------------------------------------------------ network


class SE_ResNeXt:
    """Build the network on `x`, normalised float32 images [batch, height, width, 3]. Its logits are
    in the attribute `model`, float32 [batch, classes].

    `training` is a Python bool. If it is true, batch norm uses the statistics of the batch;
    otherwise, batch norm uses its moving averages."""

    def __init__(self, x, training, hyperparameters, classes=10):
        self.hyperparameters = hyperparameters
        self.conv_bn = functools.partial(conv_bn, training=training)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        """Return the logits for `x`, float32 [batch, classes]."""
        depth = self.hyperparameters.depth
        x = padded(x, self.hyperparameters)
        # Map sizes are those of 96x96 images.
        x = Relu(self.conv_bn(x, 64, 3, layer_name="stem"))
        # 96x96x64
        x = self.stage(x, depth, stride=1, layer_name="stage1")
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
        """Return relu(shortcut + SE(branch)), with 4 * depth channels."""
        groups = self.hyperparameters.cardinality
        width, out_dim = groups * depth, 4 * depth
        with tf.variable_scope(layer_name):
            # Compute all paths at once: a wide 1x1 convolution, then a 3x3 one in `groups` groups
            # (figure 3c).
            branch = Relu(self.conv_bn(x, width, 1, layer_name="reduce"))
            branch = self.conv_bn(branch, width, 3, stride, groups=groups, layer_name="paths")
            branch = self.conv_bn(Relu(branch), out_dim, 1, layer_name="merge")
            branch = Squeeze_excitation_layer(
                branch, out_dim, self.hyperparameters.reduction_ratio, "SE"
            )
            if stride != 1 or x.shape[-1].value != out_dim:
                x = self.conv_bn(x, out_dim, 1, stride, layer_name="shortcut")
            return Relu(x + branch)


# ---------------------------------------------------------------------------- loss and update


def loss(batch, network, hyperparameters):
    """Return the training loss of each image, [batch], and the logits, [batch, classes]."""
    logits = network(batch["images"], training=True).model
    return batch_loss(logits, batch, hyperparameters.label_smoothing), logits


def decayed_variables():
    """Return the variables that `weight_decay` applies to: all trainable ones."""
    return tf.trainable_variables()


def adjusted(gradients, variables, hyperparameters):
    """Return `gradients`, those of the mean loss over the whole batch, as the optimizer uses them:
    clipped, with those of the L2 penalty added."""
    gradients = clipped(gradients, hyperparameters.clip_norm)
    decay = hyperparameters.weight_decay
    return with_weight_decay(gradients, variables, decayed_variables(), decay)


def optimizer(learning_rate, hyperparameters):
    """Return the optimizer: SGD with Nesterov momentum."""
    return tf.train.MomentumOptimizer(learning_rate, hyperparameters.momentum, use_nesterov=True)


def build_graph(data, hyperparameters):
    """Return the Graph for the Dataset `data`."""
    hp = hyperparameters
    inputs = image_inputs(data, hp.seed)
    network = functools.partial(SE_ResNeXt, hyperparameters=hp, classes=inputs.classes)
    test_outputs = evaluation_outputs(network, inputs, hp)

    step = current_step()
    images = shift(inputs.normalised, hp.seed, step, hp.max_shift, hp.shift_padding)
    if hp.flip:
        images = flip(images, hp.seed, step)
    images = cutout(images, hp.seed, step, hp.cutout)
    batch = {"images": images, "labels": inputs.labels}
    batch = mixup(batch, hp.seed, step, hp.mixup)
    train_step, epoch_end = training_step(batch, network, loss, adjusted, optimizer, data, hp)
    # Scalars added to these two dicts are written to TensorBoard.
    epoch_end["l2_loss"] = l2_loss(decayed_variables(), hp.weight_decay)
    epoch_end["images"] = inputs.to_uint8(batch["images"])
    return Graph(inputs, train_step, epoch_end, test_outputs)


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    with Run(hyperparameters, SE_ResNeXt) as run:
        graph = build_graph(run.data, run.hyperparameters)
        session = run.start(graph)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.end_step(session.run(graph.train_step, graph.feed(batch)))
            run.end_epoch(epoch)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    return run_command(train, SE_ResNeXt, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
