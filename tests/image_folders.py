"""Write artificial images, and folders of them."""

from PIL import Image


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain(mode, colour, size=(40, 40)):
    return Image.new(mode, size, colour)


def write_image_folder(folder, names, train=3, test=2, size=(32, 32)):
    """Write images into `folder`/train and `folder`/test, in one shade of grey per class; return
    `folder`."""
    for number, name in enumerate(names):
        for split, count in ("train", train), ("test", test):
            for image in range(count):
                save(folder / split / name / f"{image}.png", plain("L", 5 * number, size))
    return folder
