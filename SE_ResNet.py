"""SE-ResNet, a small network to start with: 92.55 % on CIFAR-10 after 8 epochs (0.27 PFLOP), and
93.09 % if predictions are averaged over each image and its mirror image. The recipe follows arXiv
2404.00498, with a squeeze-and-excitation block (arXiv 1709.01507) on every residual branch."""

import functools
import sys

from senet.augmentation import alternating_flip, cutout, shift
from senet.cli.command_line import run_command
from senet.data.datasets import steps_per_epoch
from senet.data.inputs import image_inputs
from senet.engine.compat import tf
from senet.engine.devices import compute_dtype
from senet.evaluation import evaluation_outputs
from senet.fields import Count, Fraction, Network, Positive
from senet.hyperparameters import RunHyperparameters
from senet.layers import (
    CLASSIFIER,
    Fully_connected,
    Max_pooling,
    Relu,
    Squeeze_excitation_layer,
    conv_bn,
    padded,
)
from senet.losses import batch_loss
from senet.muon import Muon
from senet.run.run import Run
from senet.training import Graph, clipped, current_step, l2_loss, training_step, with_weight_decay
from senet.whitening import whitening_filters, whitening_layer

# ---------------------------------------------------------------------------- hyperparameters

STEM_FILTERS, STEM_SIDE = 24, 2  # both signs of all 12 directions in patches of 2x2 pixels


class Hyperparameters(RunHyperparameters):
    run_dir = "runs/SE_ResNet"

    # network
    width: Network[Count] = 64  # channels of stage 1; stages 2 and 3 have 4 times as many
    blocks: Network[Count] = 1  # residual blocks per stage; there are three stages
    reduction_ratio = 16
    padding = 0
    MIN_SIDE = 9  # pixels of a padded image: 8 after the stem, which the stages halve to 1

    # training
    init_learning_rate = 0.5  # peak learning rate of all variables but the filters
    filter_learning_rate: Positive = 0.12  # peak learning rate of the filters (Muon)
    schedule = "linear"
    momentum = 0.85  # of all variables but the filters
    filter_momentum: Fraction = 0.6  # of the filters (Muon)
    weight_decay = 2e-3
    label_smoothing = 0.2
    max_shift: Fraction = 1 / 16  # largest shift of a training image (fraction of its side)
    cutout: Fraction = 0.0  # zeroed square (fraction of side)
    batch_size = 500
    total_epochs = 8
    FINE_TUNING = {"init_learning_rate": 0.1, "filter_learning_rate": 0.03}


# ------------------------------------------------------------------------------------ network


class SE_ResNet:
    """Build the network on `x`, normalised float32 images [batch, height, width, 3]. Its logits are
    in the attribute `model`, float32 [batch, classes]. With `training`, a Python bool, batch norm
    uses the statistics of the batch, and `stem` must be the `whitening_filters` of the training
    images; otherwise, batch norm uses its moving averages."""

    def __init__(self, x, training, hyperparameters, classes=10, stem=None):
        self.hyperparameters = hyperparameters
        self.ratio = hyperparameters.reduction_ratio
        self.stem = stem
        self.conv_bn = functools.partial(conv_bn, training=training, scale=False)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        """Return the logits for `x`, float32 [batch, classes]."""
        width = self.hyperparameters.width
        x = padded(x, self.hyperparameters)
        x = Relu(whitening_layer(x, STEM_FILTERS, STEM_SIDE, self.stem, layer_name="stem"))
        # 31x31x24, if images are 32x32
        x = self.stage(x, width, layer_name="stage1")
        # 15x15x64
        x = self.stage(x, 4 * width, layer_name="stage2")
        # 7x7x256
        x = self.stage(x, 4 * width, layer_name="stage3")
        # 3x3x256
        # Not tf.reduce_max, whose gradient can be NaN with XLA.
        x = Max_pooling(x, kernel=x.shape[1:3].as_list(), stride=1)
        x = tf.cast(tf.squeeze(x, [1, 2]), tf.float32)
        # Smaller logits: the classifier then learns at the same rate as the other variables.
        return Fully_connected(x / 8, classes, layer_name=CLASSIFIER)

    def stage(self, x, filters, layer_name):
        """Return the output of a convolution that halves the maps, followed by residual blocks."""
        with tf.variable_scope(layer_name):
            x = Relu(self.conv_bn(x, filters, 3, pool=2, layer_name="downsampling"))
            for number in range(1, self.hyperparameters.blocks + 1):
                x = self.block(x, layer_name=f"block{number}")
        return x

    def block(self, x, layer_name):
        """Return relu(x + branch), with the shape of `x`. The branch is a convolution with SE."""
        with tf.variable_scope(layer_name):
            filters = x.shape[-1].value
            branch = self.conv_bn(x, filters, 3, layer_name="conv")
            if self.ratio:
                # Gates start at 1/2. Doubled, the branch starts at the size that it has without SE.
                branch = 2 * Squeeze_excitation_layer(branch, filters, self.ratio, "SE")
            return Relu(x + branch)


# ---------------------------------------------------------------------------- loss and update


def loss(batch, network, hyperparameters):
    """Return the training loss of each image, [batch], and the logits, [batch, classes]."""
    logits = network(batch["images"], training=True).model
    return batch_loss(logits, batch, hyperparameters.label_smoothing), logits


def decayed_variables():
    """Return the variables that `weight_decay` applies to: not the filters, whose norm Muon sets,
    nor SE layers."""
    return [v for v in tf.trainable_variables() if v.shape.rank != 4 and "/SE/" not in v.op.name]


def adjusted(gradients, variables, hyperparameters):
    """Return `gradients`, those of the mean loss over the whole batch, as the optimizer uses them:
    clipped, with those of the L2 penalty added."""
    gradients = clipped(gradients, hyperparameters.clip_norm)
    decay = hyperparameters.weight_decay
    return with_weight_decay(gradients, variables, decayed_variables(), decay)


def optimizer(learning_rate, hyperparameters):
    """Return the optimizer: Muon for the filters, SGD with Nesterov momentum for the rest."""
    hp = hyperparameters
    ratio = hp.filter_learning_rate / hp.init_learning_rate
    dtype = compute_dtype(hp.mixed_precision)
    return Muon(learning_rate, hp.momentum, ratio, hp.filter_momentum, dtype=dtype)


def build_graph(data, hyperparameters):
    """Return the Graph for the Dataset `data`."""
    hp = hyperparameters
    inputs = image_inputs(data, hp.seed)
    mean, std = data.channel_statistics()
    stem = whitening_filters(data.train.images, mean, std, STEM_FILTERS, STEM_SIDE)
    network = functools.partial(SE_ResNet, hyperparameters=hp, classes=inputs.classes, stem=stem)
    test_outputs = evaluation_outputs(network, inputs, hp)

    step = current_step()
    images = inputs.normalised
    if hp.flip:
        images = alternating_flip(images, hp.seed, step, steps_per_epoch(data.train, hp.batch_size))
    images = shift(images, hp.seed, step, hp.max_shift, "reflect")
    images = cutout(images, hp.seed, step, hp.cutout)
    batch = {"images": images, "labels": inputs.labels}
    train_step, epoch_end = training_step(batch, network, loss, adjusted, optimizer, data, hp)
    # Scalars added to these two dicts are written to TensorBoard.
    epoch_end["l2_loss"] = l2_loss(decayed_variables(), hp.weight_decay)
    epoch_end["images"] = inputs.to_uint8(batch["images"])
    return Graph(inputs, train_step, epoch_end, test_outputs)


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    with Run(hyperparameters, SE_ResNet) as run:
        graph = build_graph(run.data, run.hyperparameters)
        session = run.start(graph)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.end_step(session.run(graph.train_step, graph.feed(batch)))
            run.end_epoch(epoch)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    return run_command(train, SE_ResNet, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
