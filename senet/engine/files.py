"""Read only regular files, and replace files atomically."""

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


def open_regular(path):
    """Open the regular file `path`, or the one that it links to, for reading bytes. Raises OSError
    if it is not a regular file: a FIFO would wait for a writer, and a device may never end."""
    mode = pathlib.Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "special file")
        raise OSError(errno.EINVAL, f"not a regular file but a {kind}")
    return pathlib.Path(path).open("rb")


def read_regular(path):
    """Return the bytes of the regular file `path`. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


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
