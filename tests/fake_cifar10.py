"""CIFAR-10 files with made-up pictures, in the real format."""

import io
import pickle
import struct
import tarfile

import numpy as np

import cifar10

LABEL_NAMES = [f"class {label}".encode() for label in range(10)]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the official files are written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<I", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def make_batch(count, seed):
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"a batch",
        b"labels": rng.integers(0, 10, count).tolist(),
        b"data": rng.integers(0, 256, (count, 3072), np.uint8),
        b"filenames": [b"%d.png" % number for number in range(count)],
    }


def make_files(count=20):
    """{file name: content} of the whole data set, `count` pictures a batch."""
    files = {
        name: python2_pickle(make_batch(count, seed))
        for seed, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE))
    }
    files[cifar10.NAMES_FILE] = python2_pickle({b"label_names": LABEL_NAMES, b"num_vis": 3072})
    return files


def write_folder(data_dir, files):
    folder = data_dir / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_archive(files, *extra_members, compression="gz"):
    """The bytes of a .tar.gz with `files` in their folder, then `extra_members` (TarInfo)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        folder = tarfile.TarInfo(cifar10.FOLDER)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra_members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return file.getvalue()
