from types import SimpleNamespace

import numpy as np
import pytest
from conftest import load_values

from senet import evaluation as evaluation_module
from senet.data.datasets import Split, batches
from senet.data.inputs import Statistics, encode_json, inputs_with
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.evaluation import Evaluation, averaged_logits, evaluate, evaluation_outputs
from senet.hyperparameters import RunHyperparameters
from senet.layers import (
    GATES,
    Batch_Normalization,
    Fully_connected,
    Gate,
    Global_Average_Pooling,
    Squeeze_excitation_layer,
)


def test_confusion_matrix_matches_one_worked_out_by_hand():
    """One of the two images of class 0 and all three of class 1 are classified correctly; the only
    image of class 2 is not."""
    labels, predicted = np.array([0, 1, 0, 2, 1, 1]), np.array([0, 1, 1, 0, 1, 1])
    evaluation = Evaluation({}, labels, predicted, np.zeros(6), {}, 4 / 6)
    assert evaluation.confusion_matrix(3).tolist() == [[1, 1, 0], [0, 3, 0], [1, 0, 0]]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_evaluation_of_a_network_with_one_se_block_matches_numpy(graph, rng):
    """Compare loss, accuracy, predictions and mean gates of each class with NumPy, for batches of
    unequal size. The network applies an SE block to the images, then global average pooling and a
    classifier. The last of the three classes has no images."""
    images = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 2, 11).astype(np.int32)
    inputs = inputs_of(["a", "b", "c"])

    def network(x, training):
        with tf.variable_scope("block"):
            x = Squeeze_excitation_layer(x, 3, 1, "SE")
        logits = Fully_connected(Global_Average_Pooling(x), 3, layer_name="classifier")
        return SimpleNamespace(model=logits)

    outputs = evaluation_outputs(network, inputs, RunHyperparameters())
    weights = {v.op.name: v for v in tf.trainable_variables()}
    values = {name: rng.normal(size=v.shape).astype(np.float32) for name, v in weights.items()}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_values(session, {weights[name]: value for name, value in values.items()})
        evaluation = evaluate(session, outputs, inputs, batches(Split(images, labels), 4))

    def layer(x, name):
        return x @ values[f"{name}/weights"] + values[f"{name}/bias"]

    squeeze = (images / 255).mean((1, 2))
    hidden = np.maximum(layer(squeeze, "block/SE/fully_connected1"), 0)
    gates = sigmoid(layer(hidden, "block/SE/fully_connected2"))
    logits = layer(squeeze * gates, "classifier")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert list(evaluation.gates) == ["block/SE"]
    for label in 0, 1:
        expected = gates[labels == label].mean(axis=0)
        np.testing.assert_allclose(evaluation.gates["block/SE"][label], expected, rtol=1e-5)
    np.testing.assert_array_equal(evaluation.gates["block/SE"][2], 0)
    np.testing.assert_array_equal(evaluation.labels, labels)
    np.testing.assert_array_equal(evaluation.predicted, logits.argmax(axis=1))
    np.testing.assert_allclose(evaluation.probability, probabilities.max(axis=1), rtol=1e-5)
    loss = -np.log(probabilities[np.arange(11), labels]).mean()
    accuracy = (logits.argmax(axis=1) == labels).mean()
    assert evaluation.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert evaluation.metrics["acc"] == pytest.approx(accuracy, rel=1e-5)


def test_data_sets_of_20_classes_have_the_top_5_accuracy(graph):
    """The label is the most probable class of the first image, the fifth of the second and the
    sixth of the third."""
    inputs = inputs_of([f"class {number}" for number in range(20)])
    logits = tf.constant(np.tile(np.arange(20, 0, -1, np.float32), (3, 1)))
    outputs = evaluation_outputs(always(logits), inputs, RunHyperparameters())
    split = Split(np.zeros([3, 8, 8, 3], np.uint8), np.array([0, 4, 5], np.int32))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        metrics = evaluate(session, outputs, inputs, [split]).metrics
    assert metrics["acc"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(2 / 3)


def always(logits):
    """Return a network that returns `logits` for any images."""
    return lambda x, training: SimpleNamespace(model=logits)


def inputs_of(label_names):
    """Return the Inputs for images of 8x8 pixels, in the default graph."""
    mean = np.zeros(3, np.float32)
    std = np.full(3, 255, np.float32)
    return inputs_with(8, Statistics(mean, std, encode_json(label_names)))


@pytest.fixture
def inputs(graph):
    return inputs_of(["a", "b", "c"])


@pytest.mark.parametrize(
    "name, metric, message",
    [
        ("mean", lambda logits, _: tf.reduce_mean(logits), "^mean must have one value per image"),
        ("top 3", lambda logits, _: logits[:, 0], r"name of a metric must match .*, got 'top 3'"),
    ],
)
def test_a_metric_that_a_row_would_not_show_rightly_is_reported(
    inputs, monkeypatch, name, metric, message
):
    monkeypatch.setattr(evaluation_module, "metrics", lambda classes: {name: metric})
    logits = tf.placeholder(tf.float32, [None, 3])
    with pytest.raises(Failure, match=message):
        evaluation_outputs(always(logits), inputs, RunHyperparameters())


def test_batch_norm_that_ignores_training_is_reported(inputs):
    def network(images, training):
        x = Batch_Normalization(images, True, scope="batch_norm")
        return always(tf.reduce_mean(x, [1, 2]))(images, training)

    with pytest.raises(Failure, match="^with training=False, batch norm uses the statistics of "):
        evaluation_outputs(network, inputs, RunHyperparameters())


@pytest.mark.parametrize("dtype, classes", [(tf.float32, 12), (tf.bfloat16, 3)])
def test_logits_of_a_wrong_shape_or_type_are_reported(inputs, dtype, classes):
    logits = tf.placeholder(dtype, [None, classes])
    message = r"must return logits of shape \[batch, 3\] in float32, got "
    with pytest.raises(Failure, match=f"{message}{dtype.name} "):
        evaluation_outputs(always(logits), inputs, RunHyperparameters())


@pytest.mark.parametrize(
    "dtype, shape", [(tf.float32, [None, 1, 1, 8]), (tf.float32, [None]), (tf.bfloat16, [None, 8])]
)
def test_gates_of_a_wrong_shape_or_type_are_reported(inputs, dtype, shape):
    def network(x, training):
        gates = tf.placeholder(dtype, shape, name="gates")
        tf.add_to_collection(GATES, Gate("stage1/SE", gates.op.name, gates))
        return SimpleNamespace(model=tf.placeholder(tf.float32, [None, 3]))

    with pytest.raises(
        Failure, match=r"^stage1/SE: a Gate must be float32 \[batch, channels\], got"
    ):
        evaluation_outputs(network, inputs, RunHyperparameters())


class LinearNetwork:
    """A linear network: its three logits are weighted sums of all pixels."""

    def __init__(self, x, training):
        assert not training
        weights = np.random.default_rng(1).normal(size=(6 * 5 * 3, 3)).astype(np.float32)
        self.model = tf.matmul(tf.reshape(x, [-1, 6 * 5 * 3]), weights)
        self.numpy = lambda images: images.reshape(len(images), -1) @ weights


@pytest.mark.parametrize("augmentation", ["none", "flip", "flip_and_shift"])
def test_logits_are_averaged_over_the_variants_of_an_image(graph, rng, augmentation):
    images = rng.normal(size=(4, 6, 5, 3)).astype(np.float32)
    built = []

    def network(x, training):
        built.append(LinearNetwork(x, training))
        return built[-1]

    tensors = averaged_logits(network, tf.constant(images), augmentation)
    with tf.Session() as session:
        averaged, plain = session.run(tensors)
    logits = built[0].numpy

    def both(x):
        return (logits(x) + logits(x[:, :, ::-1])) / 2

    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    shifted = (both(padded[:, 2:, 2:]) + both(padded[:, :-2, :-2])) / 2
    expected = {
        "none": logits(images),
        "flip": both(images),
        "flip_and_shift": (both(images) + shifted) / 2,
    }
    np.testing.assert_allclose(averaged, expected[augmentation], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain, logits(images), rtol=1e-4, atol=1e-4)


def test_gates_and_plain_accuracy_are_those_of_the_images_alone(inputs):
    """The logits of the two images are wrong, and those of their mirror images outweigh them."""

    def network(x, training):
        gates = tf.constant([[0.2], [0.4], [1.0], [1.0]])
        tf.add_to_collection(GATES, Gate("SE", gates.op.name, gates))
        return SimpleNamespace(model=tf.constant([[0.0, 1.0, 0.0]] * 2 + [[3.0, 0.0, 0.0]] * 2))

    hp = RunHyperparameters(test_time_augmentation="flip")
    outputs = evaluation_outputs(network, inputs, hp)
    images = np.zeros([2, 8, 8, 3], np.uint8)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        result = session.run(outputs, {inputs.images: images, inputs.labels: [0, 0]})
    assert result["sums"][[1, -1]].tolist() == [2, 2]
    assert result["plain_sums"].tolist() == [0, 2]
    np.testing.assert_allclose(result["gates"]["SE"], [[0.6], [0], [0]], rtol=1e-6)
    np.testing.assert_array_equal(result["predicted"], [0, 0])
