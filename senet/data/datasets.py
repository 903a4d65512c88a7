"""Load data sets by name, and split them into the batches of an epoch."""

import functools
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from cifar10 import CIFAR10, CIFAR100, load_cifar
from senet.data.image_cache import ImageSums, sum_images
from senet.data.image_files import has_images, load_folder
from senet.data.shapes import load_shapes
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.text import shortened

# Each function takes data_dir and returns (train images, train labels, test images, test labels,
# label names): images are uint8 [N, side, side, 3], labels are integers [N] from 0.
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

    def sample(self, count):
        """Return at most `count` random images, always the same. (The first ones of a folder would
        all be of one class, and equal distances can be in step with the order of the classes.)"""
        chosen = np.random.default_rng(0).permutation(len(self.labels))[:count]
        return Split(self.images[chosen], self.labels[chosen])


class Dataset(NamedTuple):
    """The training and the test set of a run."""

    name: str
    train: Split
    test: Split
    label_names: list  # of str, in the order of the labels
    validation: Split | None = None  # training images that are held out

    @property
    def tested(self):
        """The images that test the network after each epoch, a Split."""
        return self.validation or self.test

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and standard deviation of the training images, each float32 [3]."""
        return self.train.image_sums().channel_statistics(self.train.images[..., 0].size)

    def checksums(self):
        """Return [(CRC-32 of the images, CRC-32 of the labels)] of the training and test set."""
        splits = self.train, self.test
        return [(split.image_sums().checksum, zlib.crc32(split.labels.data)) for split in splits]


def load_dataset(name, data_dir, image_size=32, validation=0.0):
    """Return the Dataset `name`: one of LOADERS, with its files in `data_dir`, or a folder of
    images, which are resized to `image_size` and cached in `data_dir`. The fraction `validation` of
    the training images is held out.

    Raises Failure if the images cannot be loaded or are not as LOADERS requires, and
    HyperparameterError if there is no such data set or if it does not allow `image_size`."""
    folder = pathlib.Path(name)
    if name not in LOADERS:
        if not folder.is_dir():
            raise HyperparameterError(
                f"--dataset must be {', '.join(LOADERS)} or a folder of images, got "
                f"{shortened([name])}; there is no such folder"
            )
        train, test, label_names = load_folder(folder, data_dir, image_size)
        data = Dataset(name, Split(*train), Split(*test), label_names)
        return _held_out(data, validation)
    if has_images(folder):
        raise HyperparameterError(
            f"--dataset={name} is a built-in data set, but there is a folder of images with that "
            f"name; use --dataset=./{name} for the folder, or rename it for the built-in one"
        )
    images, labels, test_images, test_labels, label_names = LOADERS[name](data_dir)
    train = _checked_split(name, images, labels, label_names)
    test = _checked_split(name, test_images, test_labels, label_names)
    for side in train.images.shape[1], test.images.shape[1]:
        if side != image_size:
            raise HyperparameterError(
                f"--image_size must be {side} for --dataset={name}, got {image_size}; only images "
                f"in a folder are resized, so use --padding to enlarge the network's input"
            )
    return _held_out(Dataset(name, train, test, [*map(str, label_names)]), validation)


def _held_out(data, fraction):
    """Return a Dataset with a random `fraction` of the training images, always the same, in
    `validation`. This copies the others. Raises Failure if a class has no training images left."""
    count = len(data.train.labels)
    number = round(fraction * count)
    if fraction and not 0 < number < count:
        raise HyperparameterError(
            f"--validation must hold out at least one of the {count:,} training images, but not "
            f"all, got {fraction}"
        )
    if fraction:
        order = np.random.default_rng(0).permutation(count)
        held, kept = (
            Split(data.train.images[part], data.train.labels[part])
            for part in (np.sort(order[:number]), np.sort(order[number:]))
        )
        data = data._replace(train=kept, validation=held)
    for label in np.setdiff1d(data.test.labels, data.train.labels):
        remedy = "; use a smaller --validation" if fraction else ""
        raise Failure(
            f"{data.name}: class {data.label_names[label]} has test images, but no training "
            f"images{remedy}"
        )
    return data


def _checked_split(name, images, labels, label_names):
    """Return a Split. Raises Failure unless the images and labels are as LOADERS requires."""
    images = np.asarray(images)
    labels = np.asarray(labels)
    got = f"got {images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
    count, side, *_ = *images.shape, 0, 0
    if images.dtype != np.uint8 or images.shape != (count, side, side, 3) or not images.size:
        raise Failure(f"{name}: images must be uint8 [N, side, side, 3], {got}")
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise Failure(f"{name}: labels must be integers [N], one per image, {got}")
    low, high, count = labels.min(), labels.max(), len(label_names)
    if low < 0 or high >= count:
        raise Failure(f"{name}: labels must be from 0 to {count - 1}, got {low} to {high}")
    return Split(images, np.ascontiguousarray(labels, np.int32))


def steps_per_epoch(split, batch_size):
    """Return the number of batches in an epoch, which uses every image of `split` once."""
    return -(-len(split.labels) // batch_size)


def batches(split, batch_size, order=None, first=0):
    """Yield the batches of `split` in `order` (as stored if None), starting with batch number
    `first`, which counts from 0. Each batch is a Split of at most `batch_size` images. Batch sizes
    differ by at most one, so that no batch is much smaller than the others."""
    order = np.arange(len(split.labels)) if order is None else order
    for part in np.array_split(order, steps_per_epoch(split, batch_size))[first:]:
        yield Split(split.images[part], split.labels[part])


def epoch_order(split, seed, epoch):
    """Return the order of the images in an epoch, int64 [N]. It depends only on (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(len(split.labels))
