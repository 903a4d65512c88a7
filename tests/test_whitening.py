import tracemalloc

import numpy as np
import numpy_layers as nl
import pytest

import SE_ResNet as script
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.whitening import SHRINKAGE, whitening_filters, whitening_layer


@pytest.fixture
def images(rng):
    """Return noise blurred along the rows: neighbouring pixels are correlated, as in photos."""
    noise = rng.integers(0, 256, (20, 16, 19, 3)).astype(float)
    blurred = sum(noise[:, :, shift : shift + 16] for shift in range(4)) / 4
    return blurred.astype(np.uint8)


def test_whitened_patches_are_uncorrelated(images):
    mean, std = np.array([100.0, 90.0, 80.0]), np.array([50.0, 60.0, 70.0])
    filters = whitening_filters(images, mean, std, filters=24, side=2).reshape(12, 24).astype(float)
    pixels = (images - mean) / std
    patches = np.array(
        [
            image[row : row + 2, column : column + 2].ravel()
            for image in pixels
            for row in range(0, 15, 2)
            for column in range(0, 15, 2)
        ]
    )
    outputs = patches @ filters
    np.testing.assert_array_equal(outputs[:, :12], -outputs[:, 12:])
    covariance = outputs[:, :12].T @ outputs[:, :12] / len(outputs)
    # An eigenvalue v of the patches' covariance becomes v / (v + SHRINKAGE).
    values = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    np.testing.assert_allclose(covariance, np.diag(values / (values + SHRINKAGE)), atol=1e-4)


def test_the_layer_convolves_with_the_filters(graph, rng):
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    filters = rng.normal(size=(4, 4, 3, 96)).astype(np.float32)
    output = whitening_layer(tf.constant(x), 96, 4, filters, layer_name="stem")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        expected = nl.convolution(x, filters, padding="VALID")
        np.testing.assert_allclose(session.run(output), expected, rtol=1e-4, atol=1e-4)


def test_training_does_not_change_the_filters(graph, images):
    split = Split(np.tile(images, (1, 2, 2, 1)), np.arange(20, dtype=np.int32) % 2)
    data = Dataset("blurred", split, split, ["a", "b"])
    hp = script.Hyperparameters(width=2, reduction_ratio=2, batch_size=10, total_epochs=1)
    built = script.build_graph(data, hp)
    (stem,) = (v for v in tf.global_variables() if v.op.name == "stem/weights")
    assert stem not in tf.trainable_variables()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(built.train_step, built.feed(data.train.sample(10)))
        filters = whitening_filters(data.train.images, *data.channel_statistics(), 24, 2)
        np.testing.assert_array_equal(session.run(stem), filters)


@pytest.mark.parametrize("filters", [0, 23, 26])
def test_an_invalid_number_of_filters_is_rejected(images, filters):
    # Patches of 2x2 pixels with three channels have 12 directions, each with both signs.
    # TensorFlow would fill missing filters with copies of the last value.
    with pytest.raises(ValueError, match=f"from 2 to 24 .*, got {filters}"):
        whitening_filters(images, np.zeros(3), np.ones(3), filters, side=2)


def test_training_without_filters_gives_no_numbers(graph):
    x = whitening_layer(tf.ones([1, 8, 8, 3]), 24, 2, None, layer_name="stem")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert np.isnan(session.run(x)).all()


def test_the_filters_of_many_large_images_need_little_memory():
    """The 6,000 images would take 0.9 GB as they are, and 86 GB as overlapping patches."""
    image = np.arange(224 * 224 * 3, dtype=np.uint8).reshape(1, 224, 224, 3)
    images = np.broadcast_to(image, (6000, 224, 224, 3))
    tracemalloc.start()
    try:
        filters = whitening_filters(images, np.full(3, 128.0), np.full(3, 60.0), 24, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(filters).all()
    assert peak < 0.9e9
