"""Small artificial data sets in the official formats of CIFAR-10 and CIFAR-100."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np

from cifar10 import CIFAR10, CIFAR100

CLASSES = {CIFAR10: 10, CIFAR100: 100}


class Python2Pickler(pickle._Pickler):
    """A pickler that writes bytes as Python 2 strings, like those in the official files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<I", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Exploit:
    """An object whose pickle creates a folder when a standard unpickler loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def label_names(record=CIFAR10):
    return [f"class {label}" for label in range(CLASSES[record])]


def make_batch(count, seed, record=CIFAR10):
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"a batch",
        record.labels_key.encode(): rng.integers(0, CLASSES[record], count).tolist(),
        b"data": rng.integers(0, 256, (count, 3072), np.uint8),
        b"filenames": [b"%d.png" % number for number in range(count)],
    }
    return batch | ({b"coarse_labels": [0] * count} if record is CIFAR100 else {})


def make_files(count=20, record=CIFAR10):
    """Return a complete data set, with `count` images per batch file, as {file name: content}."""
    files = {
        name: python2_pickle(make_batch(count, seed, record))
        for seed, name in enumerate((*record.train_files, record.test_file))
    }
    names = [name.encode() for name in label_names(record)]
    meta = {record.names_key.encode(): names, b"coarse_label_names": [b"coarse"]}
    return files | {record.names_file: python2_pickle(meta)}


def write_folder(data_dir, files, record=CIFAR10):
    folder = data_dir / record.folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_archive(files, *extra_members, record=CIFAR10):
    """Return the bytes of a .tar.gz with `files`, in the folder of the data set, and
    `extra_members` (TarInfo)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        folder = tarfile.TarInfo(record.folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{record.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra_members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()
