"""The data set `shapes`: ten classes of coloured 32x32 shapes on noisy backgrounds.

They are drawn from a fixed seed in well under a second. Only the outline depends on the class:
position, size, rotation, colours, background, noise and a distracting bar are random.
"""

import numpy as np

SIDE = 32  # pixels


def _polygon(x, y, corners, rotation=0.0):
    """Return the signed distance to a regular polygon with an inradius of 0.8."""
    angles = rotation + 2 * np.pi * np.arange(corners) / corners
    return np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) - 0.8


def _plus(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.3, y - 1), np.maximum(x - 1, y - 0.3))


# One function per class: the approximate distance from the outline of the shape, negative inside,
# in the square -1..1 (y points down).
OUTLINES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
    "half_circle": lambda x, y: np.maximum(np.hypot(x, y + 0.4) - 1, -0.4 - y),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x, y + 0.5)),
    "triangle": lambda x, y: _polygon(x, y - 0.3, 3, np.pi / 2) + 0.2,
    "square": lambda x, y: _polygon(x, y, 4),
    "diamond": lambda x, y: _polygon(x, y, 4, np.pi / 4) + 0.1,
    "plus": _plus,
    "cross": lambda x, y: _plus((x + y) / np.sqrt(2), (x - y) / np.sqrt(2)),
    "hourglass": lambda x, y: np.maximum((np.abs(x) - np.abs(y)) * 0.8 - 0.1, np.abs(y) - 0.85),
}


def draw_shapes(labels, rng):
    """Return uint8 images [N, 32, 32, 3] of the classes `labels` (int [N], indices of OUTLINES)."""
    count = len(labels)

    def draw(low, high, *shape):
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)

    pixels = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    shift_x, shift_y = draw(-4, 4, 1, 1), draw(-4, 4, 1, 1)
    radius, rotation = draw(8, 12, 1, 1), draw(-0.25, 0.25, 1, 1)
    x, y = (pixels[None, None, :] - shift_x) / radius, (pixels[None, :, None] - shift_y) / radius
    x, y = x * np.cos(rotation) - y * np.sin(rotation), x * np.sin(rotation) + y * np.cos(rotation)
    outline = np.empty_like(x)
    for label, distance in enumerate(OUTLINES.values()):
        outline[labels == label] = distance(x[labels == label], y[labels == label])
    # The fraction of each pixel that the shape covers: the edge is about one pixel wide.
    cover = np.clip(0.5 - outline * radius, 0, 1)[..., None]

    # Shapes are brighter than the background. If some were darker, 2,000 images would be too few
    # to learn from.
    background = draw(0, 110, 1, 1, 3)
    colour = background + draw(90, 160, 1, 1, 3)
    slope = draw(-1.5, 1.5, 1, 1, 3) * pixels[None, None, :, None]
    slope = slope + draw(-1.5, 1.5, 1, 1, 3) * pixels[None, :, None, None]

    # The bar: 3 pixels wide, at any angle, in its own colour, under the shape.
    angle = draw(0, np.pi, 1, 1)
    across = pixels[None, None, :] * np.cos(angle) + pixels[None, :, None] * np.sin(angle)
    bar = (np.abs(across - draw(-14, 14, 1, 1)) < 1.5)[..., None]

    image = np.where(bar, draw(0, 255, 1, 1, 3), background + slope)
    image = image + cover * (colour - image)
    image = image + draw(8, 32, 1, 1, 1) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def load_shapes():
    """Return (train images, train labels, test images, test labels, label names): 2,000 and 500
    images, uint8 [N, 32, 32, 3], with as many of each class, and int32 labels [N]."""
    labels = np.arange(2500, dtype=np.int32) % len(OUTLINES)
    images = draw_shapes(labels, np.random.default_rng(0))
    return images[:2000], labels[:2000], images[2000:], labels[2000:], list(OUTLINES)
