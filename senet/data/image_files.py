"""Images of all kinds, from files to what a network takes, by Pillow."""

import concurrent.futures
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from senet.errors import Failure, HyperparameterError, OneLineError, first_line, printable
from senet.files import open_regular
from senet.memory import available_memory

# About large images and damaged EXIF data; what cannot be read is an error anyway.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(OneLineError):
    """A file that is damaged or not an image; the message names it and says why."""


def read_image(path, side):
    """Return the image in a file as uint8 [side, side, 3]: rotated per EXIF, on white where it is
    transparent, centre-cropped to a square, resized. Of an animation, the first frame.

    Raises ImageError if Pillow cannot read it, or if its values do not have 8 or 16 bits."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            # JPEG is decoded at a fraction of its size if that is still large enough.
            image.draft("", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(_as_rgb(image))
            image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
            return np.array(image)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image, or a damaged one") from None
    # A damaged image can make the many decoders raise nearly anything.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as an image: {first_line(error)}") from None


def _as_rgb(image):
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError("its values do not have 8 or 16 bits; convert it first")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would cut off what exceeds 255
        values = np.asarray(image, np.float64) * 255 / 65535
        image = Image.fromarray(np.uint8(np.clip(np.round(values), 0, 255)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_folder(folder, side):
    """Return (train images, train labels, test images, test labels, label names) of the images in
    `folder`/train/<class>/ and `folder`/test/<class>/, resized to `side`.

    Images are uint8 [N, side, side, 3], labels int32 [N]; the names, those of the folders, are in
    alphabetical order. Hidden files do not count. Raises Failure for anything in the folder that
    is missing, empty or not an image, and HyperparameterError if the images would not fit into
    memory."""
    train, test = (pathlib.Path(folder) / split for split in ("train", "test"))
    try:
        classes, test_classes = _classes(train), _classes(test)
        if len(classes) < 2:
            raise Failure(f"{train}: must have folders for at least 2 classes, got {len(classes)}")
        for name in sorted(set(classes) ^ set(test_classes)):
            missing = (test if name in classes else train) / name
            raise Failure(f"{missing}: is missing; each class needs images to train and to test")
        label_names = [_label_name(train / name) for name in classes]
        train_files, test_files = ([_files(s / name) for name in classes] for s in (train, test))
    except OSError as error:
        raise Failure(f"{error.filename}: cannot be read: {first_line(error)}") from None
    count = sum(map(len, train_files + test_files))
    needed, available = count * side * side * 3, available_memory()
    if needed > available:
        raise HyperparameterError(
            f"--image_size={side} is too large: the {count:,} images of {folder} need "
            f"{needed / 1e9:,.3g} GB of memory and {available / 1e9:,.3g} GB are available; "
            f"give a smaller --image_size"
        )
    train, test = _read_split(train, train_files, side), _read_split(test, test_files, side)
    return *train, *test, label_names


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder):
    return [path.name for path in _visible(folder) if path.is_dir()]


def _label_name(folder):
    """Return the name of a class folder for people and for JSON, whatever the locale."""
    try:
        return printable(os.fsencode(folder.name).decode())
    except UnicodeDecodeError:
        raise Failure(f"{folder}: the name is not UTF-8; rename the folder") from None


def _files(folder):
    paths = _visible(folder)
    if not paths:
        raise Failure(f"{folder}: has no images")
    return paths


def _read_split(folder, files, side):
    """Return (images, labels) of `files`, a list of paths for each class."""
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])
    files = [path for paths in files for path in paths]
    images = np.empty([len(files), side, side, 3], np.uint8)
    errors = []

    def read(number):
        try:
            images[number] = read_image(files[number], side)
        except ImageError as error:
            errors.append(str(error))

    # Threads, since Pillow decodes outside of Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(
            pool.map(read, range(len(files))),
            total=len(files),
            desc=f"reading {printable(folder)}",
            unit=" images",
            leave=False,
            disable=None,
            ncols=100,
        )
        for _ in progress:
            pass
    if errors:
        others = f" ({len(errors) - 1:,} more like it)" if len(errors) > 1 else ""
        raise Failure(f"{min(errors)}; fix or remove it{others}")
    return images, labels
