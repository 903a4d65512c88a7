"""Read only regular files, replace files atomically, and lock files."""

import contextlib
import errno
import functools
import os
import pathlib
import stat
import sys

import filelock

KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
# From file systems, such as some network shares, without flock or without fsync for folders.
UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def open_regular(path):
    """Open the regular file `path`, or the one that it links to, for reading bytes. Raises OSError
    if it is not a regular file: a FIFO would wait for a writer, and a device may never end."""
    kind = stat.S_IFMT(pathlib.Path(path).stat().st_mode)
    if kind != stat.S_IFREG:
        name = KINDS.get(kind, "device")
        raise OSError(errno.EINVAL, f"not a regular file but a {name}")
    return pathlib.Path(path).open("rb")


def read_regular(path):
    """Return the bytes of the regular file `path`. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


@contextlib.contextmanager
def replacing(path):
    """Yield the path of a temporary file and rename it to `path` at the end of the block. `path` is
    unchanged or complete, even after a power failure. A link is replaced, not followed."""
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
        with _or_warning("fsync", "after a power failure, the newest files may be missing"):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path, timeout=0):
    """Lock the file `path`, creating it if necessary, and return the lock. It ends with its
    `release()` or with the process. Raises filelock.Timeout if another process still holds it after
    `timeout` seconds (-1: no limit)."""
    held = filelock.FileLock(path, timeout=timeout, fallback_to_soft=False)
    with _or_warning("locks", "do not start a second process that writes to the same folder"):
        held.acquire()
    return held


@contextlib.contextmanager
def _or_warning(feature, consequence):
    """Print a warning if the file system does not support what the block calls."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn(f"the file system does not support {feature}; {consequence}")


@functools.cache
def _warn(text):
    """Print a warning, the same only once."""
    print(f"warning: {text}", file=sys.stderr)
