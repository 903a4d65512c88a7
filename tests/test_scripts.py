"""What holds for each of the three training scripts."""

import inspect

import pytest
from conftest import ROOT, run_python
from fake_cifar10 import make_files, write_folder

import SE_Inception_resnet_v2
import SE_Inception_v4
import SE_ResNeXt
from senet.hyperparameters import parse_field

SCRIPTS = [SE_ResNeXt, SE_Inception_v4, SE_Inception_resnet_v2]
INCEPTIONS = SCRIPTS[1:]
by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)


def text(script, name):
    """The source of a function or class of a script, the network's name aside."""
    return inspect.getsource(getattr(script, name)).replace(script.__name__, "NETWORK")


@pytest.mark.parametrize("name", ["learning_rate_schedule", "build_graph", "train", "main"])
@pytest.mark.parametrize("script", INCEPTIONS, ids=lambda script: script.__name__)
def test_what_is_meant_to_be_the_same_is_the_same_text(script, name):
    # Shorter names may let a formatter put on one line what another script breaks.
    assert "".join(text(script, name).split()) == "".join(text(SE_ResNeXt, name).split())


def test_all_three_gate_in_the_same_way():
    texts = {inspect.getsource(getattr(script, script.__name__).SE) for script in SCRIPTS}
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["__init__", "Build_SEnet", "Stem"])
def test_the_inceptions_share_their_frame_and_stem(name):
    one, other = (
        inspect.getsource(getattr(getattr(script, script.__name__), name)) for script in INCEPTIONS
    )
    if name == "Build_SEnet":  # the modules between stem and classifier are each one's own
        one, other = (
            [
                line
                for line in source.splitlines()
                if "Inception" not in line and "number" not in line and "# " not in line
            ]
            for source in (one, other)
        )
    assert one == other


@by_name
def test_sections_come_in_the_same_order(script):
    source = inspect.getsource(script)
    titles = [line.strip("# -") for line in source.splitlines() if line.startswith("# ----")]
    assert titles == ["hyperparameters", "network", "loss and schedule", "training loop"]


@by_name
def test_training_loop_fits_a_screen(script):
    assert len(inspect.getsource(script.train).splitlines()) <= 35


@by_name
def test_shared_hyperparameters_have_the_same_defaults(script):
    shared = {
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "init_learning_rate": 0.1,
        "reduction_ratio": 16,
        "batch_size": 128,
        "total_epochs": 100,
        "padding": 32,
        "dataset": "cifar10",
        "data_dir": "data",
        "run_dir": f"runs/{script.__name__}",
    }
    hyperparameters = script.Hyperparameters()
    assert {name: getattr(hyperparameters, name) for name in shared} == shared


@pytest.mark.parametrize("script", INCEPTIONS, ids=lambda script: script.__name__)
def test_padding_that_leaves_less_than_75_pixels_is_refused(script, capsys):
    assert script.main(["--padding=21"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: padding=21: makes pictures of 74 pixels a side")
    assert "75" in errors
    assert errors.count("\n") == 1
    script.Hyperparameters(padding=22)


@by_name
def test_the_smaller_start_is_understood_and_smaller(script):
    pairs = [option[2:].split("=") for option in script.Hyperparameters.SMALLER.split()]
    values = {name: parse_field(script.Hyperparameters, name, text) for name, text in pairs}
    smaller, default = script.Hyperparameters(**values), script.Hyperparameters()
    assert smaller.padding < default.padding
    assert smaller.total_epochs < default.total_epochs


@by_name
def test_import_does_nothing(script, tmp_path):
    code = (
        f"import {script.__name__}; from senet.compat import tf;"
        "assert not tf.get_default_graph().get_operations()"
    )
    outcome = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert outcome == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@by_name
def test_trains_from_the_command_line_with_clean_output(script, tmp_path):
    write_folder(tmp_path / "data", make_files(count=8))
    status, output, errors = run_python(
        f"{script.__name__}.py",
        "--padding=22",
        "--batch_size=20",
        "--total_epochs=1",
        f"--data_dir={tmp_path / 'data'}",
        f"--run_dir={tmp_path / 'run'}",
        *(["--depth=4"] if script is SE_ResNeXt else []),
    )
    assert (status, errors) == (0, "")
    network, *_, row, done, best, after = output.splitlines()
    assert network.startswith(f"network: {script.__name__}, ")
    assert row.startswith("epoch: 1/1, train_loss: ")
    assert row == (tmp_path / "run" / "logs.txt").read_text().strip()
    assert after == f"next: python {script.__name__}.py evaluate --run_dir={tmp_path / 'run'}"
