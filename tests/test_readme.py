import importlib.util
import inspect
import re

import pytest
from conftest import ROOT, run_python
from PIL import Image, ImageChops
from test_inceptions import PARAMETERS, network
from test_scripts import SCRIPTS

import SE_ResNeXt
from senet import layers
from senet.compat import tf
from senet.hyperparameters import parse_field

README = (ROOT / "README.md").read_text()


def command(name):
    """The command block marked `<!-- command: name -->`."""
    return re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, re.S).group(1)


def test_ci_runs_the_test_command():
    assert command("test") in (ROOT / ".ci" / "run").read_text()


def test_the_block_shown_is_the_block_used():
    assert inspect.getsource(layers.Squeeze_excitation_layer).rstrip() in README


def output_shown(name):
    """The lines of the block marked `<!-- output: name -->`."""
    return re.search(rf"<!-- output: {name} -->\n```\n(.*?)```", README, re.S).group(1).splitlines()


def test_the_first_command_trains_to_95_percent_and_prints_what_is_shown(tmp_path):
    (arguments,) = re.findall(r"python (SE_ResNeXt\.py --.*)", command("train"))
    status, output, errors = run_python(*arguments.split(), f"--run_dir={tmp_path / 'run'}")
    assert (status, errors) == (0, "")
    lines, shown = output.splitlines(), output_shown("train")
    assert float(lines[-2].rpartition("test_acc: ")[2]) >= 0.95
    # Device and numbers differ between machines, the words do not.
    assert lines[:2] == shown[:2]
    digits = re.compile(r"\d+\.\d+")
    assert [digits.sub("", line) for line in lines[4:12]] == [
        digits.sub("", line) for line in shown[4:12]
    ]


def script_calls():
    """(script, [--name=value, ...]) of each call of a script in a command block."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, re.S))
    return re.findall(r"python (SE_\w+)\.py((?: --\w+=\S+)*)", blocks)


def test_the_calls_are_found():
    assert len(script_calls()) >= 5


@pytest.mark.parametrize("name, options", script_calls())
def test_every_call_of_a_script_is_understood(name, options):
    (script,) = (script for script in SCRIPTS if script.__name__ == name)
    pairs = (option.removeprefix("--").split("=") for option in options.split())
    values = {field: parse_field(script.Hyperparameters, field, text) for field, text in pairs}
    script.Hyperparameters(**values)


def test_every_option_named_exists():
    fields = {
        name for script in SCRIPTS for name in inspect.get_annotations(script.Hyperparameters)
    }
    assert set(re.findall(r"`--(\w+)", README)) - {"help", "name"} <= fields


def test_every_file_named_exists():
    named = set(
        re.findall(r"`((?:senet|tests|assests|benchmarks)/[\w./]*|\w+\.(?:py|txt))`", README)
    )
    assert len(named) >= 5
    written_by_a_run = {"logs.txt"}
    assert [name for name in named - written_by_a_run if not (ROOT / name).exists()] == []


TITLES = dict(
    zip(SCRIPTS, ("SE-ResNeXt-29 8x64d", "SE-Inception-v4", "SE-Inception-ResNet-v2"), strict=True)
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_parameters_and_multiply_adds_of_the_table(graph, script):
    model = network(script)(
        tf.placeholder(tf.float32, [1, 32, 32, 3]), False, script.Hyperparameters()
    ).model
    assert model.shape.as_list() == [1, 10]
    products = 0
    for op in graph.get_operations():
        if op.type in ("Conv2D", "MatMul"):
            *inner, _ = op.inputs[1].shape.as_list()
            products += tf.TensorShape(inner).num_elements() * op.outputs[0].shape.num_elements()
    with_se = sum(v.shape.num_elements() for v in tf.trainable_variables())
    without = {s: n for s, ratio, n in [*PARAMETERS, (SE_ResNeXt, 0, 34_426_698)] if ratio == 0}
    cells = [
        cell.strip()
        for cell in re.search(rf"\| ({TITLES[script]} \| \d+,.*)", README).group(1).split("|")
    ]
    assert cells[1:4] == [
        f"{with_se:,}",
        f"{with_se - without[script]:,}",
        f"{products / 1e9:.2f} G",
    ]


def test_figures_are_what_their_script_draws():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "assests" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    kept = Image.open(ROOT / "assests" / "shapes.png")
    assert ImageChops.difference(kept, draw.draw_shapes()).getbbox() is None
