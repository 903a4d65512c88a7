import dataclasses
import errno
import gzip
import hashlib
import http.server
import lzma
import os
import pathlib
import pickle
import socket
import tarfile
import threading

import numpy as np
import pooch
import pytest
from fake_cifar10 import (
    Exploit,
    label_names,
    make_archive,
    make_batch,
    make_files,
    python2_pickle,
    write_folder,
)

import cifar10
from cifar10 import CIFAR10, CIFAR100, load_cifar
from senet.engine.errors import Failure
from senet.engine.text import first_line

by_record = pytest.mark.parametrize("record", [CIFAR10, CIFAR100], ids=lambda record: record.title)


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def tar_member(name, **attributes):
    info = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def check_loaded(loaded, record=CIFAR10, count=20):
    """Assert that `loaded` is the data set that `make_files` wrote."""
    train_images, train_labels, test_images, test_labels, names = loaded
    key, batch_count = record.labels_key.encode(), len(record.train_files)
    *train, test = (make_batch(count, seed, record) for seed in range(batch_count + 1))
    assert train_labels.tolist() == sum((batch[key] for batch in train), [])
    assert test_labels.tolist() == test[key]
    assert names == label_names(record)
    assert train_images.shape == (batch_count * count, 32, 32, 3)
    assert test_images.shape == (count, 32, 32, 3)
    assert train_images.dtype == np.uint8
    row = train[-1][b"data"][3]
    for (y, x), channel in zip([(0, 0), (5, 9), (31, 31)], range(3), strict=True):
        assert train_images[3 - count, y, x, channel] == row[1024 * channel + 32 * y + x]


@by_record
def test_reads_the_official_format(tmp_path, record):
    write_folder(tmp_path, make_files(record=record), record)
    check_loaded(load_cifar(record, tmp_path), record)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_pickles_written_by_python_3(tmp_path, protocol):
    folder = write_folder(tmp_path, make_files())
    for seed, name in enumerate(CIFAR10.train_files):
        (folder / name).write_bytes(pickle.dumps(make_batch(20, seed), protocol))
    check_loaded(load_cifar(CIFAR10, tmp_path))


@by_record
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_an_archive_in_data_dir_is_used_without_the_network(tmp_path, capsys, record, algorithm):
    # Include an additional file, an editor's backup, as the official CIFAR-100 archive does.
    content = make_archive(
        make_files(record=record), tar_member(f"{record.folder}/file.txt~"), record=record
    )
    (tmp_path / record.archive).write_bytes(content)
    record = dataclasses.replace(
        record,
        url="http://localhost:9/nobody-answers",
        hash=f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}",
    )
    loaded = load_cifar(record, tmp_path)
    assert (len(loaded[0]), len(loaded[2])) == (20 * len(record.train_files), 20)
    assert capsys.readouterr().out == ""
    assert file_names(tmp_path) == sorted([record.folder, record.archive])
    assert file_names(tmp_path / record.folder) == sorted(record.files)


def test_an_archive_with_a_different_hash_is_read_with_a_note(tmp_path, capsys):
    (tmp_path / CIFAR10.archive).write_bytes(make_archive(make_files()))
    check_loaded(load_cifar(CIFAR10, tmp_path))
    assert "is not the official archive" in capsys.readouterr().out


@pytest.mark.parametrize(
    "record, published",
    [
        (CIFAR10, "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        (CIFAR100, "md5:eb9058c3a382ffc7106e4002c42a8d85"),
    ],
    ids=["CIFAR-10", "CIFAR-100"],
)
def test_a_record_has_the_published_hash(record, published):
    assert record.hash == published


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler that sends `content` and closes the connection after `cut` bytes."""

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
    """Return a function that serves bytes on localhost and returns their URL."""
    servers = []

    def start(content, **settings):
        handler = type("Handler", (Handler,), {"content": content, **settings})
        server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return f"http://localhost:{server.server_port}/{CIFAR10.archive}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def with_archive_at(record, url, content):
    """Return `record` with its archive at `url` and the hash of `content`."""
    digest = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(record, url=url, hash=f"sha256:{digest}")


@by_record
def test_a_missing_data_set_is_downloaded_verified_and_unpacked(tmp_path, serve, record):
    content = make_archive(make_files(record=record), record=record)
    data_dir = tmp_path / "not" / "there"
    local = with_archive_at(record, serve(content), content)
    assert len(load_cifar(local, data_dir)[3]) == 20
    assert file_names(data_dir) == sorted([record.folder, record.archive])


@pytest.mark.parametrize(
    "content, settings",
    [
        (make_archive(make_files()), {"cut": 1000}),
        (b"<html>Welcome to the hotel's network</html>", {}),
        (make_archive(make_files(count=21)), {}),
        (b"not found", {"status": 404}),
    ],
    ids=["truncated", "html", "different content", "not found"],
)
@by_record
def test_a_failed_download_leaves_no_files_and_suggests_both_remedies(
    tmp_path, serve, content, settings, record
):
    local = with_archive_at(record, serve(content, **settings), make_archive(make_files()))
    with pytest.raises(Failure) as failure:
        load_cifar(local, tmp_path)
    assert str(failure.value).startswith(f"cannot download {record.title}: ")
    assert f"put {record.archive} into {tmp_path}" in str(failure.value)
    assert "--dataset=shapes" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert file_names(tmp_path) == []


@pytest.mark.parametrize(
    "evil",
    [
        tar_member("../evil", size=4),
        tar_member(f"{CIFAR10.folder}/../../evil", size=4),
        tar_member("/evil-of-cifar10-test", size=4),
        tar_member("evil", size=4),
        tar_member(f"{CIFAR10.folder}/sub/evil", size=4),
        tar_member(f"{CIFAR10.folder}/data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_member(f"{CIFAR10.folder}/evil", type=tarfile.LNKTYPE, linkname="../evil"),
        tar_member(f"{CIFAR10.folder}/evil", type=tarfile.FIFOTYPE),
        tar_member(f"{CIFAR10.folder}/evil", type=tarfile.CHRTYPE),
    ],
    ids=lambda evil: f"{evil.name} {evil.type}",
)
def test_an_archive_with_an_unexpected_member_is_rejected(tmp_path, evil):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    archive = data_dir / CIFAR10.archive
    archive.write_bytes(make_archive(make_files(), evil))
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, data_dir)
    assert str(failure.value).startswith(f"{archive} contains {evil.name!r}")
    assert file_names(tmp_path) == ["data"]
    assert file_names(data_dir) == [CIFAR10.archive]
    assert not pathlib.Path("/evil-of-cifar10-test").exists()


ARCHIVE = make_archive(make_files())


def long_names(count):
    """Return a .tar.gz of `count` long-name headers, each of which applies to the next, so that a
    reader has to recurse."""
    header = tar_member("long", type=tarfile.GNUTYPE_LONGNAME, size=4).tobuf(tarfile.GNU_FORMAT)
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
    ids=["html", "empty", "truncated", "overwritten", "truncated xz", "long names", "incomplete"],
)
def test_a_damaged_archive_is_reported_and_leaves_no_files(tmp_path, content, message):
    archive = tmp_path / CIFAR10.archive
    archive.write_bytes(content)
    with pytest.raises(Failure, match=message) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(archive) in str(failure.value)
    assert "\n" not in str(failure.value)
    assert file_names(tmp_path) == [CIFAR10.archive]


def test_a_pickle_that_runs_code_is_rejected_without_running_it(tmp_path):
    created = tmp_path / "created"
    evil = pickle.dumps({b"data": Exploit(created)}, protocol=2)
    pickle.loads(evil)
    assert created.exists()  # a standard unpickler runs the code
    created.rmdir()
    folder = write_folder(tmp_path, {**make_files(), "data_batch_3": evil})
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value).startswith(
        f"{folder}/data_batch_3 is not safe to load: it uses posix"
    )
    assert not created.exists()


def pickled_batch(**changes):
    content = make_batch(20, seed=0)
    content.update({name.encode(): value for name, value in changes.items()})
    return python2_pickle(content)


@pytest.mark.parametrize(
    "content, message",
    [
        (pickled_batch()[:-100], "damaged or truncated"),
        (b"", "damaged or truncated"),
        (b"<html></html>", "damaged or truncated"),
        (python2_pickle([1, 2]), "is not a CIFAR-10 file"),
        (
            pickled_batch(data=np.zeros((20, 3071), np.uint8)),
            "with 3,072 columns, got shape [20, 3071]; ",
        ),
        (pickled_batch(data=np.zeros((20, 3072), np.float32)), "damaged or truncated"),
        (pickled_batch(data=b"none"), "'data' must be an array of bytes, got b'none'; "),
        (pickled_batch(labels=[0] * 19), "20 images and 19 labels"),
        (pickled_batch(labels=[0] * 19 + [10]), "'labels' must be from 0 to 9, got 0 to 10"),
        (pickled_batch(labels=[-1] * 20), "'labels' must be from 0 to 9, got -1 to -1"),
        (pickled_batch(labels=[b"cat"] * 20), "'labels' must be a list of integers, got [b'cat', "),
        (pickled_batch(labels=[], data=np.zeros((0, 3072), np.uint8)), "0 images and 0 labels"),
    ],
)
def test_an_invalid_batch_file_is_reported(tmp_path, content, message):
    folder = write_folder(tmp_path, {**make_files(), "data_batch_2": content})
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value).startswith(f"{folder}/data_batch_2")
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cifar10.shutil, "copyfileobj", full)
    (tmp_path / CIFAR10.archive).write_bytes(ARCHIVE)
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value) == (
        f"cannot unpack {tmp_path / CIFAR10.archive} into {tmp_path}: No space left on device; "
        f"fix the cause, then rerun the command"
    )
    assert file_names(tmp_path) == [CIFAR10.archive]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), PermissionError("no permission")],
    ids=["full disk", "pooch's error"],
)
def test_a_disk_error_during_the_download_is_not_blamed_on_the_network(
    tmp_path, serve, monkeypatch, error
):
    def fail(*_):
        raise error

    local = with_archive_at(CIFAR10, serve(ARCHIVE), ARCHIVE)
    monkeypatch.setattr(pooch.core.shutil, "move", fail)
    with pytest.raises(Failure) as failure:
        load_cifar(local, tmp_path)
    assert str(failure.value) == (
        f"{tmp_path / CIFAR10.archive}: cannot be read or written: {first_line(error)}; "
        f"fix the cause, or use another --data_dir"
    )


@pytest.mark.parametrize("name", [CIFAR10.test_file, "data_batch_5", CIFAR10.names_file])
def test_a_missing_file_is_reported(tmp_path, name):
    files = make_files()
    del files[name]
    folder = write_folder(tmp_path, files)
    with pytest.raises(Failure, match=f"{folder}/{name} is missing"):
        load_cifar(CIFAR10, tmp_path)


def test_error_messages_name_the_data_set(tmp_path):
    files = make_files(record=CIFAR100)
    folder = write_folder(tmp_path, {**files, "test": python2_pickle([1, 2])}, CIFAR100)
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR100, tmp_path)
    assert str(failure.value) == (
        f"{folder}/test is not a CIFAR-100 file: it must contain a dict, got [1, 2]; remove the "
        f"folder cifar-100-python and rerun the command to unpack or download it again"
    )
    (folder / "test").write_bytes(python2_pickle({**make_batch(1, 0), b"fine_labels": [100]}))
    with pytest.raises(Failure, match="'fine_labels' must be from 0 to 99, got 100 to 100"):
        load_cifar(CIFAR100, tmp_path)


def test_label_names_become_single_lines_of_valid_text(tmp_path):
    meta = python2_pickle({b"label_names": [b"a\nb", b"caf\xc3\xa9", b"\xff", *(7 * [b"c"])]})
    write_folder(tmp_path, {**make_files(), "batches.meta": meta})
    assert load_cifar(CIFAR10, tmp_path)[4][:3] == [r"a\nb", "caf\u00e9", "\ufffd"]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = pathlib.Path.cwd()
        os.chdir(path.parent)  # because the path of a socket may have at most 107 bytes
        server.bind(path.name)
        os.chdir(here)


by_irregular_file = pytest.mark.parametrize(
    "make, kind",
    [
        (os.mkfifo, "FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
        (make_socket, "socket"),
        (pathlib.Path.mkdir, "folder"),
    ],
    ids=["FIFO", "zero", "socket", "folder"],
)


@by_irregular_file
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_only_regular_files_are_read(tmp_path, name, make, kind):
    folder = write_folder(tmp_path, make_files())
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value) == (
        f"{folder}/{name}: cannot be read: not a regular file but a {kind}; "
        f"remove the folder cifar-10-batches-py and rerun the command to unpack or download it "
        f"again"
    )


@by_irregular_file
def test_an_archive_must_be_a_regular_file(tmp_path, make, kind):
    make(tmp_path / CIFAR10.archive)
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value) == (
        f"{tmp_path}/cifar-10-python.tar.gz: cannot be read: not a regular file but a {kind}; "
        f"remove it and rerun the command to download it again, or replace it with the official "
        f"cifar-10-python.tar.gz"
    )
    assert file_names(tmp_path) == [CIFAR10.archive]


@pytest.mark.parametrize("name", ["a\nb", "x" * 300])
def test_an_unusual_data_dir_gives_a_one_line_error(tmp_path, name):
    with pytest.raises(Failure) as failure:
        load_cifar(dataclasses.replace(CIFAR10, url="http://localhost:9/"), tmp_path / name)
    assert "\n" not in str(failure.value)
