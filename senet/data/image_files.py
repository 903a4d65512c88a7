"""Read image files, in any format that Pillow reads, and folders of them."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
import pathlib
import re
import warnings

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from senet.data.image_cache import cached_images
from senet.engine.errors import Failure, OneLineError
from senet.engine.files import open_regular
from senet.engine.text import first_line, printable

# Ignore warnings about large images and damaged EXIF data; an unreadable image is an error anyway.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(OneLineError):
    """A file that cannot be read as an image; the message has its path and the reason."""


def read_image(path, side):
    """Return the image in a file as uint8 [side, side, 3]: rotated according to EXIF,
    composited onto white, centre-cropped to a square and resized. For an animation, return the
    first frame.

    Raises ImageError if Pillow cannot read it, or if it has more than 8 bits per channel."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            # Decode a JPEG at a fraction of its size if that is still large enough.
            image.draft("", (2 * side, 2 * side))
            _check_depth(image)
            _scale_transparent_colour(image)
            image = ImageOps.exif_transpose(image)
            image = ImageOps.fit(_on_white(image), (side, side), Image.Resampling.BICUBIC)
            return np.array(image)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image file, or damaged") from None
    # Decoders can raise nearly any exception on a damaged image.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as an image: {first_line(error)}") from None


def _check_depth(image):
    """Raise ValueError if an image that is not loaded yet has more than 8 bits per channel. Pillow
    keeps only the upper ones, which are all the same in an image from, say, a thermal camera."""
    stored = " ".join(str(tile[3]) for tile in image.tile)  # in Pillow's notation, such as I;16B
    if image.mode[0] in "IF" or re.search(r";1[0-6]", stored):
        raise ValueError("it has more than 8 bits per channel; convert it to an 8-bit image")


def _scale_transparent_colour(image):
    """Scale the transparent colour of a PNG image that is not loaded yet to 8 bits. Pillow scales
    the pixels, but not this colour."""
    colour = image.info.get("transparency")
    if image.format == "PNG" and colour is not None:
        stored = image.tile[0][3]
        if stored in ("L;2", "L;4"):
            image.info["transparency"] = colour * (85 if stored == "L;2" else 17)


def _on_white(image):
    """Return `image` in RGB, composited onto white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_folder(folder, data_dir, side):
    """Return (train images, train labels, test images, test labels, label names, sums) of the
    images in `folder`/train/<class>/ and `folder`/test/<class>/, resized to `side`.

    Images are uint8 [N, side, side, 3], labels int32 [N]. The label names are those of the class
    folders, in alphabetical order; sums has two items, for the training and test images.
    Hidden files are ignored. The images are decoded once, into a cache under `data_dir` that is
    mapped into memory.

    Raises Failure if a class is missing or empty, if a file is not an image, or if the cache cannot
    be written; HyperparameterError if the images would not fit on its disk."""
    folder = pathlib.Path(folder)
    train, test = folder / "train", folder / "test"
    try:
        classes, test_classes = _classes(train), _classes(test)
        if len(classes) < 2:
            raise Failure(f"{train} must have folders for at least 2 classes, got {len(classes)}")
        for name in sorted(set(classes) ^ set(test_classes)):
            missing = (test if name in classes else train) / name
            raise Failure(f"{missing} is missing; each class needs training and test images")
        label_names = [_label_name(train / name) for name in classes]
        digest = _decoder_hash()
        train_files, test_files = (
            [_files(split / name, digest) for name in classes] for split in (train, test)
        )
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    except OSError as error:
        raise Failure(f"{error.filename}: cannot be read: {first_line(error)}") from None
    train_labels, test_labels = _labels(train_files), _labels(test_files)
    split, paths = len(train_labels), [*itertools.chain(*train_files, *test_files)]
    images, sums = cached_images(
        pathlib.Path(data_dir) / "cache" / name,
        digest.hexdigest()[:16],
        (len(paths), side, side, 3),
        [slice(split), slice(split, None)],
        functools.partial(_decode, folder, paths, side),
    )
    return images[:split], train_labels, images[split:], test_labels, label_names, sums


def _classes(folder):
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _visible(entry) and entry.is_dir())


def _visible(entry):
    return not entry.name.startswith(".")


def _label_name(folder):
    """Return the name of a class folder as printable text, whatever the locale."""
    try:
        return printable(os.fsencode(folder.name).decode())
    except UnicodeDecodeError:
        raise Failure(f"{folder}: the name is not UTF-8; rename the folder") from None


def _decoder_hash():
    """Return a SHA-256 of what determines the decoded images: this file and Pillow's version."""
    return hashlib.sha256(pathlib.Path(__file__).read_bytes() + PIL.__version__.encode())


def _files(folder, digest):
    """Return the paths of the files in `folder`, sorted by name. Update `digest`, a SHA-256, with
    the folder's name and with the name, size and modification time of each file."""
    files = []
    with os.scandir(folder) as entries:
        for entry in filter(_visible, entries):
            status = entry.stat()
            files.append((entry.path, entry.name, status.st_size, status.st_mtime_ns))
    if not files:
        raise Failure(f"{folder} has no images; add some, or remove the class")
    files.sort()
    digest.update(os.fsencode(f"{folder.name}/{len(files)}/"))
    for _, name, size, time in files:
        digest.update(os.fsencode(f"{name}/{size}/{time}/"))
    return [path for path, *_ in files]


def _labels(files):
    """Return the labels, int32 [N], of `files`, one list per class."""
    return np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])


def _decode(folder, paths, side):
    """Yield the images in the files `paths`, uint8 [side, side, 3], in order. Raises Failure at the
    end if some could not be read."""
    errors = []

    def read(path):
        try:
            return read_image(path, side)
        except ImageError as error:
            return error

    progress = tqdm(
        total=len(paths),
        desc=f"reading {printable(folder)}",
        unit=" images",
        leave=False,
        disable=None,
        dynamic_ncols=True,
    )
    threads = os.cpu_count() or 1
    # Threads are enough, since Pillow releases Python's lock while it decodes.
    with progress, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = (pool.submit(read, path) for path in paths)
        # Hold only as many images in memory as are needed to keep the threads busy.
        waiting = collections.deque(itertools.islice(futures, 8 * threads))
        while waiting:
            image = waiting.popleft().result()
            waiting.extend(itertools.islice(futures, 1))
            progress.update()
            if isinstance(image, ImageError):
                errors.append(str(image))
            else:
                yield image
    if errors:
        others = len(errors) - 1
        more = f" ({others:,} more such file{'s' * (others > 1)})" if others else ""
        raise Failure(f"{min(errors)}; fix or remove it{more}")
