"""The networks at their default size, and dropout and a gradient of the Inceptions."""

import functools

import numpy as np
import pytest
from scripts import SCRIPTS

from senet.engine.compat import tf
from senet.layers import GATES, Dropout
from senet.run.checkpoints import variables_used_by

pytestmark = pytest.mark.slow
IMAGES = 8


class Built:
    """A script's network, built for training and then, with the same variables, for evaluation."""

    def __init__(self, script):
        self.script = script
        self.modules = []  # (method, [height, width, channels] of its output) of both networks
        self.dropped = []  # (rate, training) of both networks' dropout
        rng = np.random.default_rng(0)
        with tf.Graph().as_default() as self.graph, pytest.MonkeyPatch.context() as monkeypatch:
            self._record(monkeypatch)
            tf.set_random_seed(0)
            hp = script.hyperparameters(mixed_precision=False)
            x = tf.constant(rng.normal(size=(IMAGES, 32, 32, 3)), tf.float32)
            self.logits = script.network(x, True, hp).model
            self.trainable, self.variables = tf.trainable_variables(), tf.global_variables()
            self.se_blocks = len(tf.get_collection(GATES))
            with (
                tf.variable_scope(tf.get_variable_scope(), reuse=True),
                tf.name_scope("evaluation"),
            ):
                self.evaluation_logits = script.network(x, False, hp).model
            labels = tf.constant(rng.integers(0, 10, IMAGES))
            self.loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self.logits)
            )

    def _record(self, monkeypatch):
        """Make the networks append to the lists `modules` and `dropped`."""

        def recording(kind, module):
            def method(network, x, *arguments, **fields):
                output = module(network, x, *arguments, **fields)
                self.modules.append((kind, output.shape.as_list()[1:]))
                return output

            return method

        def recording_dropout(x, rate, training):
            self.dropped.append((rate, training))
            return Dropout(x, rate, training)

        for kind in {kind for kind, *_ in MODULES.get(self.script.name, [])}:
            module = recording(kind, getattr(self.script.network, kind))
            monkeypatch.setattr(self.script.network, kind, module)
        monkeypatch.setattr(self.script.module, "Dropout", recording_dropout, raising=False)


@functools.cache  # building takes seconds
def built_network(number):
    return Built(SCRIPTS[number])


NUMBERS = {script.name: number for number, script in enumerate(SCRIPTS)}


@pytest.fixture(params=NUMBERS)
def built(request):
    return built_network(NUMBERS[request.param])


def test_the_network_has_the_expected_parameters_and_se_blocks(built):
    parameters = sum(v.shape.num_elements() for v in built.trainable)
    assert parameters == built.script.parameters[16]
    assert built.se_blocks == built.script.se_blocks
    assert (built.logits.shape.as_list(), built.logits.dtype) == ([IMAGES, 10], tf.float32)


def test_evaluation_uses_the_variables_of_training(built):
    with built.graph.as_default():
        used = variables_used_by(built.evaluation_logits).keys()
    names = {variable.op.name for variable in built.variables}
    assert used == names - {tf.GraphKeys.GLOBAL_STEP}  # only dropout uses the step


def test_the_network_has_the_expected_multiply_adds(built):
    products = 0
    for op in built.graph.get_operations():
        if op.name.startswith("evaluation/") and op.type in ("Conv2D", "MatMul"):
            *inner, _ = op.inputs[1].shape.as_list()
            products += tf.TensorShape(inner).num_elements() * op.outputs[0].shape.num_elements()
    assert round(products / IMAGES / 1e9, 2) == built.script.multiply_adds


def test_the_network_without_se_blocks_has_the_expected_parameters(graph, built):
    built.script.network(
        tf.placeholder(tf.float32, [None, 32, 32, 3]),
        False,
        built.script.hyperparameters(reduction_ratio=0),
    )
    parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
    assert parameters == built.script.parameters[0]
    assert tf.get_collection(GATES) == []


# (method, number of calls, [height, width, channels] of the output), in the network's order, for
# images of 32x32 that the default padding enlarges to 96x96; SE_ResNet does not pad.
MODULES = {
    "SE_ResNet": [("stage", 1, [15, 15, 64]), ("stage", 1, [7, 7, 256]), ("stage", 1, [3, 3, 256])],
    "SE_ResNeXt": [
        ("stage", 1, [96, 96, 256]),
        ("stage", 1, [48, 48, 512]),
        ("stage", 1, [24, 24, 1024]),
    ],
    "SE_Inception_v4": [
        ("Stem", 1, [9, 9, 384]),
        ("Inception_A", 4, [9, 9, 384]),
        ("Reduction_A", 1, [4, 4, 1024]),
        ("Inception_B", 7, [4, 4, 1024]),
        ("Reduction_B", 1, [1, 1, 1536]),
        ("Inception_C", 3, [1, 1, 1536]),
    ],
    "SE_Inception_resnet_v2": [
        ("Stem", 1, [9, 9, 384]),
        ("Inception_resnet_A", 5, [9, 9, 384]),
        ("Reduction_A", 1, [4, 4, 1152]),
        ("Inception_resnet_B", 10, [4, 4, 1152]),
        ("Reduction_B", 1, [1, 1, 2144]),
        ("Inception_resnet_C", 5, [1, 1, 2144]),
    ],
}


@pytest.mark.parametrize("name", MODULES)
def test_the_network_has_the_expected_modules_and_map_sizes(name):
    network = [(kind, size) for kind, count, size in MODULES[name] for _ in range(count)]
    assert built_network(NUMBERS[name]).modules == 2 * network


@pytest.fixture(scope="module", params=["SE_Inception_v4", "SE_Inception_resnet_v2"])
def inception(request):
    return built_network(NUMBERS[request.param])


def test_the_gradient_of_the_first_layer_is_small():
    inception = built_network(NUMBERS["SE_Inception_v4"])
    with inception.graph.as_default(), tf.Session() as session:
        name = "Stem/branch/conv1/conv/weights"
        (first,) = (v for v in inception.trainable if v.op.name == name)
        (gradient,) = tf.gradients(inception.loss, [first])
        session.run(tf.global_variables_initializer())
        ratio = session.run(tf.norm(gradient) / tf.norm(first))
    # About 2. If batch norm started with offsets of 0, it would be about 100.
    assert 0.1 < ratio < 4


def test_training_drops_a_fifth_of_the_features(inception):
    assert inception.dropped == [(0.2, True), (0.2, False)]
