"""A cache of decoded images in memory-mapped files, which may be larger than memory.

cache_dir/lock                     lock file, held by the process that is writing
cache_dir/DIGEST-SIDE/images.npy   uint8 [N, side, side, 3]
cache_dir/DIGEST-SIDE/sums.json    their ImageSums, one for each split
cache_dir/new/                     a cache that is being written; renamed when it is complete

DIGEST is a digest of the image files, SIDE the width and height of the images in pixels.
"""

import contextlib
import json
import math
import shutil
import zlib
from typing import NamedTuple

import filelock
import numpy as np

from senet.engine.errors import Failure, HyperparameterError
from senet.engine.files import flush, lock
from senet.engine.text import first_line, printable

CHUNK = 2**22  # bytes of images that are summed at a time


class ImageSums(NamedTuple):
    """Sums over images, and a checksum that depends on their order."""

    sums: list  # of 3 ints: the sum of each channel's values
    squares: list  # of 3 ints: the sum of their squares
    checksum: int  # CRC-32

    def channel_statistics(self, pixels):
        """Return the mean and standard deviation of each channel, two float32 [3], for images with
        that many `pixels` in total."""
        mean, square = np.divide(self.sums, pixels), np.divide(self.squares, pixels)
        std = np.sqrt(square - np.square(mean))
        return mean.astype(np.float32), np.maximum(std, 1).astype(np.float32)


def sum_images(images):
    """Return the ImageSums of `images`, uint8 [N, height, width, 3]."""
    sums, squares, checksum = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    rows = max(1, CHUNK // images[0].nbytes)
    for first in range(0, len(images), rows):
        chunk = np.ascontiguousarray(images[first : first + rows])
        checksum = zlib.crc32(chunk.data, checksum)
        for number in range(3):
            channel = chunk[..., number]
            sums[number] += channel.sum(dtype=np.int64)
            squares[number] += np.square(channel, dtype=np.uint16).sum(dtype=np.int64)
    return ImageSums(sums.tolist(), squares.tolist(), checksum)


def cached_images(cache_dir, digest, shape, splits, decode):
    """Return (images, sums) from a cache in the folder `cache_dir`: the images, uint8 of `shape`,
    and the ImageSums of each of `splits`, a list of slices. If there is no complete cache, write
    one first: `decode()` yields the images in order. Remove caches with another `digest`.

    Raises Failure if the disk cannot be written, HyperparameterError if the images do not fit."""
    cache = cache_dir / f"{digest}-{shape[1]}"
    try:
        if not (found := _open(cache, shape)):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                stack.callback(_lock(cache_dir).release)
                # Another process may have written it in the meantime.
                found = _open(cache, shape) or _write(cache, digest, shape, splits, decode)
        return found
    except OSError as error:
        remedy = "fix the cause, or use another --data_dir"
        raise Failure(f"cannot write {cache_dir}: {first_line(error)}; {remedy}") from None


def _open(cache, shape):
    """Return (images, sums) of a cache, or None if it is missing or damaged."""
    try:
        images = np.asarray(np.load(cache / "images.npy", mmap_mode="r"))
        sums = [ImageSums(*figures) for figures in json.loads((cache / "sums.json").read_text())]
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return (images, sums) if images.shape == shape else None


def _lock(cache_dir):
    """Return the lock of `cache_dir`, in which only one process at a time may write."""
    try:
        return lock(cache_dir / "lock")
    except filelock.Timeout:
        print(f"waiting for another process to write {printable(cache_dir)}", flush=True)
        return lock(cache_dir / "lock", timeout=-1)


def _write(cache, digest, shape, splits, decode):
    """Remove caches of other images, write one, and return (images, sums)."""
    for path in cache.parent.iterdir():
        if path == cache or path.is_dir() and not path.name.startswith(digest):
            shutil.rmtree(path, ignore_errors=True)
    needed = math.prod(shape) / 1e9
    free = shutil.disk_usage(cache.parent).free / 1e9
    if needed > free:
        raise HyperparameterError(
            f"--image_size={shape[1]} needs {needed:,.3g} GB for {shape[0]:,} images in "
            f"{cache.parent}, but {free:,.3g} GB is free; use a smaller one or another --data_dir"
        )
    temporary = cache.with_name("new")
    temporary.mkdir()
    try:
        # Do not write to a mapping: a full disk would kill the process instead of raising an error.
        with (temporary / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in decode():
                file.write(image.data)
        flush(temporary / "images.npy")
        images = np.asarray(np.load(temporary / "images.npy", mmap_mode="r"))
        sums = [sum_images(images[split]) for split in splits]
        (temporary / "sums.json").write_text(json.dumps(sums))
        temporary.rename(cache)
        return images, sums
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
