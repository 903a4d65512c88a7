"""Draw the figures of this folder, and the tables of results in README.md, anew:
python assests/draw.py

All come from numbers: the paper's tables, which stand below, the data set `shapes`, and the rows of
measured runs in benchmarks/results/. Only the pictures of TensorBoard are pictures of a screen.
"""

import io
import json
import pathlib
import re
import statistics
import sys

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from senet.cli.excitation import draw_excitation  # noqa: E402 (they are found by the line above)
from senet.data.shapes import load_shapes  # noqa: E402

# Colours on a light page, and what they become on a dark one.
INK, SOFT, LINE = "#24292f", "#57606a", "#d0d7de"
PLAIN, SE, GATE = "#8c959f", "#0969da", "#bc4c00"
ON_DARK = {INK: "#e6edf3", SOFT: "#9198a1", LINE: "#3d444d", SE: "#4493f8", GATE: "#f0883e"}
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "the same file each time",
}

# ------------------------------------------------------------------------------- the SE block


def box(axes, x, y, text, colour=INK, width=1.5, height=0.5):
    """A box with its middle at (x, y)."""
    corner = x - width / 2, y - height / 2
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=shape, fill=False, ec=colour, lw=1.2)
    )
    axes.text(x, y, text, ha="center", va="center", color=colour)


def arrow(axes, *points):
    """A line through `points` that ends in a head."""
    for start, stop in zip(points[:-2], points[1:-1], strict=True):
        axes.plot(*zip(start, stop, strict=True), color=SOFT, lw=1, solid_capstyle="round")
    head = FancyArrowPatch(
        *points[-2:], arrowstyle="-|>", mutation_scale=9, color=SOFT, lw=1, shrinkA=0, shrinkB=0
    )
    axes.add_patch(head)


def canvas(width, height):
    """A figure whose one axes is in units of 0.8 inch."""
    figure = Figure(figsize=(0.8 * width, 0.8 * height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def draw_se_block():
    """The block from left to right: the map above, the gates below."""
    figure, axes = canvas(11.2, 2.9)
    box(axes, 0.9, 2.3, "feature map\nH × W × C", width=1.4, height=0.7)
    stations = [
        (2.9, "global\naverage pool", "squeeze"),
        (4.9, "fully connected\nC to C / r", "excitation"),
        (6.3, "ReLU", ""),
        (7.9, "fully connected\nC / r to C", ""),
        (9.4, "sigmoid", ""),
    ]
    widths = [1.3, 1.6, 0.8, 1.6, 1.0]
    before = None
    for (x, text, title), width in zip(stations, widths, strict=True):
        box(axes, x, 0.9, text, SE, width, 0.7)
        if before is not None:
            arrow(axes, (before, 0.9), (x - width / 2, 0.9))
        before = x + width / 2
        if title:
            axes.text(x - width / 2, 0.3, title, color=SOFT, fontsize=8.5)
    arrow(axes, (0.9, 1.95), (0.9, 0.9), (2.25, 0.9))
    axes.text(1.0, 1.35, "each channel's mean", color=SOFT, fontsize=8)
    box(axes, 10.4, 2.3, "×", GATE, 0.5, 0.5)
    arrow(axes, (1.6, 2.3), (10.15, 2.3))
    arrow(axes, (before, 0.9), (10.4, 0.9), (10.4, 2.05))
    axes.text(10.3, 1.45, "a gate for each channel, 0 to 1", color=GATE, fontsize=8, ha="right")
    arrow(axes, (10.65, 2.3), (11.15, 2.3))
    return figure


def gated_module(axes, x, title, text, width, beside):
    """A module, its middle at `x`, with an SE block on what it gives, `beside` it to the right."""
    axes.text(x, 4.7, title, ha="center", fontsize=10)
    arrow(axes, (x, 4.5), (x, 4.0))
    box(axes, x, 3.7, text, width=width, height=0.6)
    arrow(axes, (x, 3.4), (x, 1.5))
    right = x + beside
    arrow(axes, (x, 3.1), (right, 3.1), (right, 2.8))
    box(axes, right, 2.5, "squeeze", SE, 1.3, 0.6)
    arrow(axes, (right, 2.2), (right, 1.95))
    box(axes, right, 1.65, "excitation", SE, 1.3, 0.6)
    arrow(axes, (right, 1.35), (right, 1.25), (x + 0.25, 1.25))
    box(axes, x, 1.25, "×", GATE, 0.5, 0.5)


def draw_se_modules():
    """Where the block sits: in an Inception module, and in a residual one."""
    figure, axes = canvas(9.6, 4.9)
    gated_module(axes, 2.3, "Inception module", "Inception branches, concatenated", 3.0, 1.4)
    arrow(axes, (2.3, 1.0), (2.3, 0.4))
    gated_module(axes, 7.1, "residual module", "residual branch", 2.2, 1.5)
    arrow(axes, (7.1, 1.0), (7.1, 0.75))
    box(axes, 7.1, 0.5, "+", INK, 0.5, 0.5)
    arrow(axes, (7.1, 4.3), (5.5, 4.3), (5.5, 0.5), (6.85, 0.5))
    axes.text(5.4, 2.5, "shortcut", color=SOFT, fontsize=8, rotation=90, ha="right", va="center")
    arrow(axes, (7.1, 0.25), (7.1, 0.0))
    return figure


# --------------------------------------------------------------------------- the paper's tables

# SENet, arXiv 1709.01507: ImageNet, single crop, top-1 error in percent, without and with SE.
DEPTH = {"ResNet-50": (24.80, 23.29), "ResNet-101": (23.17, 22.38), "ResNet-152": (22.42, 21.57)}
INCORPORATION = {
    "ResNeXt-50": (22.11, 21.10),
    "ResNeXt-101": (21.18, 20.70),
    "BN-Inception": (25.38, 24.23),
    "Inception-ResNet-v2": (20.37, 19.80),
}
# Its journal version: SE-ResNet-50, top-1 error and million parameters by reduction ratio.
RATIO = {"2": (22.29, 45.7), "4": (22.25, 35.7), "8": (22.26, 30.7), "16": (22.28, 28.1)}
RATIO |= {"32": (22.72, 26.9), "none": (23.30, 25.6)}
# SENet-154 from the authors' repository, the others from the tables above.
STATE_OF_THE_ART = {"SENet-154": 18.68, "SE-Inception-ResNet-v2": 19.80, "SE-ResNeXt-101": 20.70}
STATE_OF_THE_ART |= {"SE-ResNet-152": 21.57}


def pairs_of_bars(axes, table, title):
    places = np.arange(len(table))
    for number, (label, colour) in enumerate((("without SE", PLAIN), ("with SE", SE))):
        errors = [pair[number] for pair in table.values()]
        bars = axes.barh(places + 0.38 * number, errors, 0.36, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=8)
    axes.set_yticks(places + 0.19, table)
    axes.invert_yaxis()
    axes.set_xlim(17, 27)
    axes.set_title(title, loc="left")


def draw_paper():
    """The paper's tables on depth, incorporation, reduction ratio and state of the art."""
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    (depth, incorporation), (ratio, best) = figure.subplots(2, 2)
    pairs_of_bars(depth, DEPTH, "Depth: top-1 error, %")
    pairs_of_bars(incorporation, INCORPORATION, "Other architectures: top-1 error, %")
    depth.legend(loc="lower right", fontsize=8)
    for name, (error, parameters) in RATIO.items():
        colour = PLAIN if name == "none" else SE
        ratio.plot(parameters, error, "o", color=colour)
        text = "no SE" if name == "none" else f"r = {name}"
        ratio.annotate(
            text,
            (parameters, error),
            (5, -12 if name == "16" else 5),  # where its neighbour's name is not
            textcoords="offset points",
            color=INK,
            fontsize=8,
        )
    ratio.set_title("Reduction ratio, SE-ResNet-50: top-1 error, %", loc="left")
    ratio.set_xlabel("million parameters")
    ratio.set_xlim(24, 49)
    ratio.set_ylim(22, 23.6)
    ratio.grid()
    bars = best.barh(list(STATE_OF_THE_ART), list(STATE_OF_THE_ART.values()), 0.5, color=SE)
    best.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=8)
    best.invert_yaxis()
    best.set_xlim(17, 23)
    best.set_title("State of the art: top-1 error, %", loc="left")
    return figure


# --------------------------------------------------------------------------- measured results


def rows(name):
    """The rows of the run `name`: a float array [epochs, 4] of train_loss, train_acc, test_loss and
    test_acc."""
    text = (RESULTS / f"{name}.txt").read_text()
    return np.array([re.findall(r"\d+\.\d{4}", line) for line in text.splitlines()], float)


def accuracy(name):
    """The test accuracy of the last epoch of a run, in percent."""
    return 100 * rows(name)[-1, 3]


def runs():
    """{name: what benchmarks/results/runs.json says of the run}: its command, its number of trained
    parameters, and the seconds of an epoch on a machine that does nothing else."""
    return json.loads((RESULTS / "runs.json").read_text())


NARROW = {"without SE": "narrow_r0", "with SE, r = 16": "narrow_r16"}  # then _s and the seed
SEEDS = 0, 1, 2
RATIOS = 2, 4, 8, 16, 32, 0
RATIO_SEEDS = 0, 1
INCEPTIONS = {"SE-Inception-v4": "inception_v4", "SE-Inception-ResNet-v2": "inception_resnet_v2"}


def draw_learning_curves():
    """Test accuracy and losses of the narrow SE_ResNeXt, with and without SE blocks."""
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (label, name), colour in zip(NARROW.items(), (PLAIN, SE), strict=True):
        curves = np.stack([rows(f"{name}_s{seed}") for seed in SEEDS])
        epochs = np.arange(1, curves.shape[1] + 1)
        parts = (
            (left, 3, 100, "-", ""),
            (right, 0, 1, ":", ", training"),
            (right, 2, 1, "-", ", test"),
        )
        for axes, column, factor, style, part in parts:
            values = factor * curves[:, :, column]
            axes.plot(epochs, values.mean(axis=0), style, color=colour, label=label + part)
            spread = values.min(axis=0), values.max(axis=0)
            axes.fill_between(epochs, *spread, color=colour, alpha=0.2, linewidth=0)
    left.set_title("Test accuracy, %", loc="left")
    right.set_title("Loss", loc="left")
    for axes in left, right:
        axes.set_xlabel("epoch")
        axes.grid()
        axes.legend(fontsize=8)
    return figure


def draw_gates():
    """The mean gates of the narrow SE_ResNeXt with seed 0, of each class, as `excitation` draws
    them."""
    kept = json.loads((RESULTS / "narrow_r16_s0_gates.json").read_text())
    gates = {block: np.array(values) for block, values in kept["gates"].items()}
    return draw_excitation(gates, kept["label_names"])


def table(head, lines):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def mean_and_deviation(names):
    values = [accuracy(name) for name in names]
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def results_table():
    """The three networks with and without SE blocks."""
    known = runs()
    lines = []
    narrow = [[f"{name}_s{seed}" for seed in SEEDS] for name in NARROW.values()]
    groups = {"narrow SE-ResNeXt, 15 epochs, three seeds": narrow}
    for title, name in INCEPTIONS.items():
        groups[f"{title}, 1 epoch, one seed"] = [[f"{name}_r0"], [f"{name}_r16"]]
    for title, (without, with_se) in groups.items():
        cells = []
        for names in without, with_se:
            cells.append(f"{known[names[0]]['parameters']:,}")
            cells.append(
                mean_and_deviation(names) if len(names) > 1 else f"{accuracy(names[0]):.2f}"
            )
        lines.append([title, *cells])
    head = ["network", "parameters without SE", "accuracy, %", "parameters with SE", "accuracy, %"]
    return table(head, lines)


def ratio_table():
    """The reduction ratio, beside the paper's table."""
    known, lines = runs(), []
    for ratio in RATIOS:
        names = [f"narrow_r{ratio}_s{seed}" for seed in RATIO_SEEDS]
        values = [accuracy(name) for name in names]
        error, millions = RATIO[str(ratio) if ratio else "none"]
        lines.append(
            [
                ratio or "no SE",
                f"{known[names[0]]['parameters']:,}",
                *(f"{value:.2f}" for value in values),
                f"{statistics.mean(values):.2f}",
                f"{100 - error:.2f}",
                f"{millions} M",
            ]
        )
    seeds = [f"seed {seed}, %" for seed in RATIO_SEEDS]
    return table(
        ["r", "parameters", *seeds, "mean, %", "paper: accuracy, %", "paper: parameters"], lines
    )


def precision_table():
    """float32 beside mixed precision, the same steps."""
    known, lines = runs(), []
    for name in known:
        if name.startswith("float32"):
            seed = name.rpartition("_s")[2]
            mixed = f"narrow_r16_s{seed}"
            seconds = [known[n]["seconds_per_epoch"] for n in (name, mixed)]
            lines.append(
                [
                    seed,
                    f"{accuracy(name):.2f}",
                    f"{accuracy(mixed):.2f}",
                    *(f"{second:.0f} s" for second in seconds),
                ]
            )
    head = ["seed", "float32, %", "mixed precision, %", "an epoch in float32", "in mixed precision"]
    return table(head, lines)


def runs_table():
    """Every run that is kept, with its command."""
    lines = []
    for name, run in runs().items():
        last, epochs = f"{accuracy(name):.2f}", len(rows(name))
        seed = re.search(r"--seed=(\d+)", run["command"]).group(1)
        minutes = f"{epochs * run['seconds_per_epoch'] / 60:.1f}"
        command, parameters = f"`{run['command']}`", f"{run['parameters']:,}"
        lines.append([command, parameters, epochs, minutes, seed, last])
    return table(["command", "parameters", "epochs", "minutes", "seed", "accuracy, %"], lines)


# -------------------------------------------------------------------------------------- all


def draw_shapes(pictures=20):
    """The first training pictures of the data set `shapes`, a row for each class."""
    images, labels, *_, label_names = load_shapes()
    classes = [images[labels == label][:pictures] for label in range(len(label_names))]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in classes]))


FIGURES = {
    "se_block": draw_se_block,
    "se_modules": draw_se_modules,
    "paper": draw_paper,
    "learning_curves": draw_learning_curves,
    "excitation": draw_gates,
}
TABLES = {
    "results": results_table,
    "ratio": ratio_table,
    "precision": precision_table,
    "runs": runs_table,
}


def as_svg(draw):
    """The text of a figure as SVG, whose ink turns light where the page is dark."""
    file = io.BytesIO()
    with rc_context(STYLE):
        draw().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in ON_DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    svg = re.sub(r"[ \t]+\n", "\n", file.getvalue().decode())
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def with_tables(text):
    """README.md's `text` with its tables made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
        before, found, rest = text.partition(begin)
        inside, ended, after = rest.partition(end)
        if not (found and ended) or "<!-- table" in inside:
            raise ValueError(f"README.md: {begin.strip()} ... {end} is not complete")
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


def main():
    draw_shapes().save(FOLDER / "shapes.png")
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(as_svg(draw))
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    main()
