import os
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, run_python
from image_folders import plain, save, write_image_folder
from PIL import Image, PngImagePlugin

from senet.data.datasets import load_dataset
from senet.data.image_files import ImageError, read_image
from senet.engine.errors import Failure


def transparent_palette_image():
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 10, 20, 30])
    image.info["transparency"] = 1  # red, the only colour in the image
    return image


@pytest.mark.parametrize(
    "name, image, colour",
    [
        ("grey.png", plain("L", 100), (100, 100, 100)),
        ("black and white.png", plain("1", 1), (255, 255, 255)),
        ("clear.png", plain("RGBA", (200, 0, 0, 0)), (255, 255, 255)),  # transparent, on white
        ("half.png", plain("RGBA", (0, 0, 0, 51)), (204, 204, 204)),  # black, a fifth opaque
        ("grey with alpha.png", plain("LA", (0, 51)), (204, 204, 204)),
        ("palette.gif", plain("RGB", (0, 255, 0)).quantize(4), (0, 255, 0)),
        ("hole.png", transparent_palette_image(), (255, 255, 255)),
        ("one pixel.png", plain("RGB", (10, 20, 30), (1, 1)), (10, 20, 30)),
        ("a line.png", plain("RGB", (10, 20, 30), (1, 500)), (10, 20, 30)),
        ("small.bmp", plain("RGB", (10, 20, 30), (7, 5)), (10, 20, 30)),
        ("photo.webp", plain("RGB", (0, 0, 0), (300, 200)), (0, 0, 0)),
        ("print.jpg", plain("CMYK", (0, 0, 0, 0)), (255, 255, 255)),
        ("200 megapixels.jpg", plain("L", 7, (20_000, 10_000)), (7, 7, 7)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_kind_of_image_becomes_rgb_of_the_requested_size(tmp_path, name, image, colour):
    path = save(tmp_path / name, image)
    array = read_image(path, 32)
    assert (array.dtype, array.shape) == (np.uint8, (32, 32, 3))
    assert np.abs(array.astype(int) - colour).max() <= 1


def test_an_image_of_the_right_size_is_unchanged(tmp_path, rng):
    array = rng.integers(0, 256, (32, 32, 3), np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(array))
    np.testing.assert_array_equal(read_image(path, 32), array)


def test_an_image_is_centre_cropped(tmp_path):
    array = np.zeros([50, 100, 3], np.uint8)
    array[:, :25, 0] = array[:, 75:, 2] = 255  # red on the left, blue on the right
    array[:, 25:75, 1] = 255
    read = read_image(save(tmp_path / "wide.png", Image.fromarray(array)), 32)
    # Ignore the outermost columns, which resizing blends with their neighbours.
    assert (read[:, 2:-2] == (0, 255, 0)).all()


# Where the quarters of an image, in reading order, are after each EXIF orientation.
ROTATED = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}


@pytest.mark.parametrize("orientation, quarters", ROTATED.items())
@pytest.mark.parametrize(
    "name, mode", [("a.jpg", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.tif", "L")]
)
def test_an_image_is_rotated_per_exif(tmp_path, name, mode, orientation, quarters):
    shades = {"a": 0, "b": 80, "c": 160, "d": 240}
    image = Image.fromarray(np.kron([[0, 80], [160, 240]], np.ones([32, 32])).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = read_image(save(tmp_path / name, image.convert(mode), exif=exif), 32)[8::16, 8::16, 0]
    expected = [shades[quarter] for quarter in quarters]
    np.testing.assert_allclose(shown.ravel(), expected, atol=2)


def exif_block(*entries):
    """Return EXIF data whose first directory has the given entries (tag, type, value)."""
    directory = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + directory + bytes(4)


TURNED = (0x0112, 3, 6 << 16)  # orientation: the top row belongs on the right


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif, turned",
    [
        (exif_block(TURNED), True),
        (exif_block(TURNED, (0x0131, 5, 8)), True),  # the software, as a fraction
        (exif_block(TURNED, (0x011A, 2, 0)), True),  # the resolution, as text
        (exif_block(TURNED, (0x0006, 10, 8), (0x0005, 2, 0)), True),  # an altitude without GPS
        (exif_block((0x0112, 2, 0)), False),  # the orientation, as text
        (exif_block(TURNED)[:20], False),
        (b"Exif\0\0nonsense", False),
    ],
)
def test_malformed_metadata_does_not_matter(tmp_path, exif, turned):
    image = Image.fromarray(np.repeat(np.uint8([[255], [0]]), 32, axis=0).repeat(64, axis=1))
    read = read_image(save(tmp_path / "a.jpg", image, exif=exif), 32)
    assert (read[8, 8, 0] > 250, read[8, 24, 0] > 250) == (not turned, True)


@pytest.mark.parametrize("international", [False, True])
def test_long_text_in_a_png_does_not_matter(tmp_path, international):
    info = PngImagePlugin.PngInfo()
    add = info.add_itxt if international else info.add_text
    add("comment", "long " * 400_000, zip=True)
    path = save(tmp_path / "a.png", plain("RGB", (10, 20, 30)), pnginfo=info)
    assert (read_image(path, 32) == (10, 20, 30)).all()


def write_png(path, bits, colour_type, rows, transparent=(), size=(2, 2)):
    """Write a PNG of rows of pixels, given in hexadecimal. `transparent` is a transparent value."""

    def chunk(kind, data):
        return struct.pack(f">I4s{len(data)}sI", len(data), kind, data, zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes.fromhex(row) for row in rows))
    colour = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = chunk(b"IHDR", header) + (chunk(b"tRNS", colour) if transparent else b"")
    chunks += chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(
    "bits, rows, colour, opaque",
    [
        (1, ["00", "c0"], (0,), (255, 255, 255)),  # black and white
        (2, ["50", "a0"], (1,), (170, 170, 170)),  # 1 and 2 of 3
        (4, ["11", "22"], (1,), (34, 34, 34)),  # 1 and 2 of 15
        (8, ["0101", "0202"], (1,), (2, 2, 2)),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_white_at_any_depth(
    tmp_path, bits, rows, colour, opaque
):
    """The first of two rows of two pixels has the transparent colour."""
    path = tmp_path / "a.png"
    write_png(path, bits, 0, rows, colour)
    expected = [[(255, 255, 255)] * 2, [opaque] * 2]
    np.testing.assert_array_equal(read_image(path, 2), expected)


def test_more_than_8_bits_per_channel_are_rejected(tmp_path):
    """Pillow would keep the upper 8 bits: every image of a 14-bit camera would become black."""
    grey = Image.fromarray(np.full([40, 40], 7, np.uint16))
    for name in "grey.png", "grey.tif", "grey.pgm":
        save(tmp_path / name, grey)
    for mode in "IF":
        save(tmp_path / f"{mode}.tif", plain(mode, 1))
    write_png(tmp_path / "colour.png", 16, 2, ["2801 0003 5a05" * 2] * 2)
    for path in tmp_path.iterdir():
        with pytest.raises(ImageError, match="more than 8 bits per channel; convert it to an 8-"):
            read_image(path, 32)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [plain("RGB", colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_image(path, 32) == (255, 0, 0)).all()


def test_a_file_that_cannot_be_read_is_reported_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    content = save(tmp_path / "whole.png", plain("RGB", "red", (200, 200))).read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    write_png(tmp_path / "huge.png", 8, 2, ["00"], size=(10**9, 10**6))
    for name, reason in {
        "half.png": "cannot be read as an image: ",
        "text.jpg": "not an image file, or damaged",
        "empty.png": "not an image file, or damaged",
        "folder.png": "cannot be read as an image: not a regular file but a folder",
        "nowhere.png": "cannot be read as an image: No such file or directory",
        "photo.HEIC": "Pillow needs pillow-heif to read it; run: pip install pillow-heif",
        "huge.png": "cannot be read as an image: 1,000,000,000 x 1,000,000 pixels need 1.6e+07 GB ",
    }.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name, 32)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_pillow_heif_is_used_if_it_is_installed(tmp_path):
    (tmp_path / "pillow_heif.py").write_text("def register_heif_opener(): print('registered')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = run_python("-c", "import senet.data.image_files", cwd=tmp_path, PYTHONPATH=paths)
    assert result == (0, "registered\n", "")


@pytest.fixture
def load(tmp_path):
    """Return a function that loads `tmp_path`/photos."""
    return lambda size=32: load_dataset(str(tmp_path / "photos"), tmp_path / "data", size)


@pytest.fixture
def photos(tmp_path):
    return write_image_folder(tmp_path / "photos", "abc")


@pytest.mark.parametrize("classes, side", [(2, 32), (37, 48)])
@pytest.mark.parametrize("half", ["test", "val"])
def test_each_folder_of_images_becomes_a_class(tmp_path, load, capsys, classes, side, half):
    names = [f"class {number:02}" for number in range(classes)]
    photos = write_image_folder(tmp_path / "photos", names, size=(50, 20))
    (photos / "test").rename(photos / half)
    data = load(side)
    assert data.label_names == names
    for split, count in (data.train, 3), (data.test, 2):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.images.shape == (count * classes, side, side, 3)
        np.testing.assert_array_equal(split.labels, np.repeat(range(classes), count))
        np.testing.assert_array_equal(split.images[:, 9, 9, 0], 5 * split.labels)
    assert capsys.readouterr().out == ""


def test_a_fifth_of_each_class_is_the_test_set_if_there_is_none(tmp_path, load, capsys):
    """Each image has its own shade of grey, 10 times the class plus its number."""
    counts = {"a": 2, "b": 7, "c": 10}
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            shade = 10 * label + number
            save(tmp_path / "photos" / name / f"{number}.png", plain("L", shade, (32, 32)))
    data = load()
    assert "has no train/ and test/: a fifth of each class" in capsys.readouterr().out
    train, test = (split.images[:, 0, 0, 0].tolist() for split in (data.train, data.test))
    assert sorted(train + test) == [0, 1, *range(10, 17), *range(20, 30)]
    assert (train, test) == (sorted(train), sorted(test))
    for shades, split, sizes in (train, data.train, [1, 6, 8]), (test, data.test, [1, 1, 2]):
        assert split.labels.tolist() == [shade // 10 for shade in shades]
        assert np.bincount(split.labels).tolist() == sizes
    (tmp_path / "photos" / "a" / "0.png").unlink()
    with pytest.raises(Failure, match="^no images, or too few, in .*/a; each class needs training"):
        load()
    # The choice depends on the names of the files only.
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b").rename(tmp_path / "elsewhere" / "bee")
    save(tmp_path / "elsewhere" / "a" / "0.png", plain("L", 0, (32, 32)))
    other = load_dataset(str(tmp_path / "elsewhere"), tmp_path / "data")
    assert other.test.images[:, 0, 0, 0].tolist() == test


def test_files_that_are_not_images_are_skipped(photos, load, capsys):
    for name in "a/Thumbs.db", "a/labels.txt", "b/labels.TXT", "b/Makefile", "a/.DS_Store":
        (photos / "train" / name).write_bytes(b"\xd0\xcf\x11\xe0 no image")
    save(photos / "train" / "next to the classes.png", plain("L", 0))
    (photos / "train" / "a" / "features.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name in "train/__MACOSX", "train/lost+found", "test/a/@eaDir", "val/a", "d":
        save(photos / name / "a.png", plain("L", 0))
    image = save(photos.parent / "elsewhere.png", plain("L", 99))
    (photos / "test" / "c" / "no extension").symlink_to(image)
    data = load()
    assert data.label_names == ["a", "b", "c"]
    assert (len(data.train.labels), data.test.images[-1, 0, 0, 0]) == (9, 99)
    assert capsys.readouterr().out == (
        f"note: folders ignored in {photos}: d, val\n"
        f"note: files skipped in {photos}: 6 (.db: 1, .h5: 1, .png: 1, .txt: 2, makefile: 1)\n"
    )


remove = shutil.rmtree


def empty(path):
    remove(path)
    path.mkdir()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: remove(f / "test"), "{}/test is missing; each class needs training and "),
        (lambda f: remove(f / "train"), "{}/train is missing; each class needs training "),
        (lambda f: remove(f / "test/b"), "no images, or too few, in {}/test/b; each class needs"),
        (lambda f: empty(f / "test/b"), "no images, or too few, in {}/test/b; each class"),
        (lambda f: [remove(f / "train" / c) for c in "ab"], "{}/train must have folders for at "),
        (
            lambda f: [(f / "test" / c / "1.png").write_text("broken") for c in "abc"],
            "cannot read 3 of 15 images, fix or remove them: {0}/test/a/1.png: not an image file, "
            "or damaged; {0}/test/b/1.png: not",
        ),
    ],
)
def test_an_invalid_folder_is_reported(photos, load, damage, message):
    damage(photos)
    with pytest.raises(Failure) as caught:
        load()
    assert str(caught.value).startswith(message.format(photos))


def test_many_unreadable_images_are_listed_in_a_file(photos, load, tmp_path):
    for number in range(1010):
        (photos / "train" / "a" / f"{number:04}.jpg").touch()
    with pytest.raises(Failure) as caught:
        load()
    message = str(caught.value)
    assert message.startswith("cannot read 1,010 of 1,025 images, fix or remove them: ")
    assert message.count("a/00") == 20
    (report,) = (tmp_path / "data").rglob("unreadable.txt")
    assert message.endswith(f"; and 990 more, all listed in {report}")
    lines = report.read_text().splitlines()
    assert (len(lines), lines[-1].partition(": ")[0]) == (1010, f"{photos}/train/a/1009.jpg")


def test_class_names_that_differ_in_their_unicode_normalisation_are_one_class(tmp_path, load):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    photos = write_image_folder(tmp_path / "photos", [composed, "tea"])
    (photos / "test" / composed).rename(photos / "test" / decomposed)
    save(photos / "train" / decomposed / "9.png", plain("L", 9))
    data = load()
    assert data.label_names == [composed, "tea"]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert sorted(data.train.images[:4, 0, 0, 0]) == [0, 0, 0, 9]
