"""SE-Inception-ResNet-v2 on CIFAR-10: Inception-ResNet-v2 (arXiv 1602.07261, figures 3, 7 and 15
to 19) with a squeeze-and-excitation block (arXiv 1709.01507, figure 3) on every residual branch,
before the sum, and on the output of both reductions."""

import functools
import sys

from senet.augmentation import flip, shift
from senet.cli.command_line import run_command
from senet.data.inputs import image_inputs
from senet.engine.compat import tf
from senet.evaluation import evaluation_outputs
from senet.hyperparameters import RunHyperparameters
from senet.layers import (
    CLASSIFIER,
    Concatenation,
    Dropout,
    Fully_connected,
    Global_Average_Pooling,
    Max_pooling,
    Relu,
    Squeeze_excitation_layer,
    chain,
    conv_layer,
    padded,
)
from senet.losses import batch_loss
from senet.run.run import Run
from senet.training import Graph, clipped, current_step, l2_loss, training_step, with_weight_decay

# ---------------------------------------------------------------------------- hyperparameters


class Hyperparameters(RunHyperparameters):
    run_dir = "runs/SE_Inception_resnet_v2"

    # network
    reduction_ratio = 16
    padding = 32

    # training
    init_learning_rate = 0.1
    schedule = "steps"
    momentum = 0.9
    weight_decay = 5e-4
    label_smoothing = 0.0
    batch_size = 128
    total_epochs = 100

    MIN_SIDE = 75  # pixels of a padded image
    MIN_MICRO_BATCH = 2  # for one 1x1 map, batch norm returns only its offset


# ------------------------------------------------------------------------------------ network


class SE_Inception_resnet_v2:
    """Build the network on `x`, normalised float32 images [batch, height, width, 3]. Its logits are
    in the attribute `model`, float32 [batch, classes].

    `training` is a Python bool. If it is true, batch norm uses the statistics of the batch and
    dropout is active; otherwise, batch norm uses its moving averages."""

    def __init__(self, x, training, hyperparameters, classes=10):
        self.training = training
        self.hyperparameters = hyperparameters
        self.chain = functools.partial(chain, training=training)
        self.model = self.Build_SEnet(x, classes)

    def Build_SEnet(self, x, classes):
        """Return the logits for `x`, float32 [batch, classes]."""
        x = padded(x, self.hyperparameters)
        # Map sizes are those of 96x96 images.
        x = self.Stem(x)
        # 9x9x384
        for number in range(1, 6):
            x = self.Inception_resnet_A(x, f"Inception_resnet_A{number}")
        x = self.Reduction_A(x, "Reduction_A")
        # 4x4x1152
        for number in range(1, 11):
            x = self.Inception_resnet_B(x, f"Inception_resnet_B{number}")
        x = self.Reduction_B(x, "Reduction_B")
        # 1x1x2144
        for number in range(1, 6):
            x = self.Inception_resnet_C(x, f"Inception_resnet_C{number}")
        x = Global_Average_Pooling(x)
        x = Dropout(x, rate=0.2, training=self.training)
        return Fully_connected(x, classes, layer_name=CLASSIFIER)

    def Stem(self, x):
        """Return the output of the stem (figure 3)."""
        with tf.variable_scope("Stem"):
            x = self.chain(x, (32, [3, 3], 2, "VALID"), (32, [3, 3], 1, "VALID"), (64, [3, 3]))
            # 45x45
            x = Concatenation([Max_pooling(x), self.chain(x, (96, [3, 3], 2, "VALID"))])
            # 22x22
            short = (64, [1, 1]), (96, [3, 3], 1, "VALID")
            long = (64, [1, 1]), (64, [7, 1]), (64, [1, 7]), (96, [3, 3], 1, "VALID")
            x = Concatenation([self.chain(x, *short), self.chain(x, *long)])
            # 20x20
            return Concatenation([self.chain(x, (192, [3, 3], 2, "VALID")), Max_pooling(x)])

    def Inception_resnet_A(self, x, layer_name):
        """Return the output of an Inception-ResNet-A module (figure 16)."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(x, (32, [1, 1])),
                self.chain(x, (32, [1, 1]), (32, [3, 3])),
                self.chain(x, (32, [1, 1]), (48, [3, 3]), (64, [3, 3])),
            ]
            return self.residual_sum(x, branches)

    def Reduction_A(self, x, layer_name):
        """Return the output of the Reduction-A module (figure 7, with k, l, m, n = 256, 256, 384,
        384 from table 1)."""
        with tf.variable_scope(layer_name):
            branches = [
                Max_pooling(x),
                self.chain(x, (384, [3, 3], 2, "VALID")),
                self.chain(x, (256, [1, 1]), (256, [3, 3]), (384, [3, 3], 2, "VALID")),
            ]
            return self.SE(Concatenation(branches))

    def Inception_resnet_B(self, x, layer_name):
        """Return the output of an Inception-ResNet-B module (figure 17)."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(x, (192, [1, 1])),
                self.chain(x, (128, [1, 1]), (160, [1, 7]), (192, [7, 1])),
            ]
            return self.residual_sum(x, branches)

    def Reduction_B(self, x, layer_name):
        """Return the output of the Reduction-B module (figure 18)."""
        with tf.variable_scope(layer_name):
            branches = [
                Max_pooling(x),
                self.chain(x, (256, [1, 1]), (384, [3, 3], 2, "VALID")),
                self.chain(x, (256, [1, 1]), (288, [3, 3], 2, "VALID")),
                self.chain(x, (256, [1, 1]), (288, [3, 3]), (320, [3, 3], 2, "VALID")),
            ]
            return self.SE(Concatenation(branches))

    def Inception_resnet_C(self, x, layer_name):
        """Return the output of an Inception-ResNet-C module (figure 19)."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(x, (192, [1, 1])),
                self.chain(x, (192, [1, 1]), (224, [1, 3]), (256, [3, 1])),
            ]
            return self.residual_sum(x, branches)

    def residual_sum(self, x, branches):
        """Return relu(x + SE(0.1 * branch)). A linear 1x1 convolution maps the branches to the
        channels of `x`, and the scale stabilises training (section 3.3).

        In figures 17 and 19, the 1x1 convolution has 1154 and 2048 channels. The sum requires as
        many as `x` has after the preceding reduction: 1152 and 2144."""
        filters = x.shape[-1].value
        branch = Concatenation(branches)
        branch = conv_layer(branch, filters, 1, use_bias=True, scale=0.1, layer_name="linear")
        return Relu(x + self.SE(branch))

    def SE(self, x):
        """Return `x` with its channels gated."""
        ratio = self.hyperparameters.reduction_ratio
        return Squeeze_excitation_layer(x, x.shape[-1].value, ratio, "SE")


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
    network = functools.partial(SE_Inception_resnet_v2, hyperparameters=hp, classes=inputs.classes)
    test_outputs = evaluation_outputs(network, inputs, hp)

    step = current_step()
    images = shift(inputs.normalised, hp.seed, step)
    if hp.flip:
        images = flip(images, hp.seed, step)
    batch = {"images": images, "labels": inputs.labels}
    train_step, epoch_end = training_step(batch, network, loss, adjusted, optimizer, data, hp)
    # Scalars added to these two dicts are written to TensorBoard.
    epoch_end["l2_loss"] = l2_loss(decayed_variables(), hp.weight_decay)
    epoch_end["images"] = inputs.to_uint8(batch["images"])
    return Graph(inputs, train_step, epoch_end, test_outputs)


# ------------------------------------------------------------------------------ training loop


def train(hyperparameters):
    """Train to the last epoch, from the newest checkpoint in `run_dir` or from scratch."""
    with Run(hyperparameters, SE_Inception_resnet_v2) as run:
        graph = build_graph(run.data, run.hyperparameters)
        session = run.start(graph)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.end_step(session.run(graph.train_step, graph.feed(batch)))
            run.end_epoch(epoch)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    return run_command(train, SE_Inception_resnet_v2, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
