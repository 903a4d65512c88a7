import os
import re
import signal
import tarfile

import numpy as np
import pytest
from fake_cifar10 import label_names, make_archive, make_files, write_folder
from image_folders import plain, save

from cifar10 import CIFAR10, CIFAR100
from senet.data.datasets import (
    LOADERS,
    Dataset,
    Split,
    batches,
    epoch_order,
    load_dataset,
    steps_per_epoch,
)
from senet.data.inputs import image_inputs
from senet.data.shapes import OUTLINES, load_shapes
from senet.engine.compat import tf
from senet.engine.errors import Failure, HyperparameterError


@pytest.fixture
def split(rng):
    """Return a Split of 23 images, each filled with its number."""
    images = np.broadcast_to(np.arange(23, dtype=np.uint8)[:, None, None, None], (23, 32, 32, 3))
    return Split(images, np.arange(23, dtype=np.int32))


@pytest.mark.parametrize(
    "batch_size, sizes",
    [(1, [1] * 23), (5, [5, 5, 5, 4, 4]), (22, [12, 11]), (23, [23]), (100, [23])],
)
def test_batches_contain_every_image_once_with_its_label(split, batch_size, sizes):
    order = epoch_order(split, seed=1, epoch=1)
    parts = list(batches(split, batch_size, order))
    assert [len(part.labels) for part in parts] == sizes
    assert len(parts) == steps_per_epoch(split, batch_size)
    labels = np.concatenate([part.labels for part in parts])
    assert sorted(labels) == list(range(23))
    assert labels.tolist() == np.concatenate([part.images[:, 0, 0, 0] for part in parts]).tolist()
    rest = [part.labels.tolist() for part in batches(split, batch_size, order, first=1)]
    assert rest == [part.labels.tolist() for part in parts[1:]]


def test_order_depends_only_on_seed_and_epoch(split):
    order = epoch_order(split, seed=1, epoch=1).tolist()
    assert epoch_order(split, seed=1, epoch=1).tolist() == order
    assert epoch_order(split, seed=1, epoch=2).tolist() != order
    assert epoch_order(split, seed=2, epoch=1).tolist() != order


def test_channel_statistics_match_numpy(rng):
    images = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    images[..., 2] = 7  # a constant channel must not cause a division by zero
    train = Split(images, np.zeros(50, np.int32))
    mean, std = Dataset(
        "noise", train, Split(images[:1], train.labels[:1]), []
    ).channel_statistics()
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, [images[..., 0].std(), images[..., 1].std(), 1], rtol=1e-6)


def test_images_are_normalised_with_the_saved_statistics_of_the_training_set(graph, rng):
    train = Split(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
    test = Split(rng.integers(100, 120, (5, 4, 4, 3), np.uint8), np.ones(5, np.int32))
    inputs = image_inputs(Dataset("noise", train, test, ["a", "b"]))
    expected = (test.images - train.images.mean((0, 1, 2))) / train.images.std((0, 1, 2))
    fetches = inputs.normalised, inputs.to_uint8(inputs.normalised)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        normalised, undone = session.run(fetches, {inputs.images: test.images})
    np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(undone, test.images)
    names = [v.op.name for v in tf.global_variables()]
    assert names == ["input/mean", "input/std", "input/label_names"]
    assert tf.trainable_variables() == []


@pytest.mark.parametrize("number, array", [(0, "images"), (0, "labels"), (1, "images")])
def test_swapping_two_images_or_labels_changes_the_checksums(rng, number, array):
    images = rng.integers(0, 256, (9, 4, 4, 3), np.uint8)
    splits = [Split(images.copy(), np.arange(9, dtype=np.int32)) for _ in range(2)]
    data = Dataset("noise", *splits, [])
    before = data.checksums()
    assert data.checksums() == before
    changed = getattr(splits[number], array)
    changed[[0, 1]] = changed[[1, 0]]
    assert data.checksums() != before


def test_cifar100_is_loaded_by_name(tmp_path):
    write_folder(tmp_path, make_files(count=2000, record=CIFAR100), CIFAR100)
    data = load_dataset("cifar100", tmp_path)
    assert (data.name, data.label_names) == ("cifar100", label_names(CIFAR100))
    assert (len(data.train.labels), len(data.test.labels)) == (2000, 2000)


def test_one_entry_adds_a_data_set(monkeypatch):
    """Labels of any integer type, also of every second element, become int32; names, text."""
    images = np.zeros([2, 64, 64, 3], np.uint8)
    every_second = np.arange(4)[::2] // 2
    loaded = images, np.arange(2, dtype=np.uint8), images, every_second, np.array(["a", "b"])
    monkeypatch.setitem(LOADERS, "mine", lambda data_dir: loaded)
    data = load_dataset("mine", "no/data", 64)
    assert data.label_names == ["a", "b"]
    for split in data.train, data.test:
        assert (split.labels.dtype, split.labels.tolist()) == (np.int32, [0, 1])
    assert len(data.checksums()) == 2
    with pytest.raises(HyperparameterError, match="^--image_size must be 64 for --dataset=mine, "):
        load_dataset("mine", "no/data")


def test_the_message_for_an_unknown_name_lists_the_data_sets():
    with pytest.raises(HyperparameterError) as caught:
        load_dataset("x" * 99, "no/data")
    assert str(caught.value) == (
        f"--dataset must be {', '.join(LOADERS)} or a folder of images, got {'x' * 60}...; "
        f"there is no such folder"
    )


@pytest.mark.parametrize("layout", ["", "train"])
def test_a_folder_of_images_is_not_confused_with_a_built_in_data_set(tmp_path, monkeypatch, layout):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        for number in range(2):
            save(tmp_path / "shapes" / layout / name / f"{number}.png", plain("L", 0))
    with pytest.raises(HyperparameterError) as caught:
        load_dataset("shapes", "data")
    assert str(caught.value) == (
        "--dataset=shapes is a built-in data set, but there is a folder of images with that name; "
        "use --dataset=./shapes for the folder, or rename it for the built-in one"
    )
    if not layout:
        assert load_dataset("./shapes", "data").label_names == ["a", "b"]


def test_a_data_dir_or_run_dir_may_have_the_name_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "cifar10", make_files())
    save(tmp_path / "cifar10" / "excitation.png", plain("L", 0))
    assert load_dataset("cifar10", "cifar10").name == "cifar10"


def test_sample_images_are_of_all_classes():
    labels = np.repeat(np.arange(3, dtype=np.int32), [5, 3, 2])
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3)
    for count in 1, 4, 10, 99:
        chosen = Split(images, labels).sample(count)
        numbers = chosen.images[:, 0, 0, 0]
        assert len({*numbers}) == len(numbers) == min(count, 10)
        assert chosen.labels.tolist() == labels[numbers].tolist()
    # Of 128 images, 32 of each of four classes are expected, with a standard deviation of 5.
    for labels in np.repeat(np.arange(4), 1000), np.tile(np.arange(4), 1000):
        chosen = Split(np.zeros([4000, 1, 1, 3], np.uint8), labels.astype(np.int32)).sample(128)
        assert np.bincount(chosen.labels).min() > 16


class TestShapes:
    def test_each_class_has_200_training_and_50_test_images(self):
        data = load_dataset("shapes", "no/such/folder")
        assert data.train.images.shape == (2000, 32, 32, 3)
        assert data.test.images.shape == (500, 32, 32, 3)
        assert data.train.images.dtype == np.uint8
        assert np.bincount(data.train.labels).tolist() == [200] * 10
        assert np.bincount(data.test.labels).tolist() == [50] * 10
        assert data.label_names == list(OUTLINES)

    def test_images_are_the_same_every_time_and_in_one_split_only(self):
        train, labels, test, test_labels, _ = load_shapes()
        for one, other in zip((train, labels, test, test_labels), load_shapes()[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}

    def test_colour_and_brightness_do_not_reveal_the_class(self):
        """Check that the nearest class mean, computed from each channel's mean and standard
        deviation, is seldom that of the right class."""
        train, labels, test, test_labels, _ = load_shapes()

        def statistics(images):
            flat = images.reshape(len(images), -1, 3) / 255
            return np.concatenate([flat.mean(1), flat.std(1)], axis=1)

        means = np.array([statistics(train[labels == c]).mean(0) for c in range(10)])
        distances = np.linalg.norm(statistics(test)[:, None] - means, axis=-1)
        assert (distances.argmin(1) == test_labels).mean() < 0.25


def test_a_signal_while_unpacking_leaves_no_files(tmp_path, monkeypatch, call):
    def copy(*_):
        assert any(path.name.startswith("unpacking-") for path in tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / CIFAR10.archive).write_bytes(make_archive(make_files()))
    monkeypatch.setattr(tarfile, "copyfileobj", copy)
    status, _, errors = call(f"--data_dir={tmp_path}", f"--run_dir={tmp_path / 'run'}")
    assert (status, errors) == (143, "stopped by SIGTERM; run the same command to restart\n")
    assert [path.name for path in tmp_path.iterdir()] == [CIFAR10.archive]


IMAGES, LABELS = np.zeros([4, 8, 8, 3], np.uint8), np.arange(4)


@pytest.mark.parametrize(
    "images, labels, names, message",
    [
        (IMAGES / 255, LABELS, "abcd", "uint8 [N, side, side, 3], got float64 [4, 8, 8, 3]"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, "abcd", "side, side, 3], got uint8 [4, 3, 8, 8]"),
        (IMAGES[:0], LABELS[:0], "abcd", "[N, side, side, 3], got uint8 [0, 8, 8, 3]"),
        (IMAGES, LABELS / 1, "abcd", "one per image, got uint8 [4, 8, 8, 3] and float64 [4]"),
        (IMAGES, LABELS, "abc", "labels must be from 0 to 2, got 0 to 3"),
        (IMAGES, LABELS - 1, "abcd", "labels must be from 0 to 3, got -1 to 2"),
    ],
)
def test_a_loader_that_returns_other_arrays_is_rejected(
    monkeypatch, images, labels, names, message
):
    arrays = IMAGES, LABELS, images, labels
    monkeypatch.setitem(LOADERS, "mine", lambda data_dir: (*arrays, names))
    with pytest.raises(Failure, match=re.escape(message)) as failure:
        load_dataset("mine", "data", image_size=8)
    assert str(failure.value).startswith("mine: ")


def test_a_class_that_only_the_test_set_has_is_rejected(monkeypatch):
    arrays = IMAGES[:2], LABELS[:2], IMAGES, LABELS
    monkeypatch.setitem(
        LOADERS, "mine", lambda data_dir: (*arrays, "abcd")
    )  # looked up when called
    message = "^mine: class c has test images, but no training images$"
    with pytest.raises(Failure, match=message):
        load_dataset("mine", "data", image_size=8)
    arrays = IMAGES, LABELS, IMAGES, LABELS
    message = "^mine: class . has test images, but no training images; use a smaller --val"
    with pytest.raises(Failure, match=message):
        load_dataset("mine", "data", image_size=8, validation=0.25)


def test_a_fraction_of_the_training_images_can_be_held_out():
    whole = load_dataset("shapes", "", 32)
    data = load_dataset("shapes", "", 32, validation=0.1)
    assert (len(data.train.labels), len(data.validation.labels)) == (1800, 200)
    assert data.tested is data.validation
    np.testing.assert_array_equal(data.test.images, whole.test.images)
    # Every image is in one of the two sets. The order within each is that of the whole.
    parts = [*data.train.images, *data.validation.images]
    assert sorted(map(bytes, parts)) == sorted(map(bytes, whole.train.images))
    # Of 200 images, 20 of each of the ten classes are expected, with a standard deviation of 4.
    assert np.bincount(data.validation.labels).min() > 6
    with pytest.raises(HyperparameterError, match="--validation must hold out at least one of the"):
        load_dataset("shapes", "", 32, validation=0.0001)
