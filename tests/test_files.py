import os

import pytest

from senet.engine.errors import Failure, HyperparameterError
from senet.engine.files import open_regular, read_regular
from senet.engine.text import printable, shortened


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
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
        read_regular(path)
    assert caught.value.strerror == reason


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
