"""The data sets by name, and the order in which an epoch sees them."""

from typing import NamedTuple

import numpy as np

from cifar10 import load_cifar10
from senet.data.image_files import load_folder
from senet.data.shapes import load_shapes
from senet.errors import HyperparameterError


class Split(NamedTuple):
    """Pictures with their classes."""

    images: np.ndarray  # uint8 [N, image_size, image_size, 3]
    labels: np.ndarray  # int32 [N], from 0 up to the number of classes

    def first(self, count):
        """The first `count` pictures, or all if there are fewer."""
        return Split(self.images[:count], self.labels[:count])


class Dataset(NamedTuple):
    """What a run trains and tests on."""

    name: str
    train: Split
    test: Split
    label_names: list  # of str, in the order of the labels

    def channel_statistics(self):
        """Mean and standard deviation of each channel of the training pictures, in pixel values:
        two float32 arrays [3]. They serve both splits."""
        # One channel at a time and in whole numbers: exact, and without a float copy of the set.
        channels = [self.train.images[..., channel] for channel in range(3)]
        mean = [channel.mean(dtype=np.float64) for channel in channels]
        square = [np.square(c, dtype=np.uint16).mean(dtype=np.float64) for c in channels]
        std = np.sqrt(np.subtract(square, np.square(mean)))
        return np.float32(mean), np.float32(np.maximum(std, 1))


def load_dataset(name, data_dir, image_size=32):
    """The Dataset `name`: "cifar10", "shapes" or a folder with pictures in train/<class>/ and
    test/<class>/. `data_dir` is where CIFAR-10 is kept, `image_size` the side of the pictures.

    Raises Failure if it cannot be had, HyperparameterError if there is no such data set."""
    if name not in ("cifar10", "shapes"):
        *arrays, label_names = load_folder(name, image_size)
    elif image_size != 32:
        raise HyperparameterError(
            f"image_size={image_size}: the pictures of {name} have 32 pixels a side; image_size is "
            f"for a folder of your own pictures, with larger pictures use --padding"
        )
    else:
        *arrays, label_names = load_shapes() if name == "shapes" else load_cifar10(data_dir)
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name, Split(train_images, train_labels), Split(test_images, test_labels), label_names
    )


def steps_per_epoch(split, batch_size):
    """The number of batches that hold every picture of `split` once."""
    return -(-len(split.labels) // batch_size)


def batches(split, batch_size, order=None, first=0):
    """Yield `split` in `order` (as stored if None) in batches, from batch number `first` on; each
    batch is a Split of at most `batch_size` pictures.

    Sizes differ by one at most, so that no step leans on the few pictures of a short last batch.
    """
    order = np.arange(len(split.labels)) if order is None else order
    for part in np.array_split(order, steps_per_epoch(split, batch_size))[first:]:
        yield Split(split.images[part], split.labels[part])


def epoch_order(split, seed, epoch):
    """The order in which an epoch sees `split`: a permutation keyed by (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(len(split.labels))
