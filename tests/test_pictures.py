import numpy as np
import pytest
from conftest import run_python
from PIL import Image

from senet.data.datasets import load_dataset
from senet.data.image_files import PictureError, read_picture
from senet.errors import Failure, HyperparameterError


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def plain(mode, colour, size=(40, 40)):
    return Image.new(mode, size, colour)


def sixteen_bits(value):
    return Image.fromarray(np.full([40, 40], value, np.uint16))


def palette_with_a_hole():
    picture = plain("P", 1)
    picture.putpalette([0, 0, 0, 255, 0, 0, 10, 20, 30])
    picture.info["transparency"] = 1  # the red that is all of it
    return picture


@pytest.mark.parametrize(
    "name, picture, colour",
    [
        ("grey.png", plain("L", 100), (100, 100, 100)),
        ("black and white.png", plain("1", 1), (255, 255, 255)),
        ("clear.png", plain("RGBA", (200, 0, 0, 0)), (255, 255, 255)),  # what is clear shows white
        ("half.png", plain("RGBA", (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black on white
        ("grey with alpha.png", plain("LA", (0, 51)), (204, 204, 204)),
        ("palette.gif", plain("RGB", (0, 255, 0)).quantize(4), (0, 255, 0)),
        ("hole.png", palette_with_a_hole(), (255, 255, 255)),
        ("16 bits.png", sixteen_bits(51400), (200, 200, 200)),  # 200 x 257
        ("16 bits.tif", sixteen_bits(65535), (255, 255, 255)),
        ("one pixel.png", plain("RGB", (10, 20, 30), (1, 1)), (10, 20, 30)),
        ("a line.png", plain("RGB", (10, 20, 30), (1, 500)), (10, 20, 30)),
        ("small.bmp", plain("RGB", (10, 20, 30), (7, 5)), (10, 20, 30)),
        ("photo.webp", plain("RGB", (0, 0, 0), (300, 200)), (0, 0, 0)),
        ("print.jpg", plain("CMYK", (0, 0, 0, 0)), (255, 255, 255)),
        ("huge.png", plain("L", 7, (9500, 9500)), (7, 7, 7)),  # 90 million pixels
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_kind_of_picture(tmp_path, name, picture, colour):
    path = save(tmp_path / name, picture)
    array = read_picture(path, 32)
    assert (array.dtype, array.shape) == (np.uint8, (32, 32, 3))
    assert np.abs(array.astype(int) - colour).max() <= 1


def test_what_can_be_read_is_read_without_a_word(tmp_path):
    """90 million pixels, and a JPEG whose EXIF data is cut short, in a process of its own, since
    pytest has filters of warnings of its own."""
    huge = save(tmp_path / "huge.png", plain("L", 7, (9500, 9500)))
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    damaged = save(tmp_path / "damaged.jpg", plain("RGB", "red"), exif=exif)
    code = "import sys; from senet.data.image_files import read_picture\n"
    code += "for path in sys.argv[1:]: read_picture(path, 32)"
    assert run_python("-c", code, huge, damaged) == (0, "", "")


def test_a_picture_of_its_own_size_is_taken_as_it_is(tmp_path, rng):
    array = rng.integers(0, 256, (32, 32, 3), np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(array))
    np.testing.assert_array_equal(read_picture(path, 32), array)


def test_the_square_in_the_middle_is_taken(tmp_path):
    array = np.zeros([50, 100, 3], np.uint8)
    array[:, :25, 0] = array[:, 75:, 2] = 255  # red on the left, blue on the right
    array[:, 25:75, 1] = 255
    read = read_picture(save(tmp_path / "wide.png", Image.fromarray(array)), 32)
    # But for the outermost columns, which the resizing mixes with what is beside them.
    assert (read[:, 2:-2] == (0, 255, 0)).all()


def test_a_picture_is_turned_as_the_camera_says(tmp_path):
    array = np.zeros([64, 64, 3], np.uint8)
    array[:32, :, 0] = array[32:, :, 2] = 255  # red above, blue below
    exif = Image.Exif()
    exif[0x0112] = 6  # its top row is to be seen on the right
    path = save(tmp_path / "turned.jpg", Image.fromarray(array), exif=exif, quality=95)
    seen = read_picture(path, 32)
    assert seen[16, 28, 0] > 200 > 50 > seen[16, 28, 2]
    assert seen[16, 3, 2] > 200 > 50 > seen[16, 3, 0]


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [plain("RGB", colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_picture(path, 32) == (255, 0, 0)).all()


def broken_files(folder):
    whole = save(folder / "whole.png", plain("RGB", "red", (200, 200))).read_bytes()
    half = folder / "half.png"
    half.write_bytes(whole[: len(whole) // 2])
    text = folder / "text.jpg"
    text.write_text("no picture")
    empty = folder / "empty.png"
    empty.touch()
    (folder / "folder.png").mkdir()
    bomb = save(folder / "bomb.png", plain("1", 0, (20_000, 10_000)))
    return {
        half: "cannot be read as a picture: ",
        text: "cannot be read as a picture: cannot identify image file",
        empty: "cannot be read as a picture: cannot identify image file",
        bomb: "cannot be read as a picture: Image size (200000000 pixels) exceeds limit",
        folder / "folder.png": "is a folder",
        save(folder / "real.tif", plain("F", 0.5)): "cannot be read as a picture: its values are",
        save(folder / "wide.tif", plain("I", 200)): "cannot be read as a picture: its values are",
        folder / "nowhere.png": "cannot be read as a picture: No such file or directory",
    }


def test_what_is_no_picture_is_named_with_the_reason(tmp_path):
    for path, reason in broken_files(tmp_path).items():
        with pytest.raises(PictureError) as caught:
            read_picture(path, 32)
        assert str(caught.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(caught.value)


def write_classes(folder, names, train=3, test=2, size=(32, 32)):
    """A folder of pictures: each class a grey of its own."""
    for number, name in enumerate(names):
        for split, count in ("train", train), ("test", test):
            for picture in range(count):
                save(folder / split / name / f"{picture}.png", plain("L", 5 * number, size))
    return folder


@pytest.mark.parametrize("classes, size", [(2, (32, 32)), (37, (50, 20))])
def test_a_folder_of_classes(tmp_path, classes, size):
    names = [f"class {number:02}" for number in range(classes)]
    write_classes(tmp_path, names, size=size)
    (tmp_path / "train" / names[0] / ".DS_Store").write_text("hidden")
    (tmp_path / "train" / "a list.txt").write_text("beside the classes")
    data = load_dataset(str(tmp_path), "no/data")
    assert data.label_names == names
    assert data.train.images.shape == (3 * classes, 32, 32, 3)
    assert data.test.images.shape == (2 * classes, 32, 32, 3)
    for split, count in (data.train, 3), (data.test, 2):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(split.labels, np.repeat(range(classes), count))
        np.testing.assert_array_equal(split.images[:, 9, 9, 0], 5 * split.labels)


def test_pictures_are_resized_to_image_size(tmp_path):
    write_classes(tmp_path, "ab", size=(100, 60))
    assert load_dataset(str(tmp_path), "no/data", 48).train.images.shape == (6, 48, 48, 3)


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
        (lambda f: remove(f / "test" / "b"), "test/b: is missing; each class needs pictures to tr"),
        (lambda f: remove(f / "train" / "b"), "train/b: is missing; each class needs pictures"),
        (lambda f: empty(f / "test" / "b"), "test/b: has no pictures"),
        (
            lambda f: (f / "train" / "b" / "1.png").write_text("broken"),
            "train/b/1.png: cannot be read as a picture: cannot identify image file: mend or "
            "remove it",
        ),
        (
            lambda f: [(f / "test" / c / "1.png").write_text("broken") for c in "abc"],
            "test/a/1.png: cannot be read as a picture: cannot identify image file: mend or "
            "remove it (2 more like it)",
        ),
        (lambda f: (f / "test" / "c" / "deeper").mkdir(), "test/c/deeper: is a folder"),
        (
            lambda f: [remove(f / s / c) for s in ("train", "test") for c in "ab"],
            "train: needs a folder for each of two classes or more",
        ),
    ],
)
def test_a_faulty_folder_is_named_with_what_to_do(tmp_path, damage, message):
    write_classes(tmp_path, "abc")
    damage(tmp_path)
    with pytest.raises(Failure) as caught:
        load_dataset(str(tmp_path), "no/data")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_what_is_no_data_set_is_told_what_is_one(tmp_path):
    (tmp_path / "train").mkdir()
    for name in (str(tmp_path), "mnist"):
        with pytest.raises(
            HyperparameterError, match=f"dataset={name}: takes cifar10, shapes or a"
        ):
            load_dataset(name, "no/data")


def test_image_size_is_for_folders():
    with pytest.raises(HyperparameterError, match="image_size=64: the pictures of shapes have 32"):
        load_dataset("shapes", "no/data", 64)
