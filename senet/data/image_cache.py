"""Images in files that are mapped into memory: as many as the disk holds.

home/lock                        held by the process that writes
home/FILES-SIDE/images.npy       uint8 [N, side, side, 3]
home/FILES-SIDE/summaries.json   their Summaries, one for each split
home/new/                        what is being written

A cache appears under its name when it is complete: no process ever sees half of one.
"""

import contextlib
import json
import os
import shutil

import filelock
import numpy as np

from senet.data.summaries import Summary, summarise
from senet.errors import Failure, HyperparameterError, first_line, printable

REMEDY = "fix that, or give another --data_dir"


def cached_images(home, files, shape, splits, decode):
    """Return (images, summaries) of a cache in the folder `home`: uint8 of `shape`, and a Summary
    for each of `splits`, a list of slices.

    Unless it is there and complete, it is written first: `decode()` yields the images in their
    order. `files` is a string that identifies the files they are from; what is in `home` of other
    files is removed. Raises Failure if the disk cannot be read or written, HyperparameterError if
    the images would not fit on it."""
    cache = home / f"{files}-{shape[1]}"
    if found := _open(cache, shape):
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home):
            if found := _open(cache, shape):  # another process was faster
                return found
            for path in home.iterdir():
                if path == cache or path.is_dir() and not path.name.startswith(files):
                    shutil.rmtree(path, ignore_errors=True)
            _check_space(home, shape)
            _write(cache, shape, splits, decode)
    # filelock raises NotImplementedError on a file system that has no locks.
    except (OSError, NotImplementedError) as error:
        raise Failure(f"cannot write {home}: {first_line(error)}; {REMEDY}") from None
    if found := _open(cache, shape):
        return found
    raise Failure(f"{cache} was removed or damaged by another process; restart")


def _open(cache, shape):
    """Return (images, summaries) of a cache; None if it is not there, or damaged."""
    try:
        images = np.load(cache / "images.npy", mmap_mode="r")
        summaries = json.loads((cache / "summaries.json").read_text("utf-8"))
        summaries = [Summary(*figures) for figures in summaries]
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError, TypeError):
        return None
    except OSError as error:
        raise Failure(f"{cache} cannot be read: {first_line(error)}; {REMEDY}") from None
    complete = (images.shape, images.dtype) == (shape, np.uint8)
    return (np.asarray(images), summaries) if complete else None


@contextlib.contextmanager
def _lock(home):
    """Let one process at a time write in `home`. The lock of a process that was killed is free."""
    lock = filelock.FileLock(home / "lock")
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting for another process to write {printable(home)}", flush=True)
        held = lock.acquire()
    with held:
        yield


def _check_space(home, shape):
    count, side, *_ = shape
    needed, free = count * side * side * 3, shutil.disk_usage(home).free
    if needed > free:
        raise HyperparameterError(
            f"--image_size={side} is too large: {count:,} images need {needed / 1e9:,.3g} GB in "
            f"{home} and {free / 1e9:,.3g} GB are free; free more, or give a smaller --image_size "
            f"or another --data_dir"
        )


def _write(cache, shape, splits, decode):
    aside = cache.with_name("new")
    aside.mkdir()
    try:
        # Written, not mapped: a full disk is then an error instead of the end of the process.
        with (aside / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in decode():
                file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
        images = np.load(aside / "images.npy", mmap_mode="r")
        summaries = [summarise(images[split]) for split in splits]
        (aside / "summaries.json").write_text(json.dumps(summaries), "utf-8")
        aside.rename(cache)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
