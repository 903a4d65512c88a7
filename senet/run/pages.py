"""Pages of images, the confusion matrix and gates, for TensorBoard and commands, as arrays uint8
[height, width, 3]."""

import math
import warnings

import numpy as np
from PIL import Image

DPI, GAP = 100, 6  # pixels per inch, and between images
WHITE, BLUE, RED = np.array([[255, 255, 255], [31, 90, 160], [190, 40, 40]]) / 255


def contact_sheet(images):
    """Return a page of `images`, uint8 [N, side, side, 3], in rows of eight. Small images are
    enlarged by a whole factor, and large ones are reduced, to at most 96 pixels a side."""
    own = images.shape[1]
    return _sheet(images, 8, own * (96 // own) or 96)


def mistakes_page(images, true, predicted, probability, label_names):
    """Return a page of `images`, uint8 [N, side, side, 3], in rows of four, enlarged or reduced to
    96 pixels a side. Each caption gives the true class, the predicted class and the probability of
    the latter: the items of `true`, `predicted` and `probability`, [N]."""
    if not len(images):
        figure = new_figure(4, 0.5)
        figure.text(0.5, 0.5, "no test image is misclassified", ha="center", va="center")
        return drawn(figure)
    columns, side, caption = 4, 96, 32
    sheet = _sheet(images, columns, side, caption)
    height, width, _ = sheet.shape
    figure = new_figure(width / DPI, height / DPI)
    figure.figimage(sheet)
    style = {"va": "top", "fontsize": 8, "parse_math": False}
    for number, (label, guess, share) in enumerate(zip(true, predicted, probability, strict=True)):
        row, column = divmod(number, columns)
        x = (GAP + (side + GAP) * column) / width
        y = (GAP + side) * (row + 1) + caption * row
        text = f"{_short(label_names[guess], 10)} {share:.0%}"
        figure.text(x, 1 - (y + 2) / height, _short(label_names[label], 15), **style)
        figure.text(x, 1 - (y + 15) / height, text, color=RED, **style)
    return drawn(figure)


def confusion_page(matrix, label_names):
    """Return a drawing of a confusion matrix, int [classes, classes], whose rows are the true
    classes. The larger a cell's share of its row, the darker the cell: blue on the diagonal, red
    elsewhere. With up to 12 classes, cells show their share; with more than 40, classes have
    numbers instead of names."""
    classes = len(matrix)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    # The square root makes even a few mistakes visible.
    weights = np.sqrt(shares)[..., None]
    full = np.where(np.eye(classes, dtype=bool)[..., None], BLUE, RED)
    side = max(4, 2 + 0.12 * min(classes, 40), classes / DPI + 0.5)
    figure = new_figure(side, side, layout="constrained")
    panel = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    panel.imshow(WHITE + weights * (full - WHITE), interpolation="nearest")
    if classes <= 40:
        names = [_short(name, 12) for name in label_names]
        style = {"parse_math": False, "fontsize": 9 if classes <= 12 else 7}
        panel.set_xticks(range(classes), names, rotation=90, **style)
        panel.set_yticks(range(classes), names, **style)
    if classes <= 12:
        panel.set_xlabel("predicted class (% of the true class)")
        for row, column in np.argwhere(shares >= 0.005):
            text = f"{100 * shares[row, column]:.0f}"
            colour = "white" if weights[row, column] > 0.6 else "black"
            panel.text(column, row, text, color=colour, ha="center", va="center", fontsize=9)
    return drawn(figure)


def draw_excitation(gates, label_names):
    """Return a Matplotlib figure of `gates`, {SE block: mean gates, [classes, channels]}: a panel
    for each block with a line for each class, as in the SENet paper (arXiv 1709.01507, the section
    on the role of excitation). The channels are sorted by their mean gate."""
    from matplotlib import colormaps

    columns = min(len(gates), 3)
    rows = math.ceil(len(gates) / columns)
    figure = new_figure(4.2 * columns, 2.6 * rows + 0.6, layout="constrained")
    finite = np.concatenate([values[np.isfinite(values)] for values in gates.values()])
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    colours = colormaps["tab10" if len(label_names) <= 10 else "viridis"]
    for (block, values), panel in zip(gates.items(), panels, strict=False):
        values = values[:, values.mean(axis=0).argsort()]
        for number, name in enumerate(label_names):
            colour = colours(number if len(label_names) <= 10 else number / len(label_names))
            panel.plot(values[number], color=colour, linewidth=0.8, label=_literal(name))
        panel.set_title(f"{block}: {values.shape[1]} channels", fontsize=9)
        panel.set_ylim(finite.min(initial=0), finite.max(initial=1))
        panel.grid(alpha=0.3)
    for panel in list(panels):
        panel.remove()
    figure.supxlabel("channel, sorted by mean gate", fontsize=9)
    figure.supylabel("mean gate", fontsize=9)
    if len(label_names) <= 20:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=10, fontsize=8)
    return figure


def _literal(name):
    """Return a name as the label of a line. Matplotlib would parse $...$ as mathematics, and omit a
    label that starts with an underscore."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_figure(width, height, **options):
    """Return an empty Matplotlib figure of `width` x `height` inches."""
    from matplotlib.figure import Figure  # takes a second, which not every command needs

    return Figure(figsize=(width, height), dpi=DPI, **options)


def drawn(figure):
    """Return a Matplotlib figure as an array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # The font draws a box for a missing character, such as a Chinese one.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _sheet(images, columns, side, caption=0):
    """Return a page of images with `side` pixels a side, and space for a caption below each."""
    resampling = Image.Resampling.BOX if side < images.shape[1] else Image.Resampling.NEAREST
    rows = math.ceil(len(images) / columns)
    cells = np.full([rows * columns, GAP + side + caption, GAP + side, 3], 255, np.uint8)
    for cell, image in zip(cells, images, strict=False):
        cell[GAP : GAP + side, GAP:] = Image.fromarray(image).resize((side, side), resampling)
    page = cells.reshape([rows, columns, *cells.shape[1:]]).swapaxes(1, 2)
    return page.reshape([rows * cells.shape[1], columns * cells.shape[2], 3])


def _short(text, length):
    return text if len(text) <= length else text[: length - 1] + "…"
