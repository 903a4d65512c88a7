"""Check how a batch is split into micro-batches, the sums over them, and that each has at least two
images where batch norm needs them: for the 1x1 maps at the end of the Inceptions."""

import re
import types

import numpy as np
import pytest
from scripts import TINY

import SE_Inception_v4
import SE_ResNeXt
from SE_ResNeXt import Hyperparameters, build_graph
from senet.data.datasets import Dataset, Split, batches, steps_per_epoch
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.engine.micro_batches import check_micro_batches, sum_over_micro_batches
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
    sizes = TINY | {"weight_decay": 0.0, "micro_batch_size": micro_batch_size}
    with tf.Graph().as_default(), tf.Session() as session:
        graph = build_graph(data, Hyperparameters(**sizes))
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


@pytest.mark.parametrize(
    "options, words",
    [
        (["--batch_size=4", "--devices=cpu:0,cpu:1,cpu:2,cpu:3"], "a batch of 4 images into 4"),
        (["--batch_size=6", "--devices=cpu:0,cpu:1,cpu:2"], "a batch of 5 images into 3"),
        # 2,000 images in 16 batches of 125.
        (["--micro_batch_size=2"], "a batch of 125 images into 63"),
        (["--micro_batch_size=1"], "a batch of 125 images into 125"),
    ],
)
def test_a_micro_batch_of_one_image_is_rejected(tmp_path, capsys, options, words):
    options = ["--dataset=shapes", f"--run_dir={tmp_path / 'run'}", *options]
    assert SE_Inception_v4.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and "batch norm needs at least 2 images in each" in line


@pytest.mark.parametrize("batch_size", [2, 3, 7, 8])
@pytest.mark.parametrize("micro_batch_size", [0, 1, 2, 3, 4])
def test_a_split_is_rejected_if_and_only_if_a_micro_batch_has_one_image(
    graph, batch_size, micro_batch_size
):
    labels = tf.placeholder(tf.int32, [None])
    count = tf.get_variable("count", [], tf.int32, trainable=False)
    single = sum_over_micro_batches(
        lambda labels: tf.cast(tf.size(labels) < 2, tf.int32),
        labels,
        micro_batch_size,
        shaped_like=count,
    )
    with tf.Session() as session:
        hp = types.SimpleNamespace(
            batch_size=batch_size, micro_batch_size=micro_batch_size, MIN_MICRO_BATCH=2
        )
        for images in range(2, 25):
            split = Split(np.zeros([images, 1, 1, 3], np.uint8), np.zeros(images, np.int32))
            # At the end of an epoch, batch_size images are fed again.
            fed = [*batches(split, batch_size), split.sample(batch_size)]
            found = any(session.run(single, {labels: batch.labels}) for batch in fed)
            try:
                check_micro_batches(images, steps_per_epoch(split, batch_size), hp)
                rejected = False
            except HyperparameterError:
                rejected = True
            assert rejected == found, images
