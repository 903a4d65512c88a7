"""The networks at their default size: parameters, SE blocks and multiply-adds; map sizes,
dropout and a gradient of the Inceptions."""

import functools

import numpy as np
import pytest
from scripts import SCRIPTS

from senet.engine.compat import tf
from senet.layers import GATES, Global_Average_Pooling
from senet.run.checkpoints import variables_used_by

pytestmark = pytest.mark.slow
IMAGES = 8


class Built:
    """A script's network, built for training and then, with the same variables, for evaluation."""

    def __init__(self, script):
        self.script = script
        self.modules = []  # (method, [height, width, channels] of its output) of both networks
        self.pooled, self.features = [], []  # each: in training, in evaluation
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
        """Make the networks append to the lists `modules`, `pooled` and `features`."""

        def recording(kind, module):
            def method(network, x, *name):
                output = module(network, x, *name)
                self.modules.append((kind, output.shape.as_list()[1:]))
                return output

            return method

        def pooling(x, pool=Global_Average_Pooling):
            self.pooled.append(pool(x))
            return self.pooled[-1]

        def classifier(x, *arguments, dense=self.script.module.Fully_connected, **fields):
            self.features.append(x)
            return dense(x, *arguments, **fields)

        for kind in MODULES.get(self.script.name, ()):
            module = recording(kind, getattr(self.script.network, kind))
            monkeypatch.setattr(self.script.network, kind, module)
        if hasattr(self.script.module, "Global_Average_Pooling"):
            monkeypatch.setattr(self.script.module, "Global_Average_Pooling", pooling)
        monkeypatch.setattr(self.script.module, "Fully_connected", classifier)


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


# ------------------------------------------------------------------------- the two Inceptions

# {method: (number of calls, [height, width, channels] of the output)}, in the network's order, for
# images of 32x32 that the default padding enlarges to 96x96.
MODULES = {
    "SE_Inception_v4": {
        "Stem": (1, [9, 9, 384]),
        "Inception_A": (4, [9, 9, 384]),
        "Reduction_A": (1, [4, 4, 1024]),
        "Inception_B": (7, [4, 4, 1024]),
        "Reduction_B": (1, [1, 1, 1536]),
        "Inception_C": (3, [1, 1, 1536]),
    },
    "SE_Inception_resnet_v2": {
        "Stem": (1, [9, 9, 384]),
        "Inception_resnet_A": (5, [9, 9, 384]),
        "Reduction_A": (1, [4, 4, 1152]),
        "Inception_resnet_B": (10, [4, 4, 1152]),
        "Reduction_B": (1, [1, 1, 2144]),
        "Inception_resnet_C": (5, [1, 1, 2144]),
    },
}


@pytest.fixture(scope="module", params=MODULES)
def inception(request):
    return built_network(NUMBERS[request.param])


def test_the_network_has_the_expected_modules_and_map_sizes(inception):
    rows = MODULES[inception.script.name].items()
    network = [(kind, size) for kind, (count, size) in rows for _ in range(count)]
    assert inception.modules == 2 * network


@pytest.fixture(scope="module")
def values(inception):
    """Return the norm of the first layer's gradient divided by that of its weights; the pooled
    features; the classifier's inputs. The last two are pairs: in training, in evaluation."""
    with inception.graph.as_default(), tf.Session() as session:
        first = next(
            v for v in inception.trainable if v.op.name == "Stem/branch/conv1/conv/weights"
        )
        (gradient,) = tf.gradients(inception.loss, [first])
        ratio = tf.norm(gradient) / tf.norm(first)
        session.run(tf.global_variables_initializer())
        return session.run([ratio, inception.pooled, inception.features])


def test_the_gradient_of_the_first_layer_is_small(values):
    # About 2. If batch norm started with offsets of 0, it would be about 100 in Inception-v4.
    assert 0.1 < values[0] < 4


def test_training_drops_a_fifth_of_the_features(values):
    """Check that a fifth of the features are set to zero and the others are divided by 0.8."""
    _, (in_training, in_evaluation), (dropped, undropped) = values
    np.testing.assert_array_equal(undropped, in_evaluation)
    survives = dropped[in_training != 0] != 0
    # At least 8 x 1536 draws, minus those for features that are 0 anyway. The standard deviation of
    # the fraction that survives is 0.004.
    assert survives.size > 8 * 1000
    assert survives.mean() == pytest.approx(0.8, abs=0.02)
    np.testing.assert_allclose(dropped[dropped != 0], in_training[dropped != 0] / 0.8, rtol=1e-6)
