"""Check how a batch is split into micro-batches, and the sums over them."""

import re

import numpy as np
import pytest

import SE_ResNeXt
from SE_ResNeXt import Hyperparameters, build_graph
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.engine.micro_batches import sum_over_micro_batches
from senet.layers import Dropout


@pytest.mark.parametrize(
    "size, parts",
    [
        (4, [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]),  # 10 images, as evenly as possible
        (5, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (16, [list(range(10))]),
        (0, [list(range(10))]),
    ],
)
def test_every_image_is_in_exactly_one_micro_batch(graph, size, parts):
    images, labels = tf.placeholder(tf.float32, [None, 1]), tf.placeholder(tf.int32, [None])
    total = tf.get_variable("total", [10], trainable=False)

    def tower(batch):
        images, labels = batch
        # Each image's value times the size of its micro-batch, at the index of its label.
        count = tf.cast(tf.size(labels), tf.float32)
        return count * tf.reduce_sum(images * tf.one_hot(labels, 10), axis=0)

    sums = sum_over_micro_batches(tower, (images, labels), size, shaped_like=total)
    with tf.Session() as session:
        values = np.arange(1, 11)
        result = session.run(sums, {images: values[:, None], labels: np.arange(10)})
    sizes = [len(part) for part in parts for _ in part]
    np.testing.assert_array_equal(result, values * sizes)


def test_a_large_batch_is_split_without_overflow(graph):
    """The last boundary, 1,000,000 x 2,500 / 2,500, has a product above 2^31."""
    images = tf.range(1_000_000)
    total = tf.get_variable("total", [], tf.float64, trainable=False)

    def tower(images):
        return tf.reduce_sum(tf.cast(images, tf.float64))

    sums = sum_over_micro_batches(tower, images, 400, shaped_like=total)
    with tf.Session() as session:
        assert session.run(sums) == 999_999 * 1_000_000 / 2


def test_each_micro_batch_has_its_own_dropout(graph):
    images, labels = tf.ones([30, 20]), tf.range(30)
    total = tf.get_variable("total", [30, 20], trainable=False)
    tf.train.get_or_create_global_step()

    def tower(batch):
        images, labels = batch
        row = tf.one_hot(labels, 30, axis=0)
        return tf.matmul(row, Dropout(images, rate=0.5, training=True))

    sums = sum_over_micro_batches(tower, (images, labels), 1, shaped_like=total)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        masks = session.run(sums)
    assert len(np.unique(masks, axis=0)) == 30


def test_the_first_use_of_dropout_in_each_step_is_the_same(graph):
    total = tf.get_variable("total", [4, 50])
    images = tf.ones([4, 50])

    def dropped(images):
        return Dropout(images, rate=0.5, training=True)

    sums = [sum_over_micro_batches(dropped, images, 0, total) for _ in range(2)]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        first, second = session.run(sums)
    np.testing.assert_array_equal(first, second)


@pytest.fixture
def data(rng):
    images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    split = Split(images, rng.integers(0, 3, 8).astype(np.int32))
    return Dataset("noise", split, split, ["a", "b", "c"])


def first_steps(data, parts, micro_batch_size):
    """For each slice in `parts`, run a first step, without weight decay, on its images. Yield its
    gradients and the new moving averages as {name: array}."""
    hp = Hyperparameters(
        cardinality=2,
        depth=2,
        blocks=1,
        reduction_ratio=2,
        padding=0,
        weight_decay=0.0,
        mixed_precision=False,
        micro_batch_size=micro_batch_size,
    )
    with tf.Graph().as_default(), tf.Session() as session:
        graph = build_graph(data, hp)
        initialize = tf.global_variables_initializer()
        # The momentum starts at zero, so after one step it is the gradient.
        variables = [v for v in tf.global_variables() if re.search("Momentum|moving_", v.op.name)]
        for part in parts:
            session.run(initialize)
            batch = Split(data.train.images[part], data.train.labels[part])
            session.run(graph.train_step, graph.feed(batch))
            yield session.run({v.op.name: v for v in variables})


@pytest.mark.slow
def test_a_step_in_micro_batches_is_the_mean_of_one_step_on_each(data, monkeypatch):
    for augment in "shift", "flip":
        monkeypatch.setattr(SE_ResNeXt, augment, lambda images, *_: images)
    slices = [slice(0, 4), slice(4, 8), slice(0, 8)]
    first, second, whole = first_steps(data, slices, micro_batch_size=0)
    (together,) = first_steps(data, slices[2:], micro_batch_size=4)
    for name, value in together.items():
        mean = (first[name] + second[name]) / 2
        np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-6, err_msg=name)
    # Each micro-batch uses its own batch-norm statistics, so this differs from the whole batch.
    weights = "stage3/block1/merge/conv/weights/Momentum"
    assert np.abs(together[weights] - whole[weights]).max() > 1e-3
