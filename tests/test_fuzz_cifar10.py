"""Read 1,200 mutated batch files and archives: the reader must return images or raise its own
error, without side effects."""

import pickle
import random

import numpy as np
import pytest
from fake_cifar10 import Exploit, make_archive, make_batch, make_files, python2_pickle

from cifar10 import CIFAR10, load_cifar, read_batch
from senet.engine.errors import Failure

# Pickle opcodes that look up a name, call a function, build an object, or read a length.
DANGEROUS = (
    b"cRbioB\x81\x82\x83\x84\x85\x86\x87\x8a\x8b\x8c\x8d\x8e\x92\x93\x94\x95\x96IJKMGTUXrjpqh.0(2"
)


def mutate(content, rng):
    """Return `content` with one to four random changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        # Half of the changes hit the first bytes, where the structure is.
        place = rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data))
        match rng.randrange(6):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.choice(DANGEROUS)
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del data[place : place + rng.randint(1, 40)]
            case 4:
                data[place : place + 4] = rng.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)])
            case 5:
                del data[place + 1 :]
        if not data:
            break
    return bytes(data)


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def reads_images(function):
    """Return True if `function` returns valid images, and False if it raises the reader's own
    error. Let all other errors through."""
    try:
        images, labels = function()
    except Failure as failure:
        assert "\n" not in str(failure)
        return False
    assert images.dtype == np.uint8
    assert images.shape[1:] == (32, 32, 3)
    assert 0 <= labels.min() <= labels.max() < 10
    return True


@pytest.mark.parametrize("kind", ["python 2", "python 3", "malicious"])
def test_mutated_batch_files_are_read_or_rejected(tmp_path, kind):
    rng = random.Random(kind)
    created = tmp_path / "created"
    batch = make_batch(3, seed=0)
    seeds = {
        "python 2": python2_pickle(batch),
        "python 3": pickle.dumps(batch, protocol=4),
        "malicious": python2_pickle({b"labels": [1, 2, 3], b"x": Exploit(created), **batch}),
    }
    path = tmp_path / "data_batch_1"
    outcomes = set()
    for _ in range(300):
        path.write_bytes(mutate(seeds[kind], rng))
        outcomes.add(reads_images(lambda: read_batch(CIFAR10, path, 10)))
        assert file_names(tmp_path) == ["data_batch_1"]
    assert outcomes == ({False} if kind == "malicious" else {True, False})


def test_mutated_archives_are_read_or_rejected(tmp_path):
    rng = random.Random(0)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    plain = make_archive(make_files(count=2), compression="")
    outcomes = set()
    for number in range(300):
        archive = data_dir / CIFAR10.archive
        folder = data_dir / CIFAR10.folder
        # A mutated .gz nearly always fails its checksum; a mutated .tar can often still be read.
        content = plain if number % 3 else make_archive(make_files(count=2))
        archive.write_bytes(mutate(content, rng))
        outcomes.add(reads_images(lambda: load_cifar(CIFAR10, data_dir)[:2]))
        assert file_names(tmp_path) == ["data"]
        assert set(file_names(data_dir)) <= {CIFAR10.archive, CIFAR10.folder}
        if folder.exists():
            assert set(file_names(folder)) == set(CIFAR10.files)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    assert outcomes == {True, False}
