"""Draw the figures in this folder and rewrite the generated parts of the pages:

    python assests/draw.py

The inputs are the paper's tables below, the data set `shapes` and the measured runs. To add a run,
copy its logs.txt to benchmarks/results/NAME.txt and add NAME to benchmarks/results/runs.json:

    command              the command line, with --seed and --run_dir
    parameters           number of trainable parameters
    seconds_per_epoch    from the median times of a step and a test batch on an idle machine
    pflop                (SE-ResNet) 10^15 floating-point operations of the whole run
    averaged             (SE-ResNet) accuracy with --test_time_augmentation=flip_and_shift, percent
    machine              kind of CPU, such as "AVX2" or "AVX-512 BF16"
    results              [row, ...]: rows of the table "results" that include the run
    headline             true for the run at the top of README.md, whose learning curves are drawn

SE_ResNet_s0_gates.json has the `gates` of the Evaluation of models/SE_ResNet, as `excitation` draws
them. The screenshots of TensorBoard are not drawn here.
"""

import io
import json
import pathlib
import re
import statistics
import sys
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from assests.examples import EXAMPLES, draw_example  # noqa: E402 (needs sys.path)
from senet.data.shapes import load_shapes  # noqa: E402
from senet.run.pages import draw_excitation  # noqa: E402
from senet.run.rows import read_rows  # noqa: E402

WIDTH = 9.0  # inches, of every figure
# Colours on a light page, and their replacements on a dark one.
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
    """Draw a box centred at (x, y)."""
    corner = x - width / 2, y - height / 2
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=shape, fill=False, ec=colour, lw=1.2)
    )
    axes.text(x, y, text, ha="center", va="center", color=colour)


def arrow(axes, *points):
    """Draw a line through `points` with an arrowhead at its end."""
    for start, stop in zip(points[:-2], points[1:-1], strict=True):
        axes.plot(*zip(start, stop, strict=True), color=SOFT, lw=1, solid_capstyle="round")
    head = FancyArrowPatch(
        *points[-2:], arrowstyle="-|>", mutation_scale=9, color=SOFT, lw=1, shrinkA=0, shrinkB=0
    )
    axes.add_patch(head)


def canvas(height):
    """Return a figure and its only axes, whose unit is 0.8 inch."""
    figure = Figure(figsize=(WIDTH, 0.8 * height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH / 0.8), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def draw_se_block():
    """Draw the block from left to right, with the feature map above and the gates below."""
    figure, axes = canvas(2.2)
    box(axes, 0.75, 1.8, "feature map\nH × W × C", width=1.4, height=0.7)
    layers = [
        (2.9, "global\naverage pool", "squeeze"),
        (4.9, "fully connected\nC to C / r", "excitation"),
        (6.3, "ReLU", ""),
        (7.9, "fully connected\nC / r to C", ""),
        (9.4, "sigmoid", ""),
    ]
    widths = [1.3, 1.6, 0.8, 1.6, 1.0]
    right = None
    for (x, text, title), width in zip(layers, widths, strict=True):
        box(axes, x, 0.6, text, SE, width, 0.7)
        if right is not None:
            arrow(axes, (right, 0.6), (x - width / 2, 0.6))
        right = x + width / 2
        if title:
            axes.text(x - width / 2, 0.04, title, color=SOFT, fontsize=8.5)
    arrow(axes, (0.75, 1.45), (0.75, 0.6), (2.25, 0.6))
    axes.text(0.85, 1.12, "mean of each channel", color=SOFT, fontsize=8)
    box(axes, 10.5, 1.8, "×", GATE, 0.5, 0.5)
    arrow(axes, (1.45, 1.8), (10.25, 1.8))
    arrow(axes, (right, 0.6), (10.5, 0.6), (10.5, 1.55))
    axes.text(10.4, 1.15, "one gate per channel, 0 to 1", color=GATE, fontsize=8, ha="right")
    arrow(axes, (10.75, 1.8), (11.2, 1.8))
    return figure


def gated_module(axes, x, title, networks, text, width):
    """Draw a module centred at `x`, with an SE block on its output."""
    axes.text(x, 4.9, title, ha="center", fontsize=10)
    axes.text(x, 4.62, networks, ha="center", color=SOFT, fontsize=8)
    arrow(axes, (x, 4.5), (x, 4.0))
    box(axes, x, 3.7, text, width=width, height=0.6)
    arrow(axes, (x, 3.4), (x, 1.5))
    right = x + 1.6
    arrow(axes, (x, 3.1), (right, 3.1), (right, 2.8))
    box(axes, right, 2.5, "squeeze", SE, 1.3, 0.6)
    arrow(axes, (right, 2.2), (right, 1.95))
    box(axes, right, 1.65, "excitation", SE, 1.3, 0.6)
    arrow(axes, (right, 1.35), (right, 1.25), (x + 0.25, 1.25))
    box(axes, x, 1.25, "×", GATE, 0.5, 0.5)


def draw_se_modules():
    """Draw where the block is placed in an Inception module and in a residual module."""
    figure, axes = canvas(5.1)
    networks = "SE-Inception-v4; Reduction modules of SE-Inception-ResNet-v2"
    text = "Inception branches, concatenated"
    gated_module(axes, 2.6, "Inception module", networks, text, 3.0)
    arrow(axes, (2.6, 1.0), (2.6, 0.02))
    networks = "SE-ResNet, SE-ResNeXt-29, SE-Inception-ResNet-v2"
    gated_module(axes, 8.4, "residual module", networks, "residual branch", 2.2)
    arrow(axes, (8.4, 1.0), (8.4, 0.75))
    box(axes, 8.4, 0.5, "+", INK, 0.5, 0.5)
    arrow(axes, (8.4, 4.3), (6.8, 4.3), (6.8, 0.5), (8.15, 0.5))
    axes.text(6.7, 2.5, "shortcut", color=SOFT, fontsize=8, rotation=90, ha="right", va="center")
    arrow(axes, (8.4, 0.25), (8.4, 0.02))
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


def draw_errors(axes, names, errors, colour, label=None, side="left"):
    """Draw a dot for each error in percent, in the rows `names`, with its value at that `side`."""
    axes.plot(errors, names, "o", color=colour, label=label)
    for name, error in zip(names, errors, strict=True):
        axes.annotate(
            f"{error:.2f}",
            (error, name),
            (-7 if side == "left" else 7, 0),
            textcoords="offset points",
            ha="right" if side == "left" else "left",
            va="center",
            color=INK,
            fontsize=8,
        )


def draw_error_pairs(axes, table, title):
    """Draw the error of each network in `table` without and with SE."""
    names, errors = list(table), np.array(list(table.values()))
    axes.hlines(names, errors[:, 1], errors[:, 0], color=LINE, zorder=0)
    draw_errors(axes, names, errors[:, 0], PLAIN, "without SE", side="right")
    draw_errors(axes, names, errors[:, 1], SE, "with SE")
    finish_rows(axes, len(names), title)


def finish_rows(axes, rows, title):
    """Set the limits, the grid and the title of a panel with `rows` rows of errors."""
    axes.set_ylim(rows - 0.6, -0.7)
    axes.set_xlim(18, 26.5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left")


def draw_paper():
    """Draw the paper's tables: depth, other architectures, reduction ratio, state of the art."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    (depth, incorporation), (ratio, best) = figure.subplots(2, 2)
    draw_error_pairs(depth, DEPTH, "Depth: top-1 error, %")
    draw_error_pairs(incorporation, INCORPORATION, "Other architectures: top-1 error, %")
    incorporation.legend(loc="lower right", fontsize=8)
    for name, (error, parameters) in RATIO.items():
        colour = PLAIN if name == "none" else SE
        ratio.plot(parameters, error, "o", color=colour)
        text = "no SE" if name == "none" else f"r = {name}"
        ratio.annotate(
            text,
            (parameters, error),
            (5, -12 if name == "16" else 5),  # clear of the next label
            textcoords="offset points",
            color=INK,
            fontsize=8,
        )
    ratio.set_title("Reduction ratio, SE-ResNet-50: top-1 error, %", loc="left")
    ratio.set_xlabel("million parameters")
    ratio.set_xlim(24, 49)
    ratio.set_ylim(22, 23.6)
    ratio.grid()
    draw_errors(best, list(STATE_OF_THE_ART), list(STATE_OF_THE_ART.values()), SE, side="right")
    finish_rows(best, len(STATE_OF_THE_ART), "State of the art: top-1 error, %")
    return figure


# --------------------------------------------------------------------------- measured results


NUMBERS = "train_loss", "train_acc", "test_loss", "test_acc"  # of a row


class Result(NamedTuple):
    """A measured run: its entry in runs.json and the rows of its log."""

    name: str
    entry: dict
    options: dict  # of the command, {name: text}
    rows: np.ndarray  # [epochs, 4]: the NUMBERS

    @property
    def accuracy(self):
        """Return the test accuracy of the last epoch, in percent."""
        return 100 * self.rows[-1, 3]

    @property
    def minutes(self):
        """Return the training time in minutes: epochs times the time per epoch on an idle
        machine."""
        return len(self.rows) * self.entry["seconds_per_epoch"] / 60

    @property
    def seed(self):
        return int(self.options.get("seed", 0))

    @property
    def ratio(self):
        return int(self.options.get("reduction_ratio", 16))

    def command_without(self, *names):
        """Return the command without the options `names`."""
        return re.sub(rf" --({'|'.join(names)})=\S+", "", self.entry["command"])


def results():
    """Return a Result for each entry of benchmarks/results/runs.json."""
    found = []
    for name, entry in json.loads((RESULTS / "runs.json").read_text()).items():
        rows = read_rows(RESULTS / f"{name}.txt").values()
        rows = np.array([[row[number] for number in NUMBERS] for row in rows])
        options = dict(re.findall(r" --(\w+)=(\S+)", entry["command"]))
        found.append(Result(name, entry, options, rows))
    return found


def rows_with_and_without():
    """Return {row of the table "results": (results with SE, results without)}, sorted by accuracy,
    best first. The two lists of a row are called its arms."""
    rows = {}
    for result in results():
        for row in result.entry.get("results", []):
            rows.setdefault(row, ([], []))[result.ratio == 0].append(result)
    return dict(sorted(rows.items(), key=lambda row: -best_mean(row[1])))


def best_mean(arms):
    """Return the better mean accuracy of the two arms of a row, ignoring an empty one."""
    return max(statistics.mean(r.accuracy for r in arm) for arm in arms if arm)


def headline_result():
    """Return the result whose command is at the top of README.md."""
    (result,) = (result for result in results() if result.entry.get("headline"))
    return result


def draw_learning_curves():
    """Draw the test accuracy and the losses of the headline's network with and without SE, as the
    mean and the range over the seeds."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    with_se, without = rows_with_and_without()[headline_result().entry["results"][0]]
    for label, colour, arm in (("without SE", PLAIN, without), ("with SE", SE, with_se)):
        if not arm:
            continue
        curves = np.stack([result.rows for result in arm])
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


# Jordan, arXiv 2404.00498, and its repository: averaged predictions, (PFLOP, accuracy in percent).
PUBLISHED = {"airbench94_muon": (0.29, 94.01), "airbench94": (0.36, 94.01)}
PUBLISHED |= {"airbench95": (1.4, 95.01), "airbench96": (4.9, 96.03)}


def draw_accuracy_by_pflop():
    """Draw the accuracy of the runs of SE-ResNet and published ones against their computation."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    axes = figure.subplots()
    for label, colour, with_se in (("with SE", SE, True), ("without SE", PLAIN, False)):
        chosen = [r for r in results() if "pflop" in r.entry and bool(r.ratio) == with_se]
        work = [r.entry["pflop"] for r in chosen]
        axes.plot(work, [r.accuracy for r in chosen], "o", color=colour, label=label)
        averaged = [r.entry["averaged"] for r in chosen]
        label += ", averaged predictions"
        axes.plot(work, averaged, "o", color=colour, fillstyle="none", label=label)
    style = {"color": GATE, "fillstyle": "none", "label": "published, averaged predictions"}
    axes.plot(*zip(*PUBLISHED.values(), strict=True), "s", **style)
    for name, place in PUBLISHED.items():
        side = (-6, "right") if name == "airbench94_muon" else (6, "left")
        axes.annotate(name, place, (side[0], 4), textcoords="offset points", ha=side[1], fontsize=8)
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("PFLOP")
    axes.set_title("Test accuracy, %", loc="left")
    axes.margins(x=0.1)
    axes.grid()
    axes.legend(fontsize=8, loc="lower right")
    return figure


def draw_gates():
    """Draw the mean gates of the headline run, like the command `excitation`."""
    stored = json.loads((RESULTS / "SE_ResNet_s0_gates.json").read_text())
    gates = {block: np.array(values) for block, values in stored["gates"].items()}
    figure = draw_excitation(gates, stored["label_names"])
    figure.set_size_inches(WIDTH, 2.6)
    return figure


# ------------------------------------------------------------------------------ generated text


def table(head, lines):
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def mean_and_deviation(arm):
    """Return the mean accuracy of the results in `arm`, with the standard deviation if there are
    several, as a link to their command, or "not measured" if there are none."""
    if not arm:
        return "not measured"
    values = [result.accuracy for result in arm]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    mean = f"{statistics.mean(values):.2f}{spread}"
    return f"[{mean}](benchmarks/results/README.md#{arm[0].name})"


def distinct_values(arms, show):
    """Return `show(result)` for the first result of each arm, separated by slashes, without
    repetition."""
    return " / ".join(dict.fromkeys(show(arm[0]) for arm in arms if arm))


def results_table():
    """Return the table that compares all networks with and without SE blocks."""
    lines = []
    for row, arms in rows_with_and_without().items():
        lines.append(
            [
                row,
                f"{(arms[0] or arms[1])[0].entry['parameters']:,}",
                distinct_values(arms, lambda r: f"{len(r.rows)}"),
                distinct_values(arms, lambda r: f"{r.minutes:.1f}"),
                max(map(len, arms)),
                *map(mean_and_deviation, arms),
            ]
        )
    head = ["network", "parameters", "epochs", "minutes", "seeds", "with SE, %", "without SE, %"]
    return table(head, lines)


def runs_table():
    """Return the table of all runs; runs that differ only in the seed share a row."""
    by_command = {}
    for result in results():
        command = result.command_without("seed", "run_dir")
        by_command.setdefault((command, result.entry["machine"]), []).append(result)
    lines = []
    for (command, machine), arm in by_command.items():
        lines.append(
            [
                f'<a id="{arm[0].name}"></a>`{command}`',  # the table "results" links here
                f"{arm[0].entry['parameters']:,}",
                f"{arm[0].minutes:.1f}",
                machine,
                ", ".join(str(result.seed) for result in arm),
                ", ".join(f"[{result.accuracy:.2f}]({result.name}.txt)" for result in arm),
            ]
        )
    head = ["command", "parameters", "minutes", "CPU", "seeds", "accuracy by seed, %"]
    return table(head, lines)


def headline():
    """Return the sentence and the command at the top of README.md."""
    result = headline_result()
    command = result.command_without("seed", "run_dir")
    return (
        f"**{result.accuracy:.2f} % test accuracy on CIFAR-10 after {result.minutes:.0f} minutes "
        f"on two CPU cores with {result.entry['machine']} ({result.entry['pflop']} PFLOP):**\n\n"
        f"```bash\n{wrapped(command)}\n```"
    )


def wrapped(command, width=88):
    """Return a command wrapped to lines of at most `width` characters where possible."""
    lines = [""]
    for word in command.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines[-1] += " \\"
            lines.append(" ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- all


def draw_shapes(images_per_class=20):
    """Return the first training images of the data set `shapes`, one row per class."""
    images, labels, *_, label_names = load_shapes()
    classes = [images[labels == label][:images_per_class] for label in range(len(label_names))]
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in classes]))


FIGURES = {
    "se_block": draw_se_block,
    "se_modules": draw_se_modules,
    "paper": draw_paper,
    "learning_curves": draw_learning_curves,
    "accuracy_by_pflop": draw_accuracy_by_pflop,
    "excitation": draw_gates,
}
PARTS = {
    "headline": headline,
    "results": results_table,
    "runs": runs_table,
}
PAGES = ROOT / "README.md", RESULTS / "README.md"


def as_svg(draw):
    """Return a figure as SVG text that follows the page's light or dark theme."""
    file = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        draw().savefig(file, format="svg", transparent=True, metadata={"Date": None})
    rules = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark}!important}}'
        for light, dark in ON_DARK.items()
        for name in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    svg = re.sub(r"[ \t]+\n", "\n", file.getvalue().decode())
    return svg.replace("<defs>", f"{style}\n <defs>", 1)


def regenerated(page):
    """Return the text of a page with its generated parts updated. A part is between
    `<!-- table: NAME -->` (or code, or text) and `<!-- end of NAME -->`, and NAME is in PARTS."""
    begin, end = "<!-- (?:table|code|text): {} -->\n", "<!-- end of {} -->\n"
    page_text = text = page.read_text()
    for name in re.findall(begin.format(r"(\w+)"), page_text):
        part = re.compile(f"({begin.format(name)}).*?({end.format(name)})", re.S)
        new = PARTS[name]()
        text, count = part.subn(lambda found, new=new: f"{found[1]}{new}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{page}: the part {name} must have exactly one end, got {count}")
    return text


def main():
    draw_shapes().save(FOLDER / "shapes.png")
    for name in EXAMPLES:
        draw_example(name).save(FOLDER / f"{name}.png")
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(as_svg(draw))
    for page in PAGES:
        page.write_text(regenerated(page))


if __name__ == "__main__":
    main()
