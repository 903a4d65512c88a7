"""Find or download, verify and read CIFAR-10 and CIFAR-100 in their authors' format.

Each has 60,000 colour images of 32x32 pixels (Krizhevsky, Learning Multiple Layers of Features from
Tiny Images, 2009). The "python version" is a .tar.gz of pickled files. Loading a malicious pickle
can run any code, unpacking a malicious archive can write to any path; this module prevents both.
"""

import contextlib
import dataclasses
import io
import pathlib
import pickle
import sys
import tarfile
import tempfile
from typing import Any

import numpy as np
import pooch

from senet.engine.errors import Failure
from senet.engine.text import first_line, printable


@dataclasses.dataclass(frozen=True)
class Cifar:
    """A data set in the CIFAR format: where to find it, its files, and the keys of their dicts."""

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
        return *self.train_files, self.test_file, self.names_file


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
    data_dir = pathlib.Path(data_dir)
    # `data_dir` may be the folder with the files itself, or one level too high.
    folders = [data_dir / record.folder, data_dir, *data_dir.glob(f"*/{record.folder}")]
    complete = [f for f in folders if all((f / name).is_file() for name in record.files)]
    folder = complete[0] if complete else folders[0]
    if not folder.exists():
        archive = data_dir / record.archive
        if not archive.exists():
            download(record, archive)
        unpack(record, archive)
    with _pickled(record, folder / record.names_file) as content:
        names = [name.decode(errors="replace") for name in content[record.names_key.encode()]]
    batches = [read_batch(record, folder / name) for name in record.train_files]
    train_images, train_labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    test = read_batch(record, folder / record.test_file)
    return train_images, train_labels, *test, [*map(printable, names)]


def download(record, archive):
    """Download the archive of `record` to the path `archive`. The file appears there only once it
    is complete and its hash is verified. Raises Failure if the download fails."""
    pooch.get_logger().setLevel("ERROR")
    downloader: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
    try:
        pooch.retrieve(record.url, record.hash, archive.name, archive.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # ValueError for a wrong hash
        raise Failure(
            f"cannot download {record.title}: {first_line(error)}; put {record.archive} into "
            f"{archive.parent}, or use another --data_dir or --dataset=shapes"
        ) from None


def unpack(record, archive):
    """Unpack the files of `record`, and nothing else, from the path `archive` into the folder
    `record.folder` next to it. The folder appears only once it is complete. Prints a note if the
    archive does not have the official hash. Raises Failure if it is damaged or incomplete."""
    folder = archive.parent / record.folder
    algorithm, _, digest = record.hash.partition(":")
    names = [f"{record.folder}/{name}" for name in record.files]
    try:
        if pooch.file_hash(archive, algorithm) != digest:
            print(f"note: {printable(archive)} is not the official archive: the hashes differ")
        with (
            tarfile.open(archive) as tar,
            tempfile.TemporaryDirectory(prefix="unpacking-", dir=archive.parent) as temporary,
        ):
            members = (member for member in tar if member.isfile() and member.name in names)
            tar.extractall(temporary, members, filter="data")
            # Read to the end: the checksum of a .gz follows the last member.
            while tar.fileobj.read(2**20):
                pass
            for name in names:
                if not (pathlib.Path(temporary) / name).exists():
                    raise ValueError(f"{name} is missing")
            (pathlib.Path(temporary) / record.folder).rename(folder)
    # Decompressors can raise nearly any exception on a damaged archive.
    except Exception as error:
        if not folder.exists():  # otherwise, another process was faster
            raise Failure(
                f"cannot unpack {archive}: {first_line(error)}; fix the cause, or remove the "
                f"archive and rerun the command to download it again"
            ) from None


def read_batch(record, path):
    """Return (images, labels) of a batch file: uint8 [N, 32, 32, 3] and int32 [N]. Raises Failure
    if the file cannot be read or is not a valid batch file."""
    with _pickled(record, path) as content:
        rows = content[b"data"]
        if rows.dtype != np.uint8:
            raise TypeError(f"its images are {rows.dtype}, not uint8")
        labels = np.array(content[record.labels_key.encode()])
        # A row is an image's red plane, then green, then blue.
        images = rows.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), labels.astype(np.int32, casting="same_kind")


@contextlib.contextmanager
def _pickled(record, path):
    """Yield the dict in a pickle file, which may contain strings, ints, lists, dicts and arrays of
    bytes. Strings are bytes, since Python 2 wrote them. Raises Failure on any exception in the
    block too, since the dict may be damaged in any way."""
    try:
        yield _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:
        raise Failure(
            f"{path}: missing, damaged or not a {record.title} file ({type(error).__name__}: "
            f"{first_line(error)}); remove the folder {path.parent} and rerun the command to "
            f"unpack or download it again"
        ) from None


# What pickles of bytes and of NumPy arrays import, as NumPy 1 names it
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that imports only what bytes and NumPy arrays need: any other name could run any
    code."""

    def find_class(self, module, name):
        if (module.replace("._core", ".core"), name) not in ALLOWED:
            raise pickle.UnpicklingError(f"not safe to load, since it uses {module}.{name}")
        return super().find_class(module, name)
