"""Draw the gates of the SE blocks for each class, as SENet (arXiv 1709.01507) does for its ImageNet
network in the section on the role of excitation."""

import math

import numpy as np
from matplotlib import colormaps
from PIL import Image

from senet.run.pages import drawn, new_figure


def save_excitation(path, gates, label_names):
    """Write the figure of `draw_excitation` to the PNG file `path`."""
    Image.fromarray(drawn(draw_excitation(gates, label_names))).save(path, "PNG")


def draw_excitation(gates, label_names):
    """Return a Matplotlib figure of `gates`, {SE block: mean gates, [classes, channels]}. It has a
    panel for each block with a line for each class; the channels are sorted by their mean gate."""
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
