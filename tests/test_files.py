"""Check how files are read, replaced and locked, also on file systems with fewer features, and the
text of messages."""

import errno
import fcntl
import os

import pytest

from senet.engine import files
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.text import printable, shortened


@pytest.mark.parametrize(
    "make, reason",
    [
        (os.mkfifo, "not a regular file but a FIFO"),
        (os.mkdir, "not a regular file but a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file but a device"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    ],
    ids=["FIFO", "folder", "zero", "dangling"],
)
def test_anything_but_a_regular_file_is_rejected_without_blocking(tmp_path, make, reason):
    path = tmp_path / "path"
    make(path)
    with pytest.raises(OSError) as caught:
        files.read_regular(path)
    assert caught.value.strerror == reason


def fail_with(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def warned():
    """Forget which warnings were printed."""
    files._warn.cache_clear()


def replace_twice(path):
    for text in "first", "second":
        with files.replacing(path) as temporary:
            temporary.write_text(text)


def test_a_file_system_that_cannot_flush_gives_one_warning(tmp_path, monkeypatch, capsys, warned):
    monkeypatch.setattr(os, "fsync", fail_with(errno.EINVAL))  # older CIFS, vboxsf
    replace_twice(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "second"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "power failure" in line


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys, warned, number):
    monkeypatch.setattr(fcntl, "flock", fail_with(number))
    files.lock(tmp_path / "lock").release()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "second process" in line
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain caf\u00e9 \u65e5\u672c", "plain caf\u00e9 \u65e5\u672c"),
        ("a\nb\rc\td\x1b[31m\x00\x85", r"a\nb\rc\td\x1b[31m\x00\x85"),
        ("\u2028\u2029\udcff", r"\u2028\u2029\udcff"),
    ],
)
def test_a_message_is_one_printable_line(text, shown):
    assert printable(text) == printable(shown) == shown
    assert str(Failure(text)) == str(HyperparameterError(text)) == shown


@pytest.mark.parametrize(
    "names, text",
    [
        (["a", "b\n", "c", "d", "e"], r"a, b\n, c, d, e"),
        (map(str, range(3000)), "0, 1, 2, 3, 4 and 2,995 more"),
        (["x" * 61], "x" * 60 + "..."),
    ],
)
def test_long_lists_of_names_are_shortened(names, text):
    assert shortened(names) == text
