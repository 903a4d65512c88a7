import dataclasses
import inspect

import numpy as np
import pytest
from fake_cifar10 import make_files, write_folder
from test_scripts import SCRIPTS

import SE_ResNeXt
from senet.cli.command_line import run_command
from senet.compat import tf
from senet.errors import HyperparameterError


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a script's `main` in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, script=SE_ResNeXt):
        status = script.main(list(argv))
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--paddin=0", "unknown hyperparameter 'paddin': it is one of cardinality, depth,"),
        ("--padding=-1", "padding=-1: padding takes a whole number, 0 or more"),
        ("--padding=1.5", "padding=1.5: padding takes a whole number, 0 or more"),
        ("--padding", "padding has no value: write --padding=VALUE"),
        ("--batch_size=0", "batch_size=0: batch_size takes a whole number, 1 or more"),
        ("--momentum=1", "momentum=1.0: momentum takes a number, from 0.0 up to, not including,"),
        ("--init_learning_rate=0", "init_learning_rate=0.0: init_learning_rate takes a number, ab"),
        ("--init_learning_rate=inf", "init_learning_rate=inf: init_learning_rate takes a number"),
        ("--weight_decay=nan", "weight_decay=nan: weight_decay takes a number, 0.0 or more"),
        ("--allow_soft_placement=yes", "allow_soft_placement=yes: allow_soft_placement takes True"),
        (
            "--dataset=mnist",
            "--dataset must be cifar10, cifar100, shapes or a folder with images in train/<",
        ),
        ("--reduction_ratio=257", "reduction_ratio=257: the first stage has 256 channels"),
        (
            "--total_epochs=ten",
            "total_epochs=ten: total_epochs takes a whole number, from 1 up to, not",
        ),
        ("-x", "'-x' is not understood: options are --name=value"),
        (
            "evalute",
            "unknown command 'evalute': it is one of train, evaluate, predict, export, excit",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(call, tmp_path, argument, message):
    status, output, errors = call(argument)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_prints_the_declaration_of_the_hyperparameters(call, script):
    status, output, errors = call("--help", script=script)
    assert (status, errors) == (0, "")
    declared = inspect.getsource(script.Hyperparameters)
    for field in dataclasses.fields(script.Hyperparameters):
        (line,) = (line for line in declared.splitlines() if line.startswith(f"    {field.name}: "))
        assert "  # " in line  # what it means
        assert line in output
    assert "def " not in output


def test_hyperparameters_made_in_code_are_checked_too():
    with pytest.raises(HyperparameterError, match="padding=-1"):
        SE_ResNeXt.Hyperparameters(padding=-1)
    with pytest.raises(HyperparameterError, match="batch_size=1.5"):
        SE_ResNeXt.Hyperparameters(batch_size=1.5)


def test_no_network_and_no_data_names_both_ways_out(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:9")  # nobody answers there
    status, output, errors = call("--data_dir=here")
    assert (status, output) == (1, "")
    assert errors.startswith("error: cannot download CIFAR-10: ")
    assert "put cifar-10-python.tar.gz into here, or train without it: --dataset=shapes" in errors
    assert errors.count("\n") == 1


def test_a_broken_data_file_is_one_line_and_exit_1(call, tmp_path):
    write_folder(tmp_path / "data", {**make_files(), "test_batch": b""})
    status, output, errors = call()
    assert (status, output) == (1, "")
    assert errors.startswith("error: data/cifar-10-batches-py/test_batch: damaged or truncated")
    assert errors.count("\n") == 1


def test_out_of_memory_names_the_cure(capfd):
    def allocate_a_petabyte(hyperparameters):
        with tf.Graph().as_default(), tf.Session() as session:
            size = tf.placeholder_with_default(np.int64(2**48), [])
            session.run(tf.fill([size], 0.0))

    status = run_command({"train": allocate_a_petabyte}, SE_ResNeXt.Hyperparameters, [])
    assert status == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "error: out of memory: try again with a smaller --micro_batch_size (0 is the whole batch)"
    )
