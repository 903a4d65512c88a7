"""A cache of decoded images in memory-mapped files, which may be larger than memory.

cache_dir/lock                     lock file, held by the process that is writing
cache_dir/DIGEST-SIDE/images.npy   uint8 [N, side, side, 3]
cache_dir/DIGEST-SIDE/sums.json    their ImageSums, one for each split
cache_dir/new/                     a cache that is being written

DIGEST is a digest of the image files, SIDE the width and height of the images in pixels. A cache is
renamed into place when it is complete, so that no process sees an incomplete one.
"""

import contextlib
import json
import os
import shutil

import filelock
import numpy as np

from senet.data.image_sums import ImageSums, sum_images
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.text import first_line, printable

REMEDY = "fix the cause, or use another --data_dir"


def cached_images(cache_dir, digest, shape, splits, decode):
    """Return (images, sums) from a cache in the folder `cache_dir`: the images, uint8 of `shape`,
    and a list with the ImageSums of each of `splits`, a list of slices.

    If there is no complete cache, write one first: `decode()` yields the images in order. `digest`
    is a string that identifies the image files; caches with another digest are removed. Raises
    Failure if the disk cannot be read or written, HyperparameterError if the images would not fit
    on it."""
    cache = cache_dir / f"{digest}-{shape[1]}"
    if found := _open(cache, shape):
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir):
            if found := _open(cache, shape):  # another process was faster
                return found
            for path in cache_dir.iterdir():
                if path == cache or path.is_dir() and not path.name.startswith(digest):
                    shutil.rmtree(path, ignore_errors=True)
            _check_space(cache_dir, shape)
            _write(cache, shape, splits, decode)
    except OSError as error:
        raise Failure(f"cannot write {cache_dir}: {first_line(error)}; {REMEDY}") from None
    if found := _open(cache, shape):
        return found
    raise Failure(f"{cache} was removed or damaged by another process; rerun the command")


def _open(cache, shape):
    """Return (images, sums) of a cache, or None if it is missing or damaged."""
    try:
        images = np.load(cache / "images.npy", mmap_mode="r")
        sums = json.loads((cache / "sums.json").read_text("utf-8"))
        sums = [ImageSums(*figures) for figures in sums]
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError, TypeError):
        return None
    except OSError as error:
        raise Failure(f"{cache} cannot be read: {first_line(error)}; {REMEDY}") from None
    complete = (images.shape, images.dtype) == (shape, np.uint8)
    return (np.asarray(images), sums) if complete else None


@contextlib.contextmanager
def _lock(cache_dir):
    """Let only one process write in `cache_dir`. A process that is killed releases its lock. Raises
    OSError on a file system that has no locks."""
    lock = filelock.FileLock(cache_dir / "lock", fallback_to_soft=False)
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another process to write {printable(cache_dir)}", flush=True)
        held = lock.acquire()
    with held:
        yield


def _check_space(cache_dir, shape):
    count, side, *_ = shape
    needed, free = count * side * side * 3, shutil.disk_usage(cache_dir).free
    if needed > free:
        raise HyperparameterError(
            f"--image_size={side} is too large: {count:,} images need {needed / 1e9:,.3g} GB in "
            f"{cache_dir}, but {free / 1e9:,.3g} GB is free; free some space, or use a smaller "
            f"--image_size or another --data_dir"
        )


def _write(cache, shape, splits, decode):
    temporary = cache.with_name("new")
    temporary.mkdir()
    try:
        # Write the file instead of mapping it: a full disk then raises an error, whereas writing to
        # a mapping would kill the process.
        with (temporary / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in decode():
                file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
        images = np.load(temporary / "images.npy", mmap_mode="r")
        sums = [sum_images(images[split]) for split in splits]
        (temporary / "sums.json").write_text(json.dumps(sums), "utf-8")
        temporary.rename(cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
