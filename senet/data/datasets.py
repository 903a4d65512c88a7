"""Load data sets by name, and split them into the batches of an epoch."""

import functools
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from cifar10 import CIFAR10, CIFAR100, load_cifar
from senet.data.image_files import load_folder
from senet.data.image_sums import ImageSums, sum_images
from senet.data.shapes import load_shapes
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.signals import signals_as_exceptions
from senet.engine.text import shortened, shown

# Each function takes data_dir and returns (train images, train labels, test images, test labels,
# label names): images are uint8 [N, side, side, 3], all with the same side, labels are integers [N]
# from 0, names are a list of str.
LOADERS = {
    "cifar10": functools.partial(load_cifar, CIFAR10),
    "cifar100": functools.partial(load_cifar, CIFAR100),
    "shapes": lambda data_dir: load_shapes(),
}


class Split(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # uint8 [N, image_size, image_size, 3]
    labels: np.ndarray  # int32 [N], classes numbered from 0
    sums: ImageSums | None = None  # of the images, if stored with them

    def image_sums(self):
        """Return the ImageSums of the images."""
        return self.sums or sum_images(self.images)

    def evenly_spaced(self, count):
        """Return `count` images at equal distances, or all if there are fewer, in an order that
        mixes the classes. (The first ones of a folder would all be of one class.)"""
        count = min(count, len(self.labels))
        chosen = np.arange(count) * len(self.labels) // count
        chosen = np.random.default_rng(0).permutation(chosen)
        return Split(self.images[chosen], self.labels[chosen])


class Dataset(NamedTuple):
    """The training and the test set of a run."""

    name: str
    train: Split
    test: Split
    label_names: list  # of str, in the order of the labels

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and standard deviation of each channel of the training images, in pixel
        values, as two float32 arrays [3]. Both splits are normalised with them."""
        return self.train.image_sums().channel_statistics(self.train.images[..., 0].size)

    def checksums(self):
        """Return (CRC-32 of the images, CRC-32 of the labels) of the training and of the test set,
        in a list."""
        return [
            (split.image_sums().checksum, zlib.crc32(split.labels.data))
            for split in (self.train, self.test)
        ]


def load_dataset(name, data_dir, image_size=32):
    """Return the Dataset `name`: one of LOADERS, with its files in `data_dir`, or a folder
    whose images, in train/<class>/ and test/<class>/, are resized to `image_size` and cached in
    `data_dir`.

    Raises Failure if the images cannot be loaded or are not as LOADERS requires, and
    HyperparameterError if there is no such data set or if it does not allow `image_size`."""
    if name in LOADERS:
        with signals_as_exceptions():
            *arrays, label_names = LOADERS[name](data_dir)
        train, test = (
            _checked_split(name, images, labels, label_names)
            for images, labels in (arrays[:2], arrays[2:])
        )
        side, test_side = train.images.shape[1], test.images.shape[1]
        if side != test_side:
            raise Failure(
                f"{name}: training and test images must have the same side, got {side} and "
                f"{test_side}"
            )
        if side != image_size:
            raise HyperparameterError(
                f"--image_size must be {side} for --dataset={name}, got {image_size}; only images "
                f"in a folder are resized, so use --padding to enlarge the network's input"
            )
        return Dataset(name, train, test, label_names)
    if not _has_splits(name):
        raise HyperparameterError(
            f"--dataset must be {', '.join(LOADERS)} or a folder with images in train/<class>/ "
            f"and test/<class>/, got {shortened([name])}"
        )
    with signals_as_exceptions():
        *arrays, label_names, sums = load_folder(name, data_dir, image_size)
    train_images, train_labels, test_images, test_labels = arrays
    train = Split(train_images, train_labels, sums[0])
    test = Split(test_images, test_labels, sums[1])
    return Dataset(name, train, test, label_names)


def _checked_split(name, images, labels, label_names):
    """Return a Split. Raises Failure unless the images, labels and names of the classes are as
    LOADERS requires."""
    images, labels = np.asarray(images), np.asarray(labels)
    got = f"got {images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
    sides, channels = set(images.shape[1:3]), images.shape[3:]
    if not (images.dtype == np.uint8 and images.size and len(sides) == 1 and channels == (3,)):
        raise Failure(f"{name}: images must be uint8 [N, side, side, 3], {got}")
    if not (labels.dtype.kind in "iu" and labels.shape == (len(images),)):
        raise Failure(f"{name}: labels must be integers [N], one per image, {got}")
    if not (isinstance(label_names, list) and all(type(label) is str for label in label_names)):
        raise Failure(f"{name}: label names must be a list of str, got {shown(label_names)}")
    if not 0 <= labels.min() <= labels.max() < len(label_names):
        raise Failure(
            f"{name}: labels must be from 0 to {len(label_names) - 1}, got {labels.min()} to "
            f"{labels.max()}"
        )
    return Split(images, np.ascontiguousarray(labels, np.int32))


def _has_splits(folder):
    try:
        return all((pathlib.Path(folder) / split).is_dir() for split in ("train", "test"))
    except OSError:  # such as for a name of 5,000 characters
        return False


def steps_per_epoch(split, batch_size):
    """Return the number of batches in an epoch, which uses every image of `split` once."""
    return -(-len(split.labels) // batch_size)


def batches(split, batch_size, order=None, first=0):
    """Yield the batches of `split` in `order` (as stored if None), starting with batch number
    `first`, which counts from 0. Each batch is a Split of at most `batch_size` images.

    Batch sizes differ by at most one, so that no batch is much smaller than the others.
    """
    order = np.arange(len(split.labels)) if order is None else order
    for part in np.array_split(order, steps_per_epoch(split, batch_size))[first:]:
        yield Split(split.images[part], split.labels[part])


def epoch_order(split, seed, epoch):
    """Return the order of the images of `split` in an epoch, int64 [N]: a permutation that depends
    only on (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(len(split.labels))
