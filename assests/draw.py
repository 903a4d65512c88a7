"""Draw the figures of this folder anew: python assests/draw.py"""

import pathlib
import sys

import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from senet.shapes import load_shapes  # noqa: E402 (it is found by the line above)


def draw_shapes(pictures=20):
    """The first training pictures of the data set `shapes`, a row for each class."""
    images, labels, *_, label_names = load_shapes()
    classes = [images[labels == label][:pictures] for label in range(len(label_names))]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in classes]))


def main():
    draw_shapes().save(FOLDER / "shapes.png")


if __name__ == "__main__":
    main()
