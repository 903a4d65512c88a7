"""CIFAR-10 in the format of its authors: find or download, verify, read.

60,000 colour pictures of 32x32 pixels in 10 classes (Krizhevsky, Learning Multiple Layers of
Features from Tiny Images, 2009), as the "python version": seven pickled files in a .tar.gz.
A pickle can run any code and an archive can write anywhere; here neither can.
"""

import io
import pathlib
import pickle
import shutil
import sys
import tarfile
import tempfile

import numpy as np
import pooch

from senet.errors import Failure, first_line

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
NAMES_FILE = "batches.meta"
FILES = (*TRAIN_FILES, TEST_FILE, NAMES_FILE)
SIDE = 32  # pixels
LARGEST_FILE = 64 * 2**20  # bytes; the official ones have 31 MB
ARCHIVE_REMEDY = f"remove it and start again, or put the official {ARCHIVE} there"
FOLDER_REMEDY = f"remove the folder {FOLDER} and start again"


def load_cifar10(data_dir, url=URL, sha256=SHA256):
    """(train images, train labels, test images, test labels, label names) of the data set in the
    folder `data_dir`, after unpacking or downloading it there if need be.

    Images are uint8 [N, 32, 32, 3], labels int32 [N]. Raises Failure, with one line that names the
    file, for anything that is missing, damaged or not what it should be.
    """
    folder = pathlib.Path(data_dir) / FOLDER
    archive = pathlib.Path(data_dir) / ARCHIVE
    if not folder.exists():
        if not archive.exists():
            download(archive, url, sha256)
        elif pooch.file_hash(archive) != sha256:
            print(f"note: {archive} is not the official archive: its SHA-256 differs")
        unpack(archive, folder)

    label_names = read_label_names(folder / NAMES_FILE)
    batches = [read_batch(folder / name, len(label_names)) for name in TRAIN_FILES]
    train_images, train_labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    test_images, test_labels = read_batch(folder / TEST_FILE, len(label_names))
    return train_images, train_labels, test_images, test_labels, label_names


def download(archive, url=URL, sha256=SHA256):
    """Download `url` to the path `archive`, where it appears only when it is whole and right."""
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(url, f"sha256:{sha256}", archive.name, archive.parent, downloader=downloader)
    # Network and disk raise OSError, a wrong hash ValueError.
    except (OSError, ValueError) as error:
        raise Failure(
            f"cannot download CIFAR-10: {first_line(error)}; "
            f"put {ARCHIVE} into {archive.parent}, or train without it: --dataset=shapes"
        ) from None


def unpack(archive, folder):
    """Unpack the seven files of `archive` into `folder`, which appears only when it is whole.

    Raises Failure if the archive is damaged or holds anything but plain files in one folder."""
    try:
        with (
            tarfile.open(archive) as members,
            tempfile.TemporaryDirectory(prefix="unpacking-", dir=folder.parent) as aside,
        ):
            aside = pathlib.Path(aside) / FOLDER
            aside.mkdir()
            for member in members:
                place, name = member.name.rpartition("/")[::2]
                if member.isdir() and member.name == FOLDER:
                    continue
                if not (member.isfile() and place == FOLDER and member.size <= LARGEST_FILE):
                    raise Failure(
                        f"{archive}: refused, since {member.name!r} does not belong in it; "
                        f"{ARCHIVE_REMEDY}"
                    )
                if name in FILES:
                    with (aside / name).open("wb") as file:
                        shutil.copyfileobj(members.extractfile(member), file)
            # The checksum of what was read stands behind the last member.
            while members.fileobj.read(2**20):
                pass
            for name in FILES:
                if not (aside / name).exists():
                    raise Failure(f"{archive}: {FOLDER}/{name} is missing; {ARCHIVE_REMEDY}")
            try:
                aside.rename(folder)
            except OSError:
                if not folder.exists():  # unless another process was faster
                    raise
    except Failure:
        raise
    # A damaged archive can make the many decompressors raise nearly anything.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise Failure(
                f"cannot unpack {archive} into {folder.parent}: {error.strerror}"
            ) from None
        raise Failure(
            f"{archive}: cannot be unpacked: {first_line(error)}; {ARCHIVE_REMEDY}"
        ) from None


def read_batch(path, class_count):
    """(images, labels) of one batch file: uint8 [N, 32, 32, 3] and int32 [N]."""
    content = _read_pickle(path)
    data, labels = content.get(b"data"), content.get(b"labels")
    data = data.rows if isinstance(data, _PickledArray) else np.empty(0)
    if data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise Failure(f"{path}: 'data' is not an array of rows of 3072 bytes; {FOLDER_REMEDY}")
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise Failure(f"{path}: 'labels' is not a list of whole numbers; {FOLDER_REMEDY}")
    if not len(data) == len(labels) > 0:
        raise Failure(f"{path}: {len(data)} pictures, {len(labels)} labels; {FOLDER_REMEDY}")
    if not 0 <= min(labels) <= max(labels) < class_count:
        raise Failure(
            f"{path}: labels from {min(labels)} to {max(labels)}, "
            f"which is not within 0 to {class_count - 1}; {FOLDER_REMEDY}"
        )
    # A row is a picture's red plane, then green, then blue.
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int32)


def read_label_names(path):
    """The names of the classes, in the order of their labels."""
    names = _read_pickle(path).get(b"label_names")
    if not (isinstance(names, list) and len(names) > 1 and all(type(n) is bytes for n in names)):
        raise Failure(f"{path}: 'label_names' is not a list of texts; {FOLDER_REMEDY}")
    return [name.decode(errors="replace") for name in names]


def _read_pickle(path):
    """The dict in a pickle file, with nothing in it but arrays of bytes, strings, ints, lists and
    dicts; strings and keys are bytes, as Python 2 wrote them. Raises Failure for all else."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Failure(f"{path}: larger than any file of CIFAR-10; {FOLDER_REMEDY}")
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise Failure(f"{path}: is missing; {FOLDER_REMEDY}") from None
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}") from None
    except _Refused as error:
        raise Failure(
            f"{path}: refused, since it asks for {error}, which data has no use for; "
            f"{FOLDER_REMEDY}"
        ) from None
    # A damaged pickle can make the unpickler raise nearly anything.
    except Exception as error:
        raise Failure(
            f"{path}: damaged or cut short ({type(error).__name__}); {FOLDER_REMEDY}"
        ) from None
    if not isinstance(content, dict):
        raise Failure(f"{path}: is not a batch of CIFAR-10; {FOLDER_REMEDY}")
    return content


class _Refused(Exception):
    """A pickle asked for something other than an array."""


# The unpickler written in Python: the one in C can be made to take gigabytes of memory by a damaged
# file (its table of seen objects grows to whatever index the file names).
class _PlainUnpickler(pickle._Unpickler):
    """Unpickles without looking up a single name: the few by which Python 2 and 3 pickle bytes and
    NumPy arrays stand for functions of this module, any other one is refused."""

    def find_class(self, module, name):
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return lambda *_: _PickledArray()
            case ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer"):
                return lambda raw, dtype, shape, order: _PickledArray(raw, dtype, shape, order)
            case ("numpy", "ndarray"):
                return None
            case ("numpy", "dtype"):
                return lambda code, *_: _PickledType(code)
            case ("_codecs", "encode"):
                return lambda text, _: text.encode("latin1")
        raise _Refused(f"{module}.{name}")


class _PickledType:
    """An array's dtype in a pickle."""

    def __init__(self, code):
        self.code = code

    def __setstate__(self, state):
        """The rest of a dtype (byte order, fields) means nothing for bytes."""


class _PickledArray:
    """An array in a pickle; `rows` is what it holds."""

    def __init__(self, raw=b"", dtype=None, shape=(0,), order="C"):
        if dtype is not None and dtype.code not in (b"u1", "u1"):
            raise ValueError("not an array of bytes")
        self.rows = np.frombuffer(raw, np.uint8).reshape(shape, order=order)

    def __setstate__(self, state):
        _, shape, dtype, column_major, raw = state
        self.__init__(raw, dtype, shape, "F" if column_major else "C")
