"""Check the documentation: commands run, or at least parse; links are valid; generated parts are up
to date."""

import dataclasses
import functools
import importlib
import json
import re

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, run_python
from PIL import Image, ImageChops
from scripts import SCRIPTS, by_script

from assests import draw
from assests.examples import EXAMPLES, draw_example
from senet.cli.command_line import OPTIONS, parse

HYPERPARAMETERS = {script.name: script.module.Hyperparameters for script in SCRIPTS}
PAGES = {
    path: path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*/*.md"))
}
README = PAGES[ROOT / "README.md"]


def blocks(text, *languages):
    """Return the fenced blocks of a page that are in one of `languages` ("" for none). Join each
    line that ends in a backslash to the next."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [re.sub(r"\\\n\s*", "", block) for language, block in fenced if language in languages]


def calls(text):
    """Return (script, arguments) of each call of a script in the command blocks of a page."""
    found = re.findall(r"python (SE_\w+)\.py((?: [^\s\"&]+)*)", "".join(blocks(text, "bash", "")))
    return [(script, arguments.split()) for script, arguments in found]


CALLS = [call for text in PAGES.values() for call in calls(text)]


def command(name):
    """Return the first block of README.md after the mark `<!-- command: name -->`."""
    _, _, rest = README.partition(f"<!-- command: {name} -->\n")
    return blocks(rest, "bash")[0]


# ------------------------------------------------------------------------------------ commands


def test_ci_runs_the_test_command():
    assert command("test") in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_the_quick_start_command_learns_to_classify_shapes(tmp_path):
    ((script, arguments),) = calls(f"```bash\n{command('train')}```")
    fast = "--width=16", "--total_epochs=3"
    status, _, errors = run_python(ROOT / f"{script}.py", *arguments, *fast, cwd=tmp_path)
    assert (status, errors) == (0, "")
    *_, last = (tmp_path / "runs/shapes/logs.txt").read_text().splitlines()
    assert float(last.rpartition("test_acc: ")[2]) >= 0.5  # chance: 0.1


def test_the_pretrained_network_recognises_the_drawings(capsys):
    ((script, arguments),) = calls(f"```bash\n{command('predict')}```")
    assert importlib.import_module(script).main([*arguments, "--mixed_precision=False"]) == 0
    output = capsys.readouterr().out
    found = re.findall(r"assests/(\w+)\.png: (\w+) 0\.\d{4}", output)
    assert found == [(name, name) for name in EXAMPLES]
    # README.md gives the classes and probabilities of the first drawing.
    first = r"(\w+) (0\.\d{4}), (\w+) (0\.\d{4}), (\w+) (0\.\d{4})"
    printed, documented = (re.search(first, text).groups() for text in (output, README))
    assert printed[::2] == documented[::2]
    assert np.array(printed[1::2], float) == pytest.approx(
        np.array(documented[1::2], float), abs=0.005
    )


def test_the_pretrained_network_has_the_default_architecture():
    """The fine-tuning command has no options of the network."""
    pretrained = json.loads((ROOT / "models/SE_ResNet/hyperparameters.json").read_text())
    defaults = HYPERPARAMETERS["SE_ResNet"]().as_dict()
    network = ("width", "blocks", "reduction_ratio", "padding")
    assert {name: pretrained[name] for name in network} == {n: defaults[n] for n in network}


def test_the_pretrained_network_is_that_of_the_first_command():
    log = ROOT / "benchmarks" / "results" / f"{draw.headline_result().name}.txt"
    assert (ROOT / "models/SE_ResNet/logs.txt").read_text() == log.read_text()


@pytest.mark.parametrize("script, arguments", CALLS)
def test_every_call_of_a_script_parses(script, arguments):
    name, fields, _ = parse(arguments, HYPERPARAMETERS[script])
    if name == "train":
        HYPERPARAMETERS[script](**fields)


def test_different_runs_have_different_folders():
    trained = {}
    for script, arguments in CALLS:
        name, fields, _ = parse(arguments, HYPERPARAMETERS[script])
        if name == "train":
            hyperparameters = HYPERPARAMETERS[script](**fields)
            computed = script, hyperparameters.compared()
            assert trained.setdefault(hyperparameters.run_dir, computed) == computed
    assert len(trained) >= 6


# ------------------------------------------------------------------------- names, links, numbers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_file_mentioned_exists(page):
    fields = {f.name for cls in HYPERPARAMETERS.values() for f in dataclasses.fields(cls)}
    arguments = {f"--{name}" for name in OPTIONS}
    options = set(re.findall(r"`(--\w+)", PAGES[page]))
    assert options <= {f"--{field}" for field in fields} | arguments | {"--help", "--name"}
    files = re.findall(r"`((?:senet|tests|assests|benchmarks|docs|models)/[\w./]*)`", PAGES[page])
    assert [file for file in files if not (ROOT / file).exists()] == []


def anchors(page):
    """Return the ids on a page, and the anchors that GitHub generates from its headings."""
    titles = re.findall(r"^#+ (.*)$", PAGES[page], re.M)
    named = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return named | {*re.findall('<a id="(.+?)">', PAGES[page])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_internal_link_is_valid(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@by_script
def test_the_table_has_the_parameters_and_multiply_adds_of_each_network(script):
    section = README.partition("## The four networks\n")[2]
    cells = re.search(rf"\| {script.title} \| (.*)", section).group(1).split(" | ")
    assert cells[:3] == [
        f"{script.parameters[16]:,}",
        f"{script.parameters[16] - script.parameters[0]:,}",
        f"{script.multiply_adds:.2f} G",
    ]


# ----------------------------------------------------------------------- tables and figures


@pytest.mark.parametrize("page", draw.PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page):
    assert draw.regenerated(page) == page.read_text()


def test_the_command_of_every_measured_run_has_the_epochs_of_its_log():
    for result in draw.results():
        ((script, arguments),) = calls(f"```bash\n{result.entry['command']}\n```")
        _, fields, _ = parse(arguments, HYPERPARAMETERS[script])
        assert HYPERPARAMETERS[script](**fields).total_epochs == len(result.rows)


@pytest.mark.parametrize("name", draw.FIGURES)
def test_figures_are_up_to_date(name):
    stored = (ROOT / "assests" / f"{name}.svg").read_text()
    drawn = draw.as_svg(draw.FIGURES[name])
    (version,) = re.findall(r"Matplotlib v([\d.]+)", stored)
    if version == matplotlib.__version__:
        assert drawn == stored
    else:  # another version draws the text differently: compare only the sizes
        size = re.compile(r'viewBox="[^"]+"')
        assert size.search(drawn).group() == size.search(stored).group()


DRAWN = {"shapes": draw.draw_shapes, **{n: functools.partial(draw_example, n) for n in EXAMPLES}}


@pytest.mark.parametrize("name", DRAWN)
def test_images_drawn_by_a_script_are_up_to_date(name):
    stored = Image.open(ROOT / "assests" / f"{name}.png")
    assert ImageChops.difference(stored, DRAWN[name]()).getbbox() is None
