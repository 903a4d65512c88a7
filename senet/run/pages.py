"""Pages of images and the confusion matrix for TensorBoard and `evaluate`, drawn with Pillow as
uint8 arrays [height, width, 3]."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GREY = (30, 30, 30), (255, 255, 255), (110, 110, 110)
BLUE, RED = np.array([31, 90, 160]), np.array([190, 40, 40])


def contact_sheet(images):
    """Return a page of `images`, uint8 [N, side, side, 3], in rows of eight. Small images are
    enlarged by a whole factor, and large ones are reduced, to at most 96 pixels a side."""
    own = images.shape[1]
    return _sheet(images, 8, own * (96 // own) or 96, caption_height=0)[0]


def mistakes_page(images, true, predicted, probability, label_names):
    """Return a page of `images`, uint8 [N, side, side, 3], in rows of six. Each caption gives the
    true class, the predicted class and the probability of the latter: the items of `true`,
    `predicted` and `probability`, [N]."""
    if not len(images):
        return _note("no test image is misclassified")
    # Enlarge small images by a whole factor to at least 120 pixels, the width of a caption.
    own = images.shape[1]
    width = own * math.ceil(120 / own) if own < 120 else 120
    sheet, places = _sheet(images, 6, width, caption_height=36)
    page = Image.fromarray(sheet)
    draw = ImageDraw.Draw(page)
    for (x, y), label, guess, share in zip(places, true, predicted, probability, strict=True):
        lines = (label_names[label], INK), (f"{label_names[guess]} {share:.0%}", tuple(RED))
        for number, (text, colour) in enumerate(lines):
            text = _shortened(text, _font(12), width)
            draw.text((x, y + 3 + 15 * number), text, colour, _font(12))
    return np.array(page)


def confusion_page(matrix, label_names):
    """Return a drawing of a confusion matrix, int [classes, classes], whose rows are the true
    classes. The larger a cell's fraction of its row, the darker the cell: blue on the diagonal, red
    elsewhere. With more than 60 classes, their names are omitted; with more than 250, a note
    replaces the drawing."""
    classes = len(matrix)
    if classes > 250:
        return _note(f"a confusion matrix of {classes} classes is too large to draw")
    cell = 44 if classes <= 12 else max(3, min(30, 720 // classes))
    font = _font(min(13, max(6, cell - 2)))
    names = [_shortened(name, font, 140) if classes <= 60 else "" for name in label_names]
    length = 8 + math.ceil(max(font.getlength(name) for name in names))
    margin = 36 + length
    side = margin + classes * cell + 12
    page = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((8, 8), "rows: true class", GREY, _font(11))
    draw.text((8, 22), "columns: predicted", GREY, _font(11))
    for number, name in enumerate(names):
        middle = margin + cell * number + cell // 2
        draw.text((margin - 6, middle), name, INK, font, anchor="rm")
        upright = Image.new("RGB", (length, cell), PAPER)
        ImageDraw.Draw(upright).text((4, cell // 2), name, INK, font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (middle - cell // 2, 34))
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            x, y = margin + cell * column, margin + cell * row
            # The square root makes even a few mistakes visible.
            weight = math.sqrt(count / max(1, counts.sum()))
            colour = 255 + weight * ((BLUE if row == column else RED) - 255)
            size = max(1, cell - 2)
            draw.rectangle((x, y, x + size, y + size), tuple(colour.astype(int)))
            if count and cell >= 30:
                middle = x + cell // 2 - 1, y + cell // 2 - 1
                draw.text(middle, str(count), PAPER if weight > 0.6 else INK, font, anchor="mm")
    return np.array(page)


def _note(text):
    page = Image.new("RGB", (460, 40), PAPER)
    ImageDraw.Draw(page).text((10, 12), text, INK, _font(13))
    return np.array(page)


def _sheet(images, columns, side, caption_height):
    """Return the page, on which each image has `side` pixels a side, and the positions of the
    captions."""
    gap, enlarge = 6, side > images.shape[1]
    resampling = Image.Resampling.NEAREST if enlarge else Image.Resampling.BOX
    rows, columns = math.ceil(len(images) / columns), min(columns, len(images))
    step = np.array([side + gap, side + gap + caption_height])
    page = np.full([gap + rows * step[1], gap + columns * step[0], 3], 255, np.uint8)
    places = []
    for number, image in enumerate(images):
        x, y = gap + step * (number % columns, number // columns)
        shown = Image.fromarray(image).resize((side, side), resampling)
        page[y : y + side, x : x + side] = np.asarray(shown)
        places.append((x, y + side))
    return page, places


def _font(size):
    return ImageFont.load_default(size)


def _shortened(text, font, width):
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
