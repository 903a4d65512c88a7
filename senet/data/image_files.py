"""Pictures of all kinds, from files to what a network takes, by Pillow."""

import concurrent.futures
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from senet.errors import Failure, HyperparameterError, first_line

# Of large pictures and damaged EXIF data; what cannot be read is an error all the same.
warnings.filterwarnings("ignore", module="PIL")


class PictureError(ValueError):
    """A file that is no picture, or a damaged one; the text names it and says why."""


def read_picture(path, side):
    """The picture in a file as uint8 [side, side, 3]: turned as its camera says, on white where it
    is transparent, the square in its middle, resized. Of an animation, the first frame.

    Raises PictureError if Pillow cannot read it, or if its values are not of 8 or 16 bits."""
    try:
        with Image.open(path) as picture:
            # JPEG is decoded at a fraction of its size if that is still large enough.
            picture.draft(None, (2 * side, 2 * side))
            picture = ImageOps.exif_transpose(_as_rgb(picture))
            picture = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
            return np.array(picture)
    except IsADirectoryError:
        raise PictureError(f"{path}: is a folder") from None
    # A damaged picture can make the many decoders raise nearly anything.
    except Exception as error:
        reason = first_line(error).replace(f" {str(path)!r}", "")
        raise PictureError(f"{path}: cannot be read as a picture: {reason}") from None


def _as_rgb(picture):
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        raise ValueError("its values are not of 8 or 16 bits; convert it first")
    if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow would cut off what exceeds 255
        values = np.asarray(picture, np.float64) * 255 / 65535
        picture = Image.fromarray(np.uint8(np.clip(np.round(values), 0, 255)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def load_folder(folder, side):
    """(train images, train labels, test images, test labels, label names) of the pictures in
    `folder`/train/<class>/ and `folder`/test/<class>/, resized to `side`.

    Images are uint8 [N, side, side, 3], labels int32 [N]; the names, those of the folders, are in
    alphabetical order. Hidden files do not count. Raises HyperparameterError if there is no such
    folder, Failure for anything in it that is missing, empty or no picture."""
    train, test = (pathlib.Path(folder) / split for split in ("train", "test"))
    if not train.is_dir() or not test.is_dir():
        raise HyperparameterError(
            f"dataset={folder}: takes cifar10, shapes or a folder with pictures in train/<class>/ "
            f"and test/<class>/"
        )
    label_names = _classes(train)
    if len(label_names) < 2:
        raise Failure(f"{train}: needs a folder for each of two classes or more")
    for name in sorted(set(_classes(test)) ^ set(label_names)):
        missing = (test if name in label_names else train) / name
        raise Failure(f"{missing}: is missing; each class needs pictures to train and to test")
    splits = *_read_split(train, label_names, side), *_read_split(test, label_names, side)
    return *splits, label_names


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder):
    return [path.name for path in _visible(folder) if path.is_dir()]


def _read_split(folder, label_names, side):
    paths = [_visible(folder / name) for name in label_names]
    for name, found in zip(label_names, paths, strict=True):
        if not found:
            raise Failure(f"{folder / name}: has no pictures")
    labels = np.repeat(np.arange(len(paths), dtype=np.int32), [len(found) for found in paths])
    paths = [path for found in paths for path in found]
    images = np.empty([len(paths), side, side, 3], np.uint8)
    errors = []

    def read(number):
        try:
            images[number] = read_picture(paths[number], side)
        except PictureError as error:
            errors.append(str(error))

    # Threads, since Pillow decodes outside of Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(
            pool.map(read, range(len(paths))),
            total=len(paths),
            desc=f"reading {folder}",
            unit=" pictures",
            leave=False,
            disable=None,
            ncols=100,
        )
        for _ in progress:
            pass
    if errors:
        others = f" ({len(errors) - 1:,} more like it)" if len(errors) > 1 else ""
        raise Failure(f"{min(errors)}: mend or remove it{others}")
    return images, labels
