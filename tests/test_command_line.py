"""The command line: parsing, help, and errors, which give one line and an exit status."""

import dataclasses
import functools
import io
import subprocess
import sys
from typing import Annotated, Literal

import numpy as np
import pytest
from annotated_types import Interval
from conftest import ROOT, run_python
from fake_cifar10 import make_files, write_folder
from scripts import by_script

import SE_ResNeXt
from cifar10 import CIFAR10, load_cifar
from senet.cli.command_line import COMMANDS, Command, parse, run_command
from senet.data.datasets import LOADERS
from senet.engine.compat import tf
from senet.engine.devices import visible_gpus
from senet.engine.signals import Stopped
from senet.hyperparameters import RunHyperparameters


class Settings(RunHyperparameters):
    # network
    width: Annotated[int, Interval(ge=0, le=64)] = 8  # 50 % of the "#" channels
    rate: float = 0.5
    fast: bool = False  # skip nothing
    kind: Literal["plain", "wide"] = "plain"  # of network
    layers: Literal[29, 50] = 29


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Return a function that runs a command line in an empty folder and returns (exit status,
    standard output, standard error). By default, training only prints the hyperparameters."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, train=print, Hyperparameters=Settings):
        status = run_command(train, None, Hyperparameters, list(argv))
        return status, *capsys.readouterr()

    return call


def assert_one_line_error(result, status, start):
    assert result[:2] == (status, "")
    assert result[2].startswith(f"error: {start}")
    assert result[2].count("\n") == 1


class TestParse:
    @pytest.mark.parametrize(
        "argv, command, fields, arguments",
        [
            ([], "train", {}, {}),
            (["train"], "train", {}, {}),
            (["--width=4"], "train", {"width": 4}, {}),
            (["--width", "4"], "train", {"width": 4}, {}),
            (["--rate=-1e-3"], "train", {"rate": -0.001}, {}),
            (["--rate", "-1"], "train", {"rate": -1.0}, {}),
            (["--run_dir=a=b"], "train", {"run_dir": "a=b"}, {}),
            (["--fast"], "train", {"fast": True}, {}),
            (["--fast=False"], "train", {"fast": False}, {}),
            (["--fast", "False"], "train", {"fast": False}, {}),
            (["--width=1", "--width=2"], "train", {"width": 2}, {}),
            (["--run_dir=x", "evaluate"], "evaluate", {"run_dir": "x"}, {}),
            (["--run_dir", "x", "evaluate"], "evaluate", {"run_dir": "x"}, {}),
            (["--run_dir=x", "evaluate", "--run_dir=y"], "evaluate", {"run_dir": "y"}, {}),
            (["--fast", "evaluate", "--width=2"], "evaluate", {"fast": True, "width": 2}, {}),
            (["evaluate", "--checkpoint", "c"], "evaluate", {}, {"checkpoint": "c"}),
            (
                ["predict", "--json", "a.png", "b.png"],
                "predict",
                {},
                {"images": ["a.png", "b.png"], "json": True},
            ),
            (
                ["--fast", "predict", "a.png", "--json", "b.png", "--width", "4", "c.png"],
                "predict",
                {"fast": True, "width": 4},
                {"images": ["a.png", "b.png", "c.png"], "json": True},
            ),
            (
                ["predict", "a.png", "--checkpoint", "c", "--fast", "--", "--json"],
                "predict",
                {"fast": True},
                {"images": ["a.png", "--json"], "checkpoint": "c", "json": False},
            ),
            (["predict", "--", "-a.png"], "predict", {}, {"images": ["-a.png"], "json": False}),
            (["predict", "--", "--fast"], "predict", {}, {"images": ["--fast"], "json": False}),
            (["export", "--width=2", "out"], "export", {"width": 2}, {"folder": "out"}),
            (["excitation"], "excitation", {}, {}),
        ],
    )
    def test_a_command_line_becomes_a_command_fields_and_arguments(
        self, argv, command, fields, arguments
    ):
        given = parse(argv, Settings)
        assert given[:2] == (command, fields)
        assert {"json": False, **given[2]} == {"json": False, **arguments}

    def test_a_new_hyperparameter_needs_only_one_line(self, call):
        class WithDropout(Settings):
            dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.2  # share of zeros

        _, output, _ = call("--help", Hyperparameters=WithDropout)
        assert "share of zeros (default: 0.2)" in output
        _, output, _ = call("--dropout=0.3", Hyperparameters=WithDropout)
        assert "dropout=0.3" in output
        result = call("--dropout=1", Hyperparameters=WithDropout)
        assert_one_line_error(result, 2, "--dropout must be less than 1, got 1")

    @pytest.mark.parametrize("name", ["help", "checkpoint", "json"])
    def test_a_hyperparameter_with_the_name_of_an_option_is_reported(self, call, name):
        fields = {"__annotations__": {name: str}, name: "", "__module__": __name__}
        taken = type("Taken", (RunHyperparameters,), fields)
        result = call("--help", Hyperparameters=taken)
        message = f"--{name} is already an option of a command; rename the hyperparameter"
        assert_one_line_error(result, 2, message)


class TestInvalidCommandLines:
    @pytest.mark.parametrize(
        "argv, message",
        [
            (["--widht=0"], "unknown option '--widht': did you mean --width?"),
            (["--zzz", "0"], "unknown option '--zzz': the options are "),
            (["--wid=3"], "unknown option '--wid': did you mean --width?"),
            (["--width=-1"], "--width must be at least 0, got -1"),
            (["--width=1.5"], "--width must be a valid integer, got 1.5"),
            (["--width="], "--width must be a valid integer, got ''"),
            (["--width=65"], "--width must be at most 64, got 65"),
            (["--rate=nan"], "--rate must be a finite number, got 'nan'"),
            (["--fast=maybe"], "--fast must be a valid boolean, got 'maybe'"),
            (["predict", "a.png", "b.png", "--run_dir"], "--run_dir must have a value"),
            (["publish", "folder", "--note"], "--note must have a value"),
            (["evaluate", "--width=-1"], "--width must be at least 0, got -1"),
        ],
    )
    def test_the_message_says_what_is_allowed(self, call, argv, message):
        assert_one_line_error(call(*argv), 2, message)

    @pytest.mark.parametrize(
        "argv, culprit",
        [
            (["--width"], "--width"),
            (["-x"], "-x"),
            (["evalute"], "evaluate"),
            (["x\ny"], r"x\ny"),
            (["evaluate", "more"], "more"),
            (["evaluate", "--json"], "--json"),
            (["--checkpoint=x"], "--checkpoint"),
            (["predict"], "IMAGE"),
            (["export"], "FOLDER"),
        ],
    )
    def test_errors_of_argparse_are_one_line_too(self, call, argv, culprit):
        result = call(*argv)
        assert_one_line_error(result, 2, "")
        assert culprit in result[2]
        assert "usage" not in result[2]

    def test_the_exit_status_does_not_depend_on_who_reads_the_errors(self, monkeypatch):
        class Closed(io.StringIO):
            def write(self, _):
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stderr", Closed())
        assert SE_ResNeXt.main(["--padding=-1"]) == 2

    def test_a_long_argument_is_shortened_in_the_message(self, call):
        assert len(call("x" * 10_000)[2]) < 300

    @by_script
    def test_a_script_rejects_an_invalid_value_before_it_writes_anything(
        self, script, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        assert script.module.main(["--padding=-1"]) == 2
        assert capsys.readouterr() == ("", "error: --padding must be at least 0, got -1\n")
        assert list(tmp_path.iterdir()) == []


class TestHelp:
    def test_help_lists_all_commands_and_fields_with_comment_and_default(self, call):
        status, output, errors = call("--help")
        assert (status, errors) == (0, "")
        text = " ".join(output.split())
        assert '--width INT 50 % of the "#" channels (default: 8)' in text
        assert "--rate FLOAT (default: 0.5)" in text
        assert "--kind {plain,wide} of network (default: plain)" in text
        assert "--layers {29,50} (default: 29)" in text
        assert "--data_dir TEXT " in text
        assert output.index("network:") < output.index("--width") < output.index("--run_dir")
        for command in "train", "evaluate", "predict", "export", "publish", "excitation":
            assert f"\n    {command} " in output

    def test_help_of_a_command_shows_its_arguments_and_the_fields(self, call):
        status, output, errors = call("predict", "--help")
        assert (status, errors) == (0, "")
        assert "predict IMAGE... [--checkpoint=NAME] [--json]" in output
        assert '50 % of the "#" channels (default: 8)' in " ".join(output.split())

    @by_script
    def test_help_lists_every_field_of_a_script(self, script, capsys):
        assert script.module.main(["--help"]) == 0
        output = capsys.readouterr().out
        for name in vars(script.hyperparameters()):
            assert f"--{name} " in output

    @pytest.mark.slow
    def test_help_has_comments_even_if_python_strips_docstrings(self):
        arguments = "-W", "ignore", "SE_ResNeXt.py", "--help"
        status, output, errors = run_python(*arguments, PYTHONOPTIMIZE="2")
        assert (status, errors) == (0, "")
        assert "Nesterov momentum (default: 0.9)" in output

    @pytest.mark.slow
    def test_a_closed_pipe_ends_help_quietly(self):
        command = f"{sys.executable} SE_ResNeXt.py --help | (exec 0<&-; sleep 0)"
        result = subprocess.run(
            command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (result.stdout, result.stderr) == ("", "")


class TestFailures:
    @pytest.mark.parametrize(
        "error, message",
        [
            (MemoryError(), "out of memory; use a smaller --micro_batch_size"),
            (OverflowError("int too large"), "OverflowError in test_command_line.py, line "),
            (RecursionError("too deep"), "RecursionError in test_command_line.py, line "),
            (UnicodeError("no such character"), "UnicodeError in test_command_line.py, line "),
            (FileNotFoundError(2, "No such file", "a\nb"), r"a\nb: No such file"),
            (FileNotFoundError(2, "No such file", "\x1b[2J"), r"\x1b[2J: No such file"),
        ],
    )
    def test_an_error_caused_by_input_gives_one_line_and_exit_1(self, call, error, message):
        def train(_):
            raise error

        assert_one_line_error(call(train=train), 1, message)

    @pytest.mark.parametrize("mistake", [TypeError, AttributeError, NameError, ValueError])
    def test_a_mistake_in_a_script_keeps_its_traceback(self, call, mistake):
        def train(_):
            raise mistake("in an edited script")

        with pytest.raises(mistake, match="in an edited script"):
            call(train=train)

    def test_ctrl_c_before_anything_can_be_saved_gives_one_line_and_exit_130(self, call):
        def train(_):
            raise KeyboardInterrupt

        assert_one_line_error(call(train=train), 130, "interrupted")

    def test_a_signal_gives_its_message_and_exit_status(self, call):
        def train(_):
            raise Stopped(15, "saved at step 3")  # SIGTERM

        assert call(train=train) == (143, "", "saved at step 3\n")

    @pytest.mark.slow
    def test_tensorflow_running_out_of_memory_gives_a_one_line_error(self, capfd):
        def allocate_a_petabyte(_):
            with tf.Graph().as_default(), tf.Session() as session:
                size = tf.placeholder_with_default(np.int64(2**48), [])
                session.run(tf.fill([size], 0.0))

        visible_gpus()  # makes TensorFlow report now that there is no GPU
        capfd.readouterr()
        status = run_command(allocate_a_petabyte, None, Settings, [])
        message = "out of memory; use a smaller --micro_batch_size"
        assert_one_line_error((status, *capfd.readouterr()), 1, message)

    def test_a_terminal_without_utf8_gets_escapes(self, call, monkeypatch):
        terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        assert call(train=lambda _: print("猫"))[0] == 0
        assert terminal.buffer.getvalue() == b"\\u732b\n"

    def test_without_a_connection_and_data_both_remedies_are_suggested(self, call, monkeypatch):
        unreachable = dataclasses.replace(
            CIFAR10, url="http://localhost:9/"
        )  # nothing listens there
        monkeypatch.setitem(LOADERS, "cifar10", functools.partial(load_cifar, unreachable))
        options = {"train": SE_ResNeXt.train, "Hyperparameters": SE_ResNeXt.Hyperparameters}
        result = call("--data_dir=here", **options)
        assert_one_line_error(result, 1, "cannot download CIFAR-10: ")
        assert "into here" in result[2]
        assert "--dataset=shapes" in result[2]

    def test_a_broken_data_file_is_reported(self, call, tmp_path):
        write_folder(tmp_path / "data", {**make_files(), "test_batch": b""})
        options = {"train": SE_ResNeXt.train, "Hyperparameters": SE_ResNeXt.Hyperparameters}
        assert_one_line_error(call(**options), 1, "data/cifar-10-batches-py/test_batch: ")

    def test_an_unknown_data_set_is_rejected(self, call):
        options = {"train": SE_ResNeXt.train, "Hyperparameters": SE_ResNeXt.Hyperparameters}
        assert_one_line_error(call("--dataset=mnist", **options), 2, "--dataset must be cifar10, ")


class TestHyperparametersOfARun:
    """Test the hyperparameters that commands read from a run's hyperparameters.json."""

    @pytest.fixture
    def evaluate(self, call, tmp_path, monkeypatch):
        """Return a function that prints the hyperparameters that `evaluate` gets, for a run whose
        hyperparameters.json has the given text."""

        def evaluate(text, *options):
            (tmp_path / "hyperparameters.json").write_text(text, "utf-8")
            return call("evaluate", "--run_dir=.", *options)

        print_fields = Command(lambda network, hyperparameters: print(hyperparameters), "print")
        monkeypatch.setitem(COMMANDS, "evaluate", print_fields)
        return evaluate

    def test_the_command_line_overrides_the_file_which_overrides_the_defaults(self, evaluate):
        text = '{"width": 3, "rate": 0.1, "run_dir": "old", "save_minutes": 2}'
        status, output, _ = evaluate(text, "--save_minutes=3", "--mixed_precision=False")
        assert status == 0
        assert "run_dir='.'" in output
        assert "width=3, rate=0.1, fast=False" in output
        assert "save_minutes=3.0" in output
        assert "mixed_precision=False" in output

    @pytest.mark.parametrize("option, was", [("--rate=0.2", 0.1), ("--kind=wide", "plain")])
    def test_a_field_that_makes_another_network_must_be_that_of_the_run(
        self, evaluate, option, was
    ):
        """`kind` is not in the file: the run was trained with its default."""
        name, _, value = option.partition("=")
        message = f"{name} must be {was}, the value that the run was trained with, got {value}; "
        assert_one_line_error(evaluate('{"rate": 0.1}', option), 2, message)

    def test_devices_in_the_file_are_ignored_unlike_those_on_the_command_line(self, evaluate):
        assert "devices='all'" in evaluate('{"devices": "0,1"}')[1]
        assert "devices='cpu:0'" in evaluate('{"devices": "0,1"}', "--devices=cpu:0")[1]

    @pytest.mark.parametrize(
        "text, message",
        [
            ('{"foo": 3}', "has no hyperparameter 'foo'"),
            ('{"width": "3"}', "width must be a valid integer, got '3'"),
            ('{"width": null}', "width must be a valid integer, got None"),
            ("{", "cannot be read"),
        ],
    )
    def test_an_unusable_file_is_reported(self, evaluate, text, message):
        result = evaluate(text)
        assert_one_line_error(result, 1, "hyperparameters.json ")
        assert message in result[2]

    def test_a_missing_run_is_reported_with_a_remedy(self, call):
        result = call("evaluate", "--run_dir=nowhere")
        assert_one_line_error(
            result, 1, "no run in nowhere; train first, or use the --run_dir of an existing run"
        )
