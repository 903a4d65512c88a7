import dataclasses
import hashlib
import http.server
import os
import pickle
import tarfile
import threading

import numpy as np
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

from cifar10 import CIFAR10, CIFAR100, load_cifar
from senet.engine.errors import Failure

by_record = pytest.mark.parametrize("record", [CIFAR10, CIFAR100], ids=lambda record: record.title)
ARCHIVE = make_archive(make_files())


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
    assert (train_images.dtype, train_labels.dtype) == (np.uint8, np.int32)
    row = train[-1][b"data"][3]
    for (y, x), channel in zip([(0, 0), (5, 9), (31, 31)], range(3), strict=True):
        assert train_images[3 - count, y, x, channel] == row[1024 * channel + 32 * y + x]


@by_record
@pytest.mark.parametrize("data_dir", [".", "{}", ".."], ids=["folder", "inner", "one level up"])
def test_the_official_format_is_read_wherever_it_is(tmp_path, record, data_dir):
    write_folder(tmp_path / "data", make_files(record=record), record)
    check_loaded(load_cifar(record, tmp_path / "data" / data_dir.format(record.folder)), record)
    assert file_names(tmp_path / "data") == [record.folder]


@by_record
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_an_archive_in_data_dir_is_used_without_the_network(tmp_path, capsys, record, algorithm):
    # Include an additional file, an editor's backup, as the official CIFAR-100 archive does.
    content = make_archive(
        make_files(record=record), tar_member(f"{record.folder}/file.txt~"), record=record
    )
    (tmp_path / record.archive).write_bytes(content)
    local = dataclasses.replace(
        record,
        url="http://localhost:9/nobody-answers",
        hash=f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}",
    )
    check_loaded(load_cifar(local, tmp_path), record)
    assert capsys.readouterr().out == ""
    assert file_names(tmp_path) == sorted([record.folder, record.archive])
    assert file_names(tmp_path / record.folder) == sorted(record.files)


def test_an_archive_with_a_different_hash_is_read_with_a_note(tmp_path, capsys):
    (tmp_path / CIFAR10.archive).write_bytes(ARCHIVE)
    check_loaded(load_cifar(CIFAR10, tmp_path))
    assert "is not the official archive" in capsys.readouterr().out


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
    """Return a function that serves bytes on localhost and returns `record` with their URL, and the
    hash of `expected`."""
    servers = []

    def start(record, expected, content, **settings):
        handler = type("Handler", (Handler,), {"content": content, **settings})
        server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        url = f"http://localhost:{server.server_port}/{record.archive}"
        digest = hashlib.sha256(expected).hexdigest()
        return dataclasses.replace(record, url=url, hash=f"sha256:{digest}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@by_record
def test_a_missing_data_set_is_downloaded_verified_and_unpacked(tmp_path, serve, record):
    content = make_archive(make_files(record=record), record=record)
    data_dir = tmp_path / "not" / "there"
    check_loaded(load_cifar(serve(record, content, content), data_dir), record)
    assert file_names(data_dir) == sorted([record.folder, record.archive])


@pytest.mark.parametrize(
    "content, settings",
    [
        (ARCHIVE, {"cut": 1000}),
        (b"<html>Welcome to the hotel's network</html>", {}),
        (make_archive(make_files(count=21)), {}),
        (b"not found", {"status": 404}),
        (None, {}),
    ],
    ids=["truncated", "html", "different content", "not found", "nobody answers"],
)
def test_a_failed_download_leaves_no_files(tmp_path, serve, content, settings):
    served = serve(CIFAR10, ARCHIVE, content, **settings)
    if content is None:
        served = dataclasses.replace(CIFAR10, url="http://localhost:9/")
    with pytest.raises(Failure) as failure:
        load_cifar(served, tmp_path)
    assert str(failure.value).startswith("cannot download CIFAR-10: ")
    assert str(failure.value).endswith(
        f"; put cifar-10-python.tar.gz into {tmp_path}, or use another --data_dir or "
        f"--dataset=shapes"
    )
    assert file_names(tmp_path) == []


@pytest.mark.parametrize(
    "evil",
    [
        tar_member("../evil", size=4),
        tar_member("/evil-of-cifar10-test", size=4),
        tar_member(f"{CIFAR10.folder}/sub/evil", size=4),
        tar_member(f"{CIFAR10.folder}/data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_member(f"{CIFAR10.folder}/test_batch", type=tarfile.LNKTYPE, linkname="../evil"),
        tar_member(f"{CIFAR10.folder}/batches.meta", type=tarfile.FIFOTYPE),
    ],
    ids=lambda evil: f"{evil.name} {evil.type}",
)
def test_nothing_but_the_files_of_the_data_set_is_unpacked(tmp_path, evil):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / CIFAR10.archive).write_bytes(make_archive(make_files(), evil))
    check_loaded(load_cifar(CIFAR10, data_dir))
    assert file_names(tmp_path) == ["data"]
    assert file_names(data_dir) == sorted([CIFAR10.archive, CIFAR10.folder])
    assert file_names(data_dir / CIFAR10.folder) == sorted(CIFAR10.files)
    assert not os.path.exists("/evil-of-cifar10-test")  # noqa: PTH110


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"",
        ARCHIVE[: len(ARCHIVE) // 2],
        ARCHIVE[:500] + b"oops" + ARCHIVE[504:],
        make_archive({"data_batch_1": b""}),
    ],
    ids=["html", "empty", "truncated", "overwritten", "incomplete"],
)
def test_a_damaged_archive_is_reported_and_leaves_no_files(tmp_path, content):
    archive = tmp_path / CIFAR10.archive
    archive.write_bytes(content)
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value).startswith(f"cannot unpack {archive}: ")
    assert file_names(tmp_path) == [CIFAR10.archive]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_written_by_python_3_are_read(tmp_path, protocol, order):
    folder = write_folder(tmp_path, make_files())
    for seed, name in enumerate(CIFAR10.train_files):
        batch = make_batch(20, seed)
        batch[b"data"] = np.asarray(batch[b"data"], order=order)
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    check_loaded(load_cifar(CIFAR10, tmp_path))


def test_a_pickle_that_runs_code_is_rejected_without_running_it(tmp_path):
    created = tmp_path / "created"
    evil = pickle.dumps({b"data": Exploit(created)}, protocol=2)
    folder = write_folder(tmp_path, {**make_files(), "data_batch_3": evil})
    with pytest.raises(Failure) as failure:
        load_cifar(CIFAR10, tmp_path)
    assert str(failure.value) == (
        f"{folder}/data_batch_3: missing, damaged or not a CIFAR-10 file (UnpicklingError: not "
        f"safe to load, since it uses posix.mkdir); remove the folder {folder} and rerun the "
        f"command to unpack or download it again"
    )
    assert not created.exists()


def pickled_batch(**changes):
    content = make_batch(20, seed=0)
    content.update({name.encode(): value for name, value in changes.items()})
    return python2_pickle(content)


@pytest.mark.parametrize(
    "content",
    [
        None,
        pickled_batch()[:-100],
        b"",
        python2_pickle([1, 2]),
        pickled_batch(data=np.zeros((20, 3071), np.uint8)),
        pickled_batch(data=np.zeros((20, 3072), np.float32)),
        pickled_batch(data=b"none"),
        pickled_batch(labels=[0] * 19),
        pickled_batch(labels=[0.5] * 20),
        pickled_batch(labels=[b"cat"] * 20),
        pickled_batch(labels=[], data=np.zeros((0, 3072), np.uint8)),
    ],
)
def test_a_missing_or_invalid_batch_file_is_reported(tmp_path, content):
    folder = write_folder(tmp_path, make_files())
    (folder / "data_batch_2").unlink()
    if content is not None:
        (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(Failure, match=f"^{folder}/data_batch_2: missing, damaged "):
        load_cifar(CIFAR10, tmp_path)


def test_label_names_become_single_lines_of_valid_text(tmp_path):
    meta = python2_pickle({b"label_names": [b"a\nb", b"caf\xc3\xa9", b"\xff", *(7 * [b"c"])]})
    write_folder(tmp_path, {**make_files(), "batches.meta": meta})
    assert load_cifar(CIFAR10, tmp_path)[4][:3] == [r"a\nb", "caf\u00e9", "\ufffd"]
