import dataclasses
import importlib.util
import inspect
import re

import matplotlib
import pytest
from conftest import ROOT, run_python
from PIL import Image, ImageChops
from scripts import SCRIPTS, by_script

from senet import layers
from senet.cli.command_line import parse
from senet.compat import tf
from senet.data.shapes import load_shapes
from senet.hyperparameters import computing_fields

HYPERPARAMETERS = {script.name: script.module.Hyperparameters for script in SCRIPTS}
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


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The first command's training, in a folder of its own: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("first")
    (arguments,) = re.findall(r"python (SE_ResNeXt\.py --.*)", command("train"))
    script, *options = arguments.split()
    status, output, errors = run_python(ROOT / script, *options, cwd=folder)
    assert (status, errors) == (0, "")
    return folder, output.splitlines()


def words(lines):
    """Without the numbers, which differ between machines; columns may move with them."""
    return [" ".join(re.sub(r"[\d.]+", "#", line).replace("#", " ").split()) for line in lines]


def test_the_first_command_trains_to_95_percent_and_prints_what_is_shown(first_run):
    _, lines = first_run
    shown = output_shown("train")
    (*_, last) = (line for line in lines if line.startswith("epoch"))
    assert float(last.rpartition("test_acc: ")[2]) >= 0.95
    assert lines[:2] == shown[:2]
    # The third line names the device.
    assert words(lines[3:]) == words(shown[3:])


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "excitation"])
def test_the_commands_print_what_is_shown(first_run, name):
    folder, _ = first_run
    _, _, images, labels, label_names = load_shapes()
    image = images[list(labels).index(label_names.index("circle"))]
    Image.fromarray(image).resize((256, 256), Image.Resampling.NEAREST).save(folder / "circle.png")
    call, *shown = output_shown(name)
    assert call.startswith(f"$ python SE_ResNeXt.py {name}")
    script, *arguments = call.removeprefix("$ python ").split()
    status, output, errors = run_python(ROOT / script, *arguments, cwd=folder)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    if name == "predict":  # which shapes come second and third may differ
        assert lines[0].startswith("circle.png: circle ")
        assert len(lines) == len(shown) == 1
    else:
        assert words(lines) == words(shown)


def test_the_export_is_loaded_by_the_code_shown(first_run, tmp_path):
    folder, _ = first_run
    arguments = "export", tmp_path / "models/shapes/1", "--run_dir=runs/shapes"
    assert run_python(ROOT / "SE_ResNeXt.py", *arguments, cwd=folder)[0] == 0
    (code,) = (block for block in python_blocks() if "saved_model" in block)
    status, output, errors = run_python("-c", code, cwd=tmp_path, PYTHONPATH="")
    assert status == 0, errors
    assert re.fullmatch(r"b'\w+' [01]\.\d+\n", output)


def blocks(*languages):
    """The texts between fences that begin with one of `languages`, "" for none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for language, text in fenced if language in languages]


def python_blocks():
    return blocks("python")


def script_calls():
    """(script, [argument, ...]) of each call of a script in a command block."""
    calls = re.findall(r"python (SE_\w+)\.py((?: [^\s\"&]+)*)", "".join(blocks("bash", "")))
    return [(script, arguments.split()) for script, arguments in calls]


def test_the_calls_are_found():
    assert len(script_calls()) >= 12


def parsed(name, arguments):
    """What the command line of the script `name` says: (command, fields, arguments)."""
    return parse(arguments, HYPERPARAMETERS[name])


@pytest.mark.parametrize("name, arguments", script_calls())
def test_every_call_of_a_script_is_understood(name, arguments):
    command, fields, _ = parsed(name, arguments)
    if command == "train":
        HYPERPARAMETERS[name](**fields)


def test_no_two_trainings_of_the_page_meet_in_a_folder():
    trained = {}
    for name, arguments in script_calls():
        command, fields, _ = parsed(name, arguments)
        if command == "train":
            hyperparameters = HYPERPARAMETERS[name](**fields)
            computed = name, computing_fields(hyperparameters)
            assert trained.setdefault(hyperparameters.run_dir, computed) == computed
    assert len(trained) >= 6


def test_every_option_named_exists():
    fields = {f.name for cls in HYPERPARAMETERS.values() for f in dataclasses.fields(cls)}
    assert set(re.findall(r"`--(\w+)", README)) - {"help", "name", "checkpoint", "json"} <= fields


def test_every_file_named_exists():
    named = set(
        re.findall(r"`((?:senet|tests|assests|benchmarks)/[\w./]*|\w+\.(?:py|txt))`", README)
    )
    assert len(named) >= 5
    written_by_a_run = {"logs.txt"}
    assert [name for name in named - written_by_a_run if not (ROOT / name).exists()] == []


@by_script
def test_parameters_and_multiply_adds_of_the_table(graph, script):
    x = tf.placeholder(tf.float32, [1, 32, 32, 3])
    script.network(x, False, script.hyperparameters())
    products = 0
    for op in graph.get_operations():
        if op.type in ("Conv2D", "MatMul"):
            *inner, _ = op.inputs[1].shape.as_list()
            products += tf.TensorShape(inner).num_elements() * op.outputs[0].shape.num_elements()
    cells = re.search(rf"\| {script.title} \| (\d+,.*)", README).group(1).split(" | ")
    assert cells[:3] == [
        f"{script.parameters[16]:,}",
        f"{script.parameters[16] - script.parameters[0]:,}",
        f"{products / 1e9:.2f} G",
    ]


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "assests" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    return draw


def test_shapes_are_what_their_script_draws(draw):
    kept = Image.open(ROOT / "assests" / "shapes.png")
    assert ImageChops.difference(kept, draw.draw_shapes()).getbbox() is None


def test_tables_are_what_their_script_makes(draw):
    assert draw.with_tables(README) == README


@pytest.mark.parametrize(
    "name", ["se_block", "se_modules", "paper", "learning_curves", "excitation"]
)
def test_figures_are_what_their_script_draws(draw, name):
    assert name in draw.FIGURES
    kept = (ROOT / "assests" / f"{name}.svg").read_text()
    (version,) = re.findall(r"Matplotlib v([\d.]+)", kept)
    drawn = draw.as_svg(draw.FIGURES[name])
    if version == matplotlib.__version__:
        assert drawn == kept
    else:  # whose glyphs may be other ones
        size = re.compile(r'viewBox="[^"]+"')
        assert size.search(drawn).group() == size.search(kept).group()


def test_every_figure_shown_exists():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert len(shown) >= 9
    assert [name for name in shown if not (ROOT / name).exists()] == []


def test_every_link_within_the_page_leads_somewhere():
    titles = re.findall(r"^#+ (.*)$", README, re.M)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors
