"""Find or download, verify and read CIFAR-10 and CIFAR-100 in their authors' format.

Each data set has 60,000 colour images of 32x32 pixels in 10 or 100 classes (Krizhevsky, Learning
Multiple Layers of Features from Tiny Images, 2009). Its "python version" is a .tar.gz of pickled
files. Loading a malicious pickle can run any code, and unpacking a malicious archive can write to
any path; this module prevents both.
"""

import dataclasses
import io
import pathlib
import pickle
import shutil
import sys
import tarfile
import tempfile
from typing import Any, Literal

import numpy as np
import pooch

from senet.engine.errors import Failure
from senet.engine.files import open_regular, read_regular
from senet.engine.text import first_line, printable, shown

SIDE = 32  # pixels


@dataclasses.dataclass(frozen=True)
class Cifar:
    """The description of a data set in the CIFAR format: where to find it, the names of its files,
    and the keys of the dicts in them."""

    title: str
    url: str
    hash: str  # of the archive: "sha256:..." or "md5:..."
    archive: str
    folder: str  # in the archive, and in data_dir
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    labels_key: str  # in a batch file
    names_key: str  # in the file of names

    @property
    def files(self):
        """Return the names of all files."""
        return *self.train_files, self.test_file, self.names_file

    @property
    def archive_remedy(self):
        """Return the advice that ends an error message about the archive."""
        return (
            f"remove it and rerun the command to download it again, or replace it with the "
            f"official {self.archive}"
        )

    @property
    def folder_remedy(self):
        """Return the advice that ends an error message about a file in the folder."""
        return (
            f"remove the folder {self.folder} and rerun the command to unpack or download it again"
        )


CIFAR10 = Cifar(
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    hash="sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_file="test_batch",
    names_file="batches.meta",
    labels_key="labels",
    names_key="label_names",
)
CIFAR100 = Cifar(
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    hash="md5:eb9058c3a382ffc7106e4002c42a8d85",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train_files=("train",),
    test_file="test",
    names_file="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
)


def load_cifar(record, data_dir):
    """Return (train images, train labels, test images, test labels, label names) of the data set
    `record`, a Cifar, in the folder `data_dir`. If necessary, download and unpack it there first.

    Images are uint8 [N, 32, 32, 3], labels int32 [N]. Raises Failure if the data set cannot be
    downloaded or unpacked, or if a file is missing, damaged or not in the CIFAR format."""
    folder = pathlib.Path(data_dir) / record.folder
    archive = pathlib.Path(data_dir) / record.archive
    try:
        if not folder.exists():
            if not archive.exists():
                download(record, archive)
            unpack(record, archive)
    except OSError as error:
        raise Failure(
            f"{archive}: cannot be read or written: {first_line(error)}; fix the cause, or use "
            f"another --data_dir"
        ) from None

    label_names = read_label_names(record, folder / record.names_file)
    batches = [read_batch(record, folder / f, len(label_names)) for f in record.train_files]
    train_images, train_labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    test_images, test_labels = read_batch(record, folder / record.test_file, len(label_names))
    return train_images, train_labels, test_images, test_labels, label_names


def download(record, archive):
    """Download the archive of `record` to the path `archive`. The file appears there only once it
    is complete and its hash is verified. Raises Failure if the download fails, OSError if the disk
    cannot be written."""
    pooch.get_logger().setLevel("ERROR")
    downloader: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.retrieve(record.url, record.hash, archive.name, archive.parent, downloader=downloader)
    except PermissionError:
        raise
    # Network errors are OSErrors without an errno; a wrong hash raises ValueError.
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise Failure(
            f"cannot download {record.title}: {first_line(error)}; "
            f"put {record.archive} into {archive.parent}, or use --dataset=shapes"
        ) from None


def unpack(record, archive):
    """Unpack the files of `record` from the path `archive` into the folder `record.folder` next to
    it. The folder appears only once it is complete.

    Prints a note if the archive does not have the official hash. Raises Failure if the archive is
    damaged or contains anything but regular files in that folder."""
    try:
        file = open_regular(archive)
    except OSError as error:
        raise Failure(
            f"{archive}: cannot be read: {first_line(error)}; {record.archive_remedy}"
        ) from None
    algorithm, _, digest = record.hash.partition(":")
    try:
        if pooch.file_hash(archive, algorithm) != digest:
            print(f"note: {printable(archive)} is not the official archive: the hashes differ")
        with (
            file,
            tarfile.open(fileobj=file) as members,
            tempfile.TemporaryDirectory(prefix="unpacking-", dir=archive.parent) as parent,
        ):
            temporary = pathlib.Path(parent) / record.folder
            temporary.mkdir()
            for member in members:
                place, name = member.name.rpartition("/")[::2]
                if member.isdir() and member.name == record.folder:
                    continue
                if not (member.isfile() and place == record.folder):
                    raise Failure(
                        f"{archive} contains {member.name!r}, but may contain only regular files "
                        f"in {record.folder}/; {record.archive_remedy}"
                    )
                if name in record.files and (source := members.extractfile(member)):
                    with (temporary / name).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
            # Read to the end: the checksum of a .gz follows the last member.
            while members.fileobj.read(2**20):
                pass
            for name in record.files:
                if not (temporary / name).exists():
                    raise Failure(
                        f"{archive}: {record.folder}/{name} is missing from the archive; "
                        f"{record.archive_remedy}"
                    )
            folder = archive.parent / record.folder
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise, another process created it first
                    raise
    except Failure:
        raise
    # Decompressors can raise nearly any exception on a damaged archive.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise Failure(
                f"cannot unpack {archive} into {archive.parent}: {error.strerror}; fix the "
                f"cause, then rerun the command"
            ) from None
        raise Failure(
            f"{archive}: cannot be unpacked: {first_line(error)}; {record.archive_remedy}"
        ) from None


def read_batch(record, path, class_count):
    """Return (images, labels) of a batch file: uint8 [N, 32, 32, 3] and int32 [N].

    Raises Failure if the file cannot be read or is not a valid batch file."""
    content, key, remedy = _read_pickle(record, path), record.labels_key, record.folder_remedy
    data, labels = content.get(b"data"), content.get(key.encode())
    if not isinstance(data, _PickledArray):
        raise Failure(f"{path}: 'data' must be an array of bytes, got {shown(data)}; {remedy}")
    data = data.rows
    if data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise Failure(
            f"{path}: 'data' must be an array of bytes with 3,072 columns, got shape "
            f"{list(data.shape)}; {remedy}"
        )
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise Failure(f"{path}: {key!r} must be a list of integers, got {shown(labels)}; {remedy}")
    if not len(data) == len(labels) > 0:
        raise Failure(
            f"{path} must have at least one image, and one label per image, got {len(data)} "
            f"images and {len(labels)} labels; {remedy}"
        )
    if not 0 <= min(labels) <= max(labels) < class_count:
        raise Failure(
            f"{path}: {key!r} must be from 0 to {class_count - 1}, "
            f"got {min(labels)} to {max(labels)}; {remedy}"
        )
    # A row is an image's red plane, then green, then blue.
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int32)


def read_label_names(record, path):
    """Return the names of the classes, a list of str in the order of the labels. Raises Failure if
    the file cannot be read or is not a valid file of names."""
    names = _read_pickle(record, path).get(record.names_key.encode())
    if not (isinstance(names, list) and len(names) > 1 and all(type(n) is bytes for n in names)):
        raise Failure(
            f"{path}: {record.names_key!r}, the names of the classes, must be a list of at least "
            f"2 strings, got {shown(names)}; {record.folder_remedy}"
        )
    return [printable(name.decode(errors="replace")) for name in names]


def _read_pickle(record, path):
    """Return the dict in a pickle file. It may contain strings, ints, lists, dicts and arrays
    of bytes; strings and keys are returned as bytes, since Python 2 wrote them. Raises Failure if
    the file cannot be read or contains anything else."""
    remedy = record.folder_remedy
    try:
        content = io.BytesIO(read_regular(path))
        content = _PlainUnpickler(content, encoding="bytes").load()
    except FileNotFoundError:
        raise Failure(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {first_line(error)}; {remedy}") from None
    except _Unsafe as error:
        raise Failure(
            f"{path} is not safe to load: it uses {first_line(error)}, but may use only what NumPy "
            f"arrays need; {remedy}"
        ) from None
    # The unpickler can raise nearly any exception on a damaged pickle.
    except Exception as error:
        raise Failure(f"{path}: damaged or truncated ({type(error).__name__}); {remedy}") from None
    if not isinstance(content, dict):
        raise Failure(
            f"{path} is not a {record.title} file: it must contain a dict, got {shown(content)}; "
            f"{remedy}"
        )
    return content


class _Unsafe(Exception):
    """Raised for a pickle that imports a name that arrays of bytes do not need."""


# The base class is the unpickler written in Python. With the one written in C, a damaged file could
# allocate gigabytes, because its memo table grows to whatever index the file specifies.
class _PlainUnpickler(pickle._Unpickler):
    """An unpickler that imports nothing: functions of this module replace the few names that Python
    2 and 3 use to pickle bytes and NumPy arrays; all others raise _Unsafe."""

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
        raise _Unsafe(f"{module}.{name}")


class _PickledType:
    """The dtype of an array in a pickle."""

    def __init__(self, code):
        self.code = code

    def __setstate__(self, state):
        """Ignore the rest of a dtype: bytes have no byte order and no fields."""


class _PickledArray:
    """An array of bytes in a pickle; `rows` has its values, as uint8."""

    def __init__(self, raw=b"", dtype=None, shape=(0,), order: Literal["C", "F"] = "C"):
        if dtype is not None and dtype.code not in (b"u1", "u1"):
            raise ValueError("not an array of bytes")
        self.rows = np.frombuffer(raw, np.uint8).reshape(shape, order=order)

    def __setstate__(self, state):
        _, shape, dtype, column_major, raw = state
        self.__init__(raw, dtype, shape, "F" if column_major else "C")
