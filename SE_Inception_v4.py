"""SE-Inception-v4 on CIFAR-10: Inception-v4 (arXiv 1602.07261, figures 3 to 9) with a
squeeze-and-excitation block (arXiv 1709.01507, figure 2) on the output of every module."""

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
    Avg_pooling,
    Concatenation,
    Dropout,
    Fully_connected,
    Global_Average_Pooling,
    Max_pooling,
    Squeeze_excitation_layer,
    chain,
    padded,
)
from senet.losses import batch_loss
from senet.run.run import Run
from senet.training import Graph, clipped, current_step, l2_loss, training_step, with_weight_decay

# ---------------------------------------------------------------------------- hyperparameters


class Hyperparameters(RunHyperparameters):
    run_dir = "runs/SE_Inception_v4"

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


class SE_Inception_v4:
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

    def Inception_A(self, x, layer_name):
        """Return the output of an Inception-A module (figure 4)."""
        with tf.variable_scope(layer_name):
            branches = [
                self.chain(Avg_pooling(x), (96, [1, 1])),
                self.chain(x, (96, [1, 1])),
                self.chain(x, (64, [1, 1]), (96, [3, 3])),
                self.chain(x, (64, [1, 1]), (96, [3, 3]), (96, [3, 3])),
            ]
            return self.SE(Concatenation(branches))

    def Reduction_A(self, x, layer_name):
        """Return the output of the Reduction-A module (figure 7, with k, l, m, n = 192, 224, 256,
        384 from table 1)."""
        with tf.variable_scope(layer_name):
            branches = [
                Max_pooling(x),
                self.chain(x, (384, [3, 3], 2, "VALID")),
                self.chain(x, (192, [1, 1]), (224, [3, 3]), (256, [3, 3], 2, "VALID")),
            ]
            return self.SE(Concatenation(branches))

    def Inception_B(self, x, layer_name):
        """Return the output of an Inception-B module (figure 5). In the third branch, the figure
        has 1x7 twice; this module has 1x7, then 7x1, as in the authors' code, to cover both
        directions."""
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
        """Return the output of the Reduction-B module (figure 8)."""
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
        """Return the output of an Inception-C module (figure 6). Two branches split at the end."""
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
    network = functools.partial(SE_Inception_v4, hyperparameters=hp, classes=inputs.classes)
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
    with Run(hyperparameters, SE_Inception_v4) as run:
        graph = build_graph(run.data, run.hyperparameters)
        session = run.start(graph)
        for epoch in run.epochs():
            for batch in run.train_batches(epoch):
                run.end_step(session.run(graph.train_step, graph.feed(batch)))
            run.end_epoch(epoch)
        run.finish()


def main(argv=None):
    """Run the command line `argv` and return the exit status."""
    return run_command(train, SE_Inception_v4, Hyperparameters, argv)


if __name__ == "__main__":
    sys.exit(main())
