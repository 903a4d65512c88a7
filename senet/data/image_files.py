"""Read image files, in any format that Pillow reads, and folders of them."""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import re
import sys
import threading
import unicodedata
import warnings

import numpy as np
import PIL
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from senet.data.image_cache import cached_images
from senet.engine.errors import Failure, OneLineError
from senet.engine.files import open_regular
from senet.engine.text import first_line, printable, shortened

# Ignore metadata, however long or damaged. Limit the pixels by the memory (`_check_memory`).
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = sys.maxsize
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module="PIL")
with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

HEIF = {".heic", ".heif"}
RECOGNISED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow does not decode
ROTATIONS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation: PIL.Image.Transpose
SYSTEM_FOLDERS = {"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
LISTED = 20  # unreadable files in an error message
LARGE = 2**25  # pixels; threads decode larger images one at a time
decoding_large_image = threading.Lock()


class ImageError(OneLineError):
    """A file that cannot be read as an image; the message has its path and the reason."""


def read_image(path, side):
    """Return the image in a file, or its first frame, as uint8 [side, side, 3]: rotated according
    to EXIF, composited onto white, centre-cropped to a square and resized.

    Raises ImageError if Pillow cannot read it, or if it has more than 8 bits per channel."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            # Decode a JPEG at a fraction of its size if that is still large enough.
            image.draft("", (2 * side, 2 * side))
            _to_8_bits(image)
            large = image.width * image.height > LARGE
            with decoding_large_image if large else contextlib.nullcontext():
                if large:
                    _check_memory(image)
                image.load()
                image = _on_white(_upright(image))
                image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
                return np.array(image)
    except UnidentifiedImageError:
        reason = "not an image file, or damaged"
        if _kind(str(path)) in HEIF and "pillow_heif" not in sys.modules:
            reason = "Pillow needs pillow-heif to read it; run: pip install pillow-heif"
        raise ImageError(f"{path}: {reason}") from None
    # Decoders can raise nearly any exception on a damaged image.
    except Exception as error:
        raise ImageError(f"{path}: cannot be read as an image: {first_line(error)}") from None


def _to_8_bits(image):
    """Raise ValueError if an image that is not loaded yet has more than 8 bits per channel: Pillow
    keeps only the upper ones, which are all the same in an image from, say, a thermal camera."""
    stored = " ".join(str(tile[3]) for tile in image.tile)  # in Pillow's notation, such as I;16B
    if image.mode[0] in "IF" or re.search(r";1[0-6]", stored):
        raise ValueError("it has more than 8 bits per channel; convert it to an 8-bit image")
    # Pillow scales the pixels of such a PNG to 8 bits, but not the transparent colour.
    if image.format == "PNG" and stored in ("L;2", "L;4") and "transparency" in image.info:
        image.info["transparency"] *= 85 if stored == "L;2" else 17


def _check_memory(image):
    from senet.engine.memory import available_memory  # imports TensorFlow

    needed = 16e-9 * image.width * image.height  # at most four copies with four bytes per pixel
    free = available_memory() / 1e9
    if needed > free:
        size = f"{image.width:,} x {image.height:,} pixels"
        raise ValueError(f"{size} need {needed:,.3g} GB of memory, but {free:,.3g} GB is free")


def _upright(image):
    """Return a loaded image, rotated according to its EXIF orientation. Other tags are ignored,
    whereas `ImageOps.exif_transpose` fails if one is malformed."""
    rotation = None
    with contextlib.suppress(Exception):  # metadata that cannot be parsed
        rotation = ROTATIONS.get(image.getexif().get(0x0112))
    return image if rotation is None else image.transpose(Image.Transpose(rotation))


def _on_white(image):
    """Return `image` in RGB, composited onto white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_folder(folder, data_dir, side):
    """Return (training set, test set, label names) of the images in the path `folder`, resized to
    `side`. They are in train/<class>/ and test/<class>/ (or val/<class>/), or in <class>/: then, a
    fifth of each class becomes the test set. A set is (uint8 images [N, side, side, 3], int32
    labels [N], ImageSums). The images are decoded once, into a memory-mapped cache in `data_dir`.

    Raises Failure if a class is missing, or an image cannot be read; see also cached_images."""
    train, test = _splits(folder)
    classes = [*train.values(), *test.values()]
    labels = np.repeat(np.tile(np.arange(len(train), dtype=np.int32), 2), [*map(len, classes)])
    files = [file for names in classes for file in names]
    count = sum(map(len, train.values()))  # of training images
    decoder = pathlib.Path(__file__).read_bytes() + PIL.__version__.encode()
    states = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    cache_dir = pathlib.Path(data_dir) / "cache" / _hash(folder.resolve())
    images, sums = cached_images(
        cache_dir,
        _hash((*train, *labels.tolist(), *states), decoder),
        (len(files), side, side, 3),
        [slice(count), slice(count, None)],
        lambda: _decode([file.path for file in files], side, cache_dir / "unreadable.txt"),
    )
    train_set = images[:count], labels[:count], sums[0]
    return train_set, (images[count:], labels[count:], sums[1]), [*map(printable, train)]


def has_images(folder):
    """Return whether folders in `folder` contain images, judging by their extensions."""
    return any(has_image_name(path.name) for path in folder.glob("*/**/*"))


def _splits(folder):
    """Return the training and the test files, each as {class: files}."""
    skipped = collections.Counter()
    train, test, val = (folder / name for name in ("train", "test", "val"))
    test = val if val.is_dir() and not test.is_dir() else test
    if train.is_dir() or test.is_dir():
        for half in train, test:
            if not half.is_dir():
                raise Failure(f"{half} is missing; each class needs training and test images")
        splits = _classes(train, skipped), _classes(test, skipped)
        names = [entry.name for entry in _visible(folder) if entry.is_dir()]
        if other := [name for name in names if name not in (train.name, test.name)]:
            print(f"note: folders ignored in {printable(folder)}: {shortened(other)}")
    else:
        train = test = folder
        splits = _divided(folder, _classes(folder, skipped))
    if skipped:
        kinds = shortened([f"{kind}: {count:,}" for kind, count in sorted(skipped.items())])
        print(f"note: files skipped in {printable(folder)}: {skipped.total():,} ({kinds})")
    few = [train / name for name in splits[1] if not splits[0].get(name)]
    few += [test / name for name in splits[0] if not splits[1].get(name)]
    if few:
        raise Failure(
            f"no images, or too few, in {shortened(few, width=200)}; each class needs training and "
            f"test images"
        )
    return splits


def _divided(folder, classes):
    """Return the training and the test files, each as {class: files}. The test files are a fifth of
    each class: those whose names have the lowest hashes."""
    note = "has no train/ and test/: a fifth of each class, chosen by file name, is the test set"
    print(f"note: {printable(folder)} {note}")
    train = {}
    test = {}
    for name, files in classes.items():
        ranked = sorted(files, key=lambda file: _hash(file.name))
        chosen = {*ranked[: max(1, round(len(files) / 5))]}
        test[name] = [file for file in files if file in chosen]
        train[name] = [file for file in files if file not in chosen]
    return train, test


def _classes(folder, skipped):
    """Return {class: image files, as os.DirEntry} of the folders in `folder`, all sorted. Count
    other files in `skipped`. Names that differ only in Unicode normalisation are one class."""
    classes = collections.defaultdict(list)
    for entry in _visible(folder):
        files = _visible(entry) if entry.is_dir() else [entry]
        images = [file for file in files if file is not entry and _is_image(file)]
        skipped.update(_kind(file.name) for file in {*files}.difference(images))
        if entry.is_dir():
            classes[unicodedata.normalize("NFC", entry.name)] += images
    if len(classes) < 2:
        raise Failure(f"{folder} must have folders for at least 2 classes, got {len(classes)}")
    return {name: classes[name] for name in sorted(classes)}


def _visible(folder):
    """Return the entries of `folder`, sorted, without hidden ones and folders of the system."""
    with os.scandir(folder) as entries:
        shown = [e for e in entries if not e.name.startswith(".") and e.name not in SYSTEM_FOLDERS]
    return sorted(shown, key=lambda entry: entry.name)


def _kind(name):
    """Return the extension of a file name, or the name if there is none, in lower case."""
    return "".join(name.rpartition(".")[1:]).lower()


def has_image_name(name):
    """Return whether a file name has the extension of a format that Pillow can read, or HEIC."""
    kind = _kind(name)
    file_format = Image.registered_extensions().get(kind)
    return file_format in Image.OPEN.keys() - RECOGNISED or kind in HEIF


def _is_image(file):
    """Return False for a file to skip. A folder may contain images, so it is an error, not one."""
    if has_image_name(file.name) or file.is_dir():
        return True
    with contextlib.suppress(Exception), Image.open(file.path) as image:
        return image.format not in RECOGNISED
    return False


def images_below(folder):
    """Return the paths of the images in `folder` and the folders in it, sorted. Files are skipped
    as in training."""
    paths = []
    for entry in _visible(folder):
        if entry.is_dir():
            paths += [] if entry.is_symlink() else images_below(entry)  # links may form a loop
        elif _is_image(entry):
            paths.append(entry.path)
    return paths


def _hash(value, start=b""):
    return hashlib.sha256(start + ascii(value).encode()).hexdigest()[:16]


def _decode(paths, side, report):
    """Yield the images in the files `paths`, uint8 [side, side, 3], in order. If some cannot be
    read, raise Failure at the end; if they are many, list them in the file `report`."""
    errors = []
    bar = tqdm(paths, "reading images", unit=" images", leave=False, disable=None)
    threads = os.cpu_count() or 1
    # Threads are enough, since Pillow releases Python's lock while it decodes.
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(paths), 16 * threads):
            part = paths[first : first + 16 * threads]
            for image in [pool.submit(read_image, path, side) for path in part]:
                try:
                    yield image.result()
                except ImageError as error:
                    errors.append(str(error))
                bar.update()
    if errors:
        shown = "; ".join(errors[:LISTED])
        if len(errors) > LISTED:
            report.write_text("\n".join(errors), "utf-8")
            shown += f"; and {len(errors) - LISTED:,} more, all listed in {report}"
        count = f"{len(errors):,} of {len(paths):,}"
        raise Failure(f"cannot read {count} images, fix or remove them: {shown}")
