import os
import struct
import zlib

import numpy as np
import pytest
from conftest import run_python
from image_folders import plain, save, write_image_folder
from PIL import Image

from senet.data.datasets import load_dataset
from senet.data.image_files import ImageError, read_image
from senet.engine.errors import Failure


def transparent_palette_image():
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 10, 20, 30])
    image.info["transparency"] = 1  # red, the only colour in the image
    return image


# senet/data/image_files.py ignores this warning, but pytest replaces its filter.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
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
        ("huge.png", plain("L", 7, (9500, 9500)), (7, 7, 7)),  # 90 million pixels
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_kind_of_image_becomes_rgb_of_the_requested_size(tmp_path, name, image, colour):
    path = save(tmp_path / name, image)
    array = read_image(path, 32)
    assert (array.dtype, array.shape) == (np.uint8, (32, 32, 3))
    assert np.abs(array.astype(int) - colour).max() <= 1


@pytest.mark.slow
def test_a_readable_image_gives_no_warning(tmp_path):
    """Read 90 million pixels, and a JPEG with truncated EXIF data, in another process, because
    pytest has its own filters for warnings."""
    huge = save(tmp_path / "huge.png", plain("L", 7, (9500, 9500)))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    damaged = save(tmp_path / "damaged.jpg", plain("RGB", "red"), exif=exif)
    code = "import sys; from senet.data.image_files import read_image\n"
    code += "for path in sys.argv[1:]: read_image(path, 32)"
    assert run_python("-c", code, huge, damaged) == (0, "", "")


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


@pytest.mark.parametrize("name, mode", [("a.jpg", "RGB"), ("a.png", "RGBA"), ("a.png", "P")])
def test_an_image_is_rotated_per_exif(tmp_path, name, mode):
    array = np.zeros([64, 64], np.uint8)
    array[:32] = 255  # white above, black below
    image = Image.fromarray(array)
    image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top row belongs on the right
    shown = read_image(save(tmp_path / name, image, exif=exif), 32)
    assert (shown[:, 20:] > 250).all()
    assert (shown[:, :12] < 5).all()


def write_png(path, bits, colour_type, rows, transparent=()):
    """Write a PNG of two rows of two pixels, given in hexadecimal. `transparent` is the value of
    transparent pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, bits, colour_type, 0, 0, 0))
        + (
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
            if transparent
            else b""
        )
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes.fromhex(row) for row in rows)))
        + chunk(b"IEND", b"")
    )


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


def write_grey_tiff(path, bits, white_is_zero, data):
    """Write an uncompressed TIFF of one row of two grey pixels with `bits` bits each."""
    tags = {
        256: 2,  # width
        257: 1,  # height
        258: bits,
        259: 1,  # no compression
        262: 0 if white_is_zero else 1,
        273: 8,  # offset of the data
        277: 1,  # channels
        278: 1,  # rows per strip
        279: len(data),
    }
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = data.ljust(4, b"\0")
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + directory + bytes(4))
    return path


def sixteen_bit_images(folder):
    """Return the paths of images with more than 8 bits per channel, in grey and in colour."""
    grey = Image.fromarray(np.full([40, 40], 7, np.uint16))
    colour = folder / "colour.png"
    write_png(colour, 16, 2, ["2801 0003 5a05" * 2] * 2)
    return [
        *(save(folder / name, grey) for name in ("grey.png", "grey.tif", "grey.pgm")),
        *(save(folder / f"{mode}.tif", plain(mode, 1)) for mode in ("I", "F")),
        write_grey_tiff(folder / "12 bits.tif", 12, False, b"\x80\x88\x08"),
        colour,
    ]


def test_more_than_8_bits_per_channel_are_rejected(tmp_path):
    """Pillow would keep the upper 8 bits: every image of a 14-bit camera would become black."""
    for path in sixteen_bit_images(tmp_path):
        with pytest.raises(ImageError, match="more than 8 bits per channel; convert it to an 8-"):
            read_image(path, 32)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [plain("RGB", colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_image(path, 32) == (255, 0, 0)).all()


def unreadable_files(folder):
    whole = save(folder / "whole.png", plain("RGB", "red", (200, 200))).read_bytes()
    half = folder / "half.png"
    half.write_bytes(whole[: len(whole) // 2])
    text = folder / "text.jpg"
    text.write_text("not an image")
    empty = folder / "empty.png"
    empty.touch()
    (folder / "folder.png").mkdir()
    bomb = save(folder / "bomb.png", plain("1", 0, (20_000, 10_000)))
    return {
        half: "cannot be read as an image: ",
        text: "not an image file, or damaged",
        empty: "not an image file, or damaged",
        bomb: "cannot be read as an image: Image size (200000000 pixels) exceeds limit",
        folder / "folder.png": "cannot be read as an image: not a regular file but a folder",
        folder / "nowhere.png": "cannot be read as an image: No such file or directory",
    }


def test_a_file_that_cannot_be_read_is_reported_with_the_reason(tmp_path):
    for path, reason in unreadable_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            read_image(path, 32)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes, size", [(2, (32, 32)), (37, (50, 20))])
def test_each_folder_of_images_becomes_a_class(tmp_path, classes, size):
    names = [f"class {number:02}" for number in range(classes)]
    write_image_folder(tmp_path, names, size=size)
    (tmp_path / "train" / names[0] / ".DS_Store").write_text("hidden")
    (tmp_path / "train" / "a list.txt").write_text("next to the classes")
    data = load_dataset(str(tmp_path), tmp_path / "data")
    assert data.label_names == names
    assert data.train.images.shape == (3 * classes, 32, 32, 3)
    assert data.test.images.shape == (2 * classes, 32, 32, 3)
    for split, count in (data.train, 3), (data.test, 2):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(split.labels, np.repeat(range(classes), count))
        np.testing.assert_array_equal(split.images[:, 9, 9, 0], 5 * split.labels)


def test_images_are_resized_to_image_size(tmp_path):
    write_image_folder(tmp_path, "ab", size=(100, 60))
    assert load_dataset(str(tmp_path), tmp_path / "data", 48).train.images.shape == (6, 48, 48, 3)


def remove(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: remove(f / "test" / "b"), "test/b is missing; each class needs training and te"),
        (lambda f: remove(f / "train" / "b"), "train/b is missing; each class needs training"),
        (lambda f: empty(f / "test" / "b"), "test/b has no images"),
        (
            lambda f: (f / "train" / "b" / "1.png").write_text("broken"),
            "train/b/1.png: not an image file, or damaged; fix or remove it",
        ),
        (
            lambda f: [(f / "test" / c / "1.png").write_text("broken") for c in "abc"],
            "test/a/1.png: not an image file, or damaged; fix or remove it (2 more such files)",
        ),
        (
            lambda f: (f / "test" / "c" / "deeper").mkdir(),
            "test/c/deeper: cannot be read as an image: not a regular file but a f",
        ),
        (
            lambda f: [remove(f / s / c) for s in ("train", "test") for c in "ab"],
            "train must have folders for at least 2 classes, got 1",
        ),
    ],
)
def test_an_invalid_folder_is_reported(tmp_path, damage, message):
    write_image_folder(tmp_path, "abc")
    damage(tmp_path)
    with pytest.raises(Failure) as caught:
        load_dataset(str(tmp_path), tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    "make, kind",
    [
        (os.mkfifo, "FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
    ],
    ids=["FIFO", "zero"],
)
def test_only_regular_files_are_read(tmp_path, make, kind):
    write_image_folder(tmp_path, "ab")
    path = tmp_path / "train" / "a" / "odd.png"
    make(path)
    reason = f"{path}: cannot be read as an image: not a regular file but a {kind}"
    with pytest.raises(ImageError) as caught:
        read_image(path, 32)
    assert str(caught.value) == reason
    with pytest.raises(Failure) as caught:
        load_dataset(str(tmp_path), tmp_path / "data")
    assert str(caught.value) == f"{reason}; fix or remove it"


def test_images_may_be_links(tmp_path):
    write_image_folder(tmp_path / "images", "ab", size=(32, 32))
    linked = tmp_path / "images" / "train" / "a" / "linked.png"
    linked.symlink_to(save(tmp_path / "elsewhere.png", plain("L", 9, (32, 32))))
    assert load_dataset(str(tmp_path / "images"), tmp_path / "data").train.images[3, 0, 0, 0] == 9


def test_a_line_break_in_a_name_is_escaped(tmp_path):
    write_image_folder(tmp_path, ["a\nb", "c\x1b[31m\u2028", "d"])
    assert load_dataset(str(tmp_path), tmp_path / "data").label_names == [
        "a\\nb",
        "c\\x1b[31m\\u2028",
        "d",
    ]
    (tmp_path / "train" / "d" / "e\nf\udcff.png").touch()
    with pytest.raises(Failure) as caught:
        load_dataset(str(tmp_path), tmp_path / "data")
    assert str(caught.value) == (
        f"{tmp_path}/train/d/e\\nf\\udcff.png: not an image file, or damaged; fix or remove it"
    )


def test_a_class_name_that_is_not_utf_8_is_rejected(tmp_path):
    write_image_folder(tmp_path, ["caf\udce9", "tea"])
    with pytest.raises(Failure) as caught:
        load_dataset(str(tmp_path), tmp_path / "data")
    assert str(caught.value) == (
        f"{tmp_path}/train/caf\\udce9: the name is not UTF-8; rename the folder"
    )


@pytest.mark.slow
def test_class_names_are_the_same_without_a_utf_8_locale(tmp_path):
    write_image_folder(tmp_path, ["caf\u00e9", "tea"])
    code = "import sys; from senet.data.image_files import load_folder\n"
    code += "print(ascii(load_folder(sys.argv[1], sys.argv[2], 32)[4]))"
    c_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_python("-c", code, tmp_path, tmp_path / "data", **c_locale) == (
        0,
        "['caf\\xe9', 'tea']\n",
        "",
    )
