import os

import pytest

from senet.errors import Failure, HyperparameterError, printable, shortened
from senet.files import open_regular, read_regular, replacing


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"
    with open_regular(str(tmp_path / "file")) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    "make, reason",
    [
        (os.mkfifo, "not a regular file but a FIFO"),
        (os.mkdir, "not a regular file but a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file but a device"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to("path"), "Too many levels of symbolic links"),
    ],
    ids=["FIFO", "folder", "zero", "dangling", "loop"],
)
def test_anything_but_a_regular_file_is_rejected_without_blocking(tmp_path, make, reason):
    path = tmp_path / "path"
    make(path)
    with pytest.raises(OSError) as caught:
        read_regular(path, 10)
    assert caught.value.strerror == reason


def test_a_file_replaced_by_a_fifo_is_rejected(tmp_path, monkeypatch):
    """Replace a regular file with a FIFO between the check and the opening."""
    path = tmp_path / "path"
    path.touch()
    regular = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("pathlib.Path.stat", lambda path: regular)
    with pytest.raises(OSError, match="not a regular file but a FIFO"):
        open_regular(path)


def test_the_full_length_of_a_sparse_file_counts(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="it has 1,099,511,627,776 bytes, more than the 10 allowed"):
        read_regular(path, 10)


def test_a_file_of_unknown_size_must_not_exceed_the_limit():
    # Files in /proc report size 0, whatever they contain.
    with pytest.raises(OSError, match="more than the 10 allowed"):
        read_regular("/proc/self/status", 10)


def test_a_replaced_file_is_on_the_disk_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    """Record what is flushed to the disk, and which content the file has at that time."""
    path, flushed = tmp_path / "file", []
    path.write_text("old")

    def fsync(descriptor):
        flushed.append((os.path.realpath(f"/proc/self/fd/{descriptor}"), path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert flushed == [(str(temporary), "old"), (str(tmp_path), "new")]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain caf\u00e9 \u65e5\u672c", "plain caf\u00e9 \u65e5\u672c"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31m\x00\x7f\x85", r"\x1b[31m\x00\x7f\x85"),
        ("\u2028\u2029\udcff", r"\u2028\u2029\udcff"),
    ],
)
def test_a_message_is_one_printable_line(text, shown):
    assert printable(text) == printable(shown) == shown
    assert str(Failure(text)) == str(HyperparameterError(text)) == shown


@pytest.mark.parametrize(
    "names, text",
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b\n", "c", "d", "e"], r"a, b\n, c, d, e"),
        (map(str, range(3000)), "0, 1, 2, 3, 4 and 2,995 more"),
        (["x" * 61], "x" * 60 + "..."),
    ],
)
def test_long_lists_of_names_are_shortened(names, text):
    assert shortened(names) == text
