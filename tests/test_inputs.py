import numpy as np

from senet.data.datasets import Dataset, Split
from senet.data.inputs import image_inputs
from senet.engine.compat import tf


def test_images_are_normalised_with_the_statistics_of_the_training_set(graph, rng):
    train = Split(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
    test = Split(rng.integers(100, 120, (5, 4, 4, 3), np.uint8), np.ones(5, np.int32))
    inputs = image_inputs(Dataset("noise", train, test, ["a", "b"]))
    expected = (test.images - train.images.mean((0, 1, 2))) / train.images.std((0, 1, 2))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        output = session.run(inputs.normalised, {inputs.images: test.images})
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_saved_variables_that_are_not_trained(graph, rng):
    split = Split(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
    image_inputs(Dataset("noise", split, split, ["a", "b"]))
    assert [v.op.name for v in tf.global_variables()] == [
        "input/mean",
        "input/std",
        "input/label_names",
    ]
    assert tf.trainable_variables() == []


def test_to_uint8_undoes_the_normalisation(graph, rng):
    train = Split(rng.integers(0, 256, (9, 8, 8, 3), np.uint8), np.zeros(9, np.int32))
    inputs = image_inputs(Dataset("noise", train, train, ["a", "b"]))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        output = session.run(inputs.to_uint8(inputs.normalised), {inputs.images: train.images})
    np.testing.assert_array_equal(output, train.images)
