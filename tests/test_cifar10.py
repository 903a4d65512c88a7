import errno
import gzip
import hashlib
import http.server
import lzma
import os
import pathlib
import pickle
import tarfile
import threading

import numpy as np
import pytest
from fake_cifar10 import (
    LABEL_NAMES,
    make_archive,
    make_batch,
    make_files,
    python2_pickle,
    write_folder,
)

import cifar10
from cifar10 import load_cifar10
from senet.errors import Failure


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def check_loaded(loaded, count=20):
    """`loaded` is what `make_files` wrote, worked out again from its rows."""
    train_images, train_labels, test_images, test_labels, names = loaded
    batches = [make_batch(count, seed) for seed in range(6)]
    assert train_labels.tolist() == sum((batch[b"labels"] for batch in batches[:5]), [])
    assert test_labels.tolist() == batches[5][b"labels"]
    assert names == [name.decode() for name in LABEL_NAMES]
    assert train_images.shape == (5 * count, 32, 32, 3)
    assert test_images.shape == (count, 32, 32, 3)
    assert train_images.dtype == np.uint8
    row = batches[1][b"data"][3]
    for (y, x), channel in zip([(0, 0), (5, 9), (31, 31)], range(3), strict=True):
        assert train_images[count + 3, y, x, channel] == row[1024 * channel + 32 * y + x]


def test_reads_the_official_format(tmp_path):
    write_folder(tmp_path, make_files())
    check_loaded(load_cifar10(tmp_path))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_python_3_pickled(tmp_path, protocol):
    folder = write_folder(tmp_path, make_files())
    for seed, name in enumerate(cifar10.TRAIN_FILES):
        (folder / name).write_bytes(pickle.dumps(make_batch(20, seed), protocol))
    check_loaded(load_cifar10(tmp_path))


def test_an_archive_in_data_dir_is_used_without_the_network(tmp_path, capsys):
    content = make_archive(make_files())
    (tmp_path / cifar10.ARCHIVE).write_bytes(content)
    nowhere = "http://localhost:9/cifar-10-python.tar.gz"
    check_loaded(load_cifar10(tmp_path, nowhere, hashlib.sha256(content).hexdigest()))
    assert capsys.readouterr().out == ""
    assert names(tmp_path) == [cifar10.FOLDER, cifar10.ARCHIVE]


def test_an_archive_with_another_hash_is_read_and_said_to_be_another(tmp_path, capsys):
    (tmp_path / cifar10.ARCHIVE).write_bytes(make_archive(make_files()))
    check_loaded(load_cifar10(tmp_path))
    assert "is not the official archive" in capsys.readouterr().out


def test_published_hash_is_the_default():
    assert cifar10.SHA256 == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with `content`, and closes the connection after `cut` bytes of it."""

    content, cut, status = b"", None, 200

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """A function that serves bytes from localhost and returns their address."""
    servers = []

    def start(content, **settings):
        handler = type("Handler", (Server,), {"content": content, **settings})
        server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return f"http://localhost:{server.server_port}/{cifar10.ARCHIVE}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_downloads_verifies_and_unpacks(tmp_path, serve):
    content = make_archive(make_files())
    data_dir = tmp_path / "not" / "there"
    check_loaded(load_cifar10(data_dir, serve(content), hashlib.sha256(content).hexdigest()))
    assert names(data_dir) == [cifar10.FOLDER, cifar10.ARCHIVE]


@pytest.mark.parametrize(
    "content, settings",
    [
        (make_archive(make_files()), {"cut": 1000}),
        (b"<html>Welcome to the hotel's network</html>", {}),
        (make_archive(make_files(count=21)), {}),
        (b"not found", {"status": 404}),
    ],
    ids=["cut", "html", "other bytes", "not found"],
)
def test_a_failed_download_leaves_nothing_and_names_both_ways_out(
    tmp_path, serve, content, settings
):
    sha256 = hashlib.sha256(make_archive(make_files())).hexdigest()
    with pytest.raises(Failure) as failure:
        load_cifar10(tmp_path, serve(content, **settings), sha256)
    assert str(failure.value).startswith("cannot download CIFAR-10: ")
    assert f"put {cifar10.ARCHIVE} into {tmp_path}" in str(failure.value)
    assert "--dataset=shapes" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert names(tmp_path) == []


def member(name, **attributes):
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil", size=4),
        member(f"{cifar10.FOLDER}/../../evil", size=4),
        member("/evil-of-cifar10-test", size=4),
        member("evil", size=4),
        member(f"{cifar10.FOLDER}/sub/evil", size=4),
        member(f"{cifar10.FOLDER}/data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(f"{cifar10.FOLDER}/evil", type=tarfile.LNKTYPE, linkname="../evil"),
        member(f"{cifar10.FOLDER}/evil", type=tarfile.FIFOTYPE),
        member(f"{cifar10.FOLDER}/evil", type=tarfile.CHRTYPE),
        member(f"{cifar10.FOLDER}/evil", size=65 * 2**20),
    ],
    ids=lambda evil: f"{evil.name} {evil.type}",
)
def test_an_archive_with_anything_but_plain_files_is_refused(tmp_path, evil):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    archive = data_dir / cifar10.ARCHIVE
    archive.write_bytes(make_archive(make_files(), evil))
    with pytest.raises(Failure) as failure:
        load_cifar10(data_dir)
    assert str(failure.value).startswith(f"{archive}: refused, since {evil.name!r}")
    assert names(tmp_path) == ["data"]
    assert names(data_dir) == [cifar10.ARCHIVE]
    assert not pathlib.Path("/evil-of-cifar10-test").exists()


ARCHIVE = make_archive(make_files())


def long_names(count):
    """A .tar.gz of headers each of which says that the next one holds the name."""
    header = member("long", type=tarfile.GNUTYPE_LONGNAME, size=4).tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(count * (header + bytes(512)))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>not found</html>", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (ARCHIVE[: len(ARCHIVE) // 2], "cannot be unpacked"),
        (ARCHIVE[:500] + b"oops" + ARCHIVE[504:], "cannot be unpacked"),
        (lzma.compress(bytes(5000))[:-40], "cannot be unpacked"),
        (long_names(3000), "cannot be unpacked"),
        (make_archive({"data_batch_1": b""}), "data_batch_2 is missing"),
    ],
    ids=["html", "empty", "cut", "flipped", "cut xz", "long names", "incomplete"],
)
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path, content, message):
    archive = tmp_path / cifar10.ARCHIVE
    archive.write_bytes(content)
    with pytest.raises(Failure, match=message) as failure:
        load_cifar10(tmp_path)
    assert str(archive) in str(failure.value)
    assert "\n" not in str(failure.value)
    assert names(tmp_path) == [cifar10.ARCHIVE]


class Mark:
    """Pickles to something that makes a folder when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    evil = pickle.dumps({b"data": Mark(mark)}, protocol=2)
    pickle.loads(evil)
    assert mark.exists()  # that is what it does
    mark.rmdir()
    folder = write_folder(tmp_path, {**make_files(), "data_batch_3": evil})
    with pytest.raises(Failure) as failure:
        load_cifar10(tmp_path)
    assert str(failure.value).startswith(f"{folder}/data_batch_3: refused, since it asks for posix")
    assert not mark.exists()


def batch(**changes):
    content = make_batch(20, seed=0)
    content.update({name.encode(): value for name, value in changes.items()})
    return python2_pickle(content)


@pytest.mark.parametrize(
    "content, message",
    [
        (batch()[:-100], "damaged or cut short"),
        (b"", "damaged or cut short"),
        (b"<html></html>", "damaged or cut short"),
        (python2_pickle([1, 2]), "is not a batch of CIFAR-10"),
        (batch(data=np.zeros((20, 3071), np.uint8)), "'data' is not an array of rows of 3072"),
        (batch(data=np.zeros((20, 3072), np.float32)), "damaged or cut short"),
        (batch(data=b"none"), "'data' is not an array"),
        (batch(labels=[0] * 19), "20 pictures, 19 labels"),
        (batch(labels=[0] * 19 + [10]), "labels from 0 to 10, which is not within 0 to 9"),
        (batch(labels=[-1] * 20), "labels from -1 to -1"),
        (batch(labels=[b"cat"] * 20), "'labels' is not a list of whole numbers"),
        (batch(labels=[], data=np.zeros((0, 3072), np.uint8)), "0 pictures, 0 labels"),
    ],
)
def test_a_wrong_batch_file_is_named(tmp_path, content, message):
    folder = write_folder(tmp_path, {**make_files(), "data_batch_2": content})
    with pytest.raises(Failure) as failure:
        load_cifar10(tmp_path)
    assert str(failure.value).startswith(f"{folder}/data_batch_2: ")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_disk_that_is_full_does_not_blame_the_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cifar10.shutil, "copyfileobj", full)
    (tmp_path / cifar10.ARCHIVE).write_bytes(ARCHIVE)
    with pytest.raises(Failure) as failure:
        load_cifar10(tmp_path)
    assert str(failure.value) == (
        f"cannot unpack {tmp_path / cifar10.ARCHIVE} into {tmp_path}: No space left on device"
    )
    assert names(tmp_path) == [cifar10.ARCHIVE]


@pytest.mark.parametrize("name", [cifar10.TEST_FILE, "data_batch_5", cifar10.NAMES_FILE])
def test_a_missing_file_is_named(tmp_path, name):
    files = make_files()
    del files[name]
    folder = write_folder(tmp_path, files)
    with pytest.raises(Failure, match=f"{folder}/{name}: is missing"):
        load_cifar10(tmp_path)
