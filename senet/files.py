"""Read only regular files of limited size, and replace files atomically."""

import contextlib
import errno
import os
import pathlib
import stat

KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def open_regular(path, largest=None):
    """Open the regular file `path`, or the one that it links to, for reading bytes.

    Raises OSError, without blocking, if it is not a regular file (a FIFO would wait for a writer,
    and a device may never end) or has more than `largest` bytes."""
    # Check before opening, since opening a device may have side effects, and check the opened file
    # too.
    _check_regular(pathlib.Path(path).stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = _check_regular(os.fstat(descriptor))
        if largest is not None and size > largest:
            raise _too_large(size, largest)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def read_regular(path, largest):
    """Return the bytes of the regular file `path`. Raises OSError as `open_regular` does, and also
    if the file grows beyond `largest` bytes while it is read."""
    with open_regular(path, largest) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise _too_large(len(content), largest)
    return content


@contextlib.contextmanager
def replacing(path):
    """Yield the path of a temporary file and rename it to `path` at the end of the block, so that
    `path` is either unchanged or complete, even after a power failure. A link at `path` is
    replaced, not followed."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # left by a process that was killed, or a link
    yield temporary
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def flush(path):
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_regular(status):
    """Return the size in an `os.stat_result`. Raises OSError if the file is not a regular one."""
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise OSError(errno.EINVAL, f"not a regular file but a {kind}")
    return status.st_size


def _too_large(size, largest):
    return OSError(errno.EFBIG, f"it has {size:,} bytes, more than the {largest:,} allowed")
