"""Tests that apply to each of the training scripts. (The Inceptions train in test_networks.py.)"""

import pytest
from conftest import ROOT, run_python
from fake_cifar10 import make_files, write_folder
from scripts import SCRIPTS, assert_readable_graph, by_script

from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError


@by_script
def test_each_script_has_its_own_run_dir(script):
    assert script.hyperparameters().run_dir == f"runs/{script.name}"


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "Inception" in s.name])
def test_padding_to_fewer_than_75_pixels_is_rejected(script, capsys):
    assert script.module.main(["--padding=21"]) == 2
    errors = capsys.readouterr().err
    assert "74" in errors
    assert "75" in errors
    assert errors.count("\n") == 1
    script.hyperparameters(padding=22)
    script.hyperparameters(padding=0, image_size=75)


def test_se_resnet_needs_nine_pixels(graph):
    script = SCRIPTS[0]
    with pytest.raises(HyperparameterError, match="^--padding must be at least 1, got 0: the netw"):
        script.hyperparameters(image_size=8)
    script.network(tf.zeros([1, 9, 9, 3]), False, script.hyperparameters(image_size=9))


@pytest.mark.slow
def test_importing_a_script_has_no_side_effects(tmp_path):
    names = ", ".join(script.name for script in SCRIPTS)
    code = (
        f"import {names}; from senet.engine.compat import tf;"
        "assert not tf.get_default_graph().get_operations()"
    )
    outcome = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert outcome == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS[:2], ids=lambda script: script.name)
def test_training_from_the_command_line_has_clean_output(script, tmp_path):
    write_folder(tmp_path / "data", make_files(count=8))
    status, output, errors = run_python(
        f"{script.name}.py",
        *(f"--{name}={value}" for name, value in script.tiny.items()),
        "--batch_size=20",
        "--total_epochs=1",
        f"--data_dir={tmp_path / 'data'}",
        f"--run_dir={tmp_path / 'run'}",
    )
    assert status == 0
    # On a slow machine, an epoch of more than a minute prints its progress.
    assert [line for line in errors.splitlines() if not line.startswith("epoch 1/1: ")] == []
    network, *_, row, _, after = output.splitlines()
    assert network.startswith(f"network: {script.name}, ")
    assert row.startswith("epoch: 1/1, train_loss: ")
    assert row.startswith((tmp_path / "run" / "logs.txt").read_text().strip())
    assert after == f"next: python {script.name}.py evaluate --run_dir={tmp_path / 'run'}"
    assert_readable_graph(tmp_path / "run")
