"""The command line: parsing, help, and errors, which give one line and an exit status."""

import io
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from annotated_types import Interval
from conftest import ROOT, assert_one_line_error
from scripts import by_script

from senet.cli.command_line import COMMANDS, Command, parse, run_command
from senet.engine.compat import tf
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


class TestParse:
    @pytest.mark.parametrize(
        "line, command, fields, arguments",
        [
            ("", "train", {}, {}),
            ("train", "train", {}, {}),
            ("--width=4", "train", {"width": 4}, {}),
            ("--width 4", "train", {"width": 4}, {}),
            ("--rate=-1e-3", "train", {"rate": -0.001}, {}),
            ("--rate -1", "train", {"rate": -1.0}, {}),
            ("--run_dir=a=b", "train", {"run_dir": "a=b"}, {}),
            ("--fast", "train", {"fast": True}, {}),
            ("--fast=False", "train", {"fast": False}, {}),
            ("--fast False", "train", {"fast": False}, {}),
            ("--width=1 --width=2", "train", {"width": 2}, {}),
            ("--run_dir=x evaluate", "evaluate", {"run_dir": "x"}, {}),
            ("--run_dir x evaluate --run_dir=y", "evaluate", {"run_dir": "y"}, {}),
            ("--fast evaluate --width=2", "evaluate", {"fast": True, "width": 2}, {}),
            ("evaluate --checkpoint c", "evaluate", {}, {"checkpoint": "c"}),
            ("predict --json a b", "predict", {}, {"images": ["a", "b"], "json": True}),
            (
                "--fast predict a --json b --width 4 c",
                *("predict", {"fast": True, "width": 4}),
                {"images": ["a", "b", "c"], "json": True},
            ),
            (
                "predict a --checkpoint c --fast -- --json",
                *("predict", {"fast": True}),
                {"images": ["a", "--json"], "checkpoint": "c"},
            ),
            ("predict -- -a.png", "predict", {}, {"images": ["-a.png"]}),
            ("predict -- --fast", "predict", {}, {"images": ["--fast"]}),
            ("export --width=2 out", "export", {"width": 2}, {"folder": "out"}),
            ("excitation", "excitation", {}, {}),
        ],
    )
    def test_a_command_line_becomes_a_command_fields_and_arguments(
        self, line, command, fields, arguments
    ):
        given = parse(line.split(), Settings)
        assert given[:2] == (command, fields)
        assert {"json": False, **given[2]} == {"json": False, **arguments}


class TestInvalidCommandLines:
    @pytest.mark.parametrize(
        "line, message",
        [
            ("--widht=0", "unknown option '--widht': did you mean --width?"),
            ("--zzz 0", "unknown option '--zzz': see --help"),
            ("--wid=3", "unknown option '--wid': did you mean --width?"),
            ("--width=1.5", "--width must be a valid integer, got 1.5"),
            ("--width=", "--width must be a valid integer, got ''"),
            ("--width=65", "--width must be at most 64, got 65"),
            ("--rate=nan", "--rate must be a finite number, got 'nan'"),
            ("--rate=slow", "--rate must be a valid number, got 'slow'"),
            ("--fast=maybe", "--fast must be a valid boolean, got 'maybe'"),
            ("predict a.png b.png --run_dir", "--run_dir must have a value"),
            ("publish folder --note", "--note must have a value"),
            ("evaluate --width=-1", "--width must be at least 0, got -1"),
            # These errors are argparse's.
            *[("--width", "--width"), ("-x", "-x"), ("evalute", "evaluate"), ("x\ny", r"x\ny")],
            *[("evaluate more", "more"), ("evaluate --json", "--json")],
            *[("--checkpoint=x", "--checkpoint"), ("predict", "IMAGE"), ("export", "FOLDER")],
        ],
    )
    def test_the_error_is_one_line_that_says_what_is_allowed(self, call, line, message):
        result = call(*line.split(" "))
        assert_one_line_error(result, 2, "")
        assert message in result[2]
        assert "usage" not in result[2]

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
        assert "--fast {True,False} skip nothing (default: False)" in text
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
        for name in script.hyperparameters().as_dict():
            assert f"--{name} " in output

    @pytest.mark.slow
    def test_a_closed_pipe_ends_help_quietly(self):
        command = f"{sys.executable} SE_ResNet.py --help | (exec 0<&-; sleep 0)"
        result = subprocess.run(
            command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (result.stdout, result.stderr) == ("", "")


class TestFailures:
    @pytest.mark.parametrize(
        "error, status, message",
        [
            (MemoryError(), 1, "out of memory; use a smaller --micro_batch_size"),
            (tf.errors.ResourceExhaustedError(None, None, "OOM when "), 1, "out of memory; use a "),
            (FileNotFoundError(2, "No such file", "a\nb"), 1, r"a\nb: No such file"),
            (FileNotFoundError(2, "No such file", "\x1b[2J"), 1, r"\x1b[2J: No such file"),
            (KeyboardInterrupt(), 130, "interrupted"),
        ],
    )
    def test_an_error_caused_by_input_or_ctrl_c_gives_one_line(self, call, error, status, message):
        def train(_):
            raise error

        assert_one_line_error(call(train=train), status, message)

    @pytest.mark.parametrize("mistake", [TypeError, AttributeError, NameError, ValueError])
    def test_a_mistake_in_a_script_keeps_its_traceback(self, call, mistake):
        def train(_):
            raise mistake("in an edited script")

        with pytest.raises(mistake, match="in an edited script"):
            call(train=train)

    def test_a_signal_gives_its_message_and_exit_status(self, call):
        def train(_):
            raise Stopped(15, "saved at step 3")  # SIGTERM

        assert call(train=train) == (143, "", "saved at step 3\n")

    def test_a_terminal_without_utf8_gets_escapes(self, call, monkeypatch):
        terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        assert call(train=lambda _: print("猫"))[0] == 0
        assert terminal.buffer.getvalue() == b"\\u732b\n"


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

    def test_devices_in_the_file_are_ignored_unlike_those_on_the_command_line(self, evaluate):
        assert "devices='all'" in evaluate('{"devices": "0,1"}')[1]
        assert "devices='cpu:0'" in evaluate('{"devices": "0,1"}', "--devices=cpu:0")[1]
