"""Check that every micro-batch has at least two images: batch norm needs them for the 1x1 maps
at the end of the Inceptions."""

import dataclasses

import numpy as np
import pytest

import SE_Inception_v4
from senet.data.datasets import Split, batches, steps_per_epoch
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.engine.micro_batches import check_micro_batches, sum_over_micro_batches


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


@dataclasses.dataclass(frozen=True)
class Sizes:
    batch_size: int
    micro_batch_size: int
    MIN_MICRO_BATCH = 2


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
        for images in range(2, 25):
            split = Split(np.zeros([images, 1, 1, 3], np.uint8), np.zeros(images, np.int32))
            # At the end of an epoch, batch_size images are fed again.
            fed = [*batches(split, batch_size), split.evenly_spaced(batch_size)]
            found = any(session.run(single, {labels: batch.labels}) for batch in fed)
            try:
                steps = steps_per_epoch(split, batch_size)
                check_micro_batches(images, steps, Sizes(batch_size, micro_batch_size))
                rejected = False
            except HyperparameterError:
                rejected = True
            assert rejected == found, images
