"""Parse the command line of a script, run the command, and turn errors into one line and an exit
status."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from senet.cli import commands
from senet.cli.export import export
from senet.cli.publish import publish
from senet.engine.compat import discard_output, tf
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.signals import Stopped, signals_as_exceptions
from senet.engine.text import printable, shown
from senet.hyperparameters import RunHyperparameters
from senet.run.checkpoints import SavedCheckpoint, newest

# Fields that may differ from the run's in the commands that use it, besides those marked MAY_CHANGE
PREDICTION = ("mixed_precision", "test_time_augmentation")
MAY_DIFFER = {"publish": ()}  # its card describes the run
# Words after a flag that are its value, as in `--xla False`
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")

SETTINGS = "hyperparameters.json"


class Command(NamedTuple):
    """A command of the scripts."""

    function: Callable | None  # of network, hyperparameters, operand, options; None: the script's
    help: str
    operand: str = ""  # in the usage; its lower case is the name of the argument
    options: tuple = ()  # names in OPTIONS


OPTIONS: dict[str, dict[str, Any]] = {
    "checkpoint": {"metavar": "NAME", "help": "checkpoint to use, or best (default: the newest)"},
    "json": {"action": "store_true", "help": "print one JSON object per image"},
    "top": {
        "metavar": "N",
        "type": commands.number_of_classes,
        "help": "classes to print per image (default: 3)",
    },
    "note": {"metavar": "TEXT", "help": "remark on the training data for the model card"},
}
COMMANDS = {
    "train": Command(None, "train, or resume the run in run_dir (the default command)"),
    "evaluate": Command(
        commands.evaluate,
        "print loss, accuracy and the confusion matrix of the test set",
        options=("checkpoint",),
    ),
    "predict": Command(
        commands.predict,
        "print the most probable classes of image files",
        "IMAGES",
        ("checkpoint", "json", "top"),
    ),
    "export": Command(export, "write a SavedModel into a new folder", "FOLDER", ("checkpoint",)),
    "publish": Command(
        publish,
        "write the network (without the optimizer's state) and a model card into a new folder",
        "FOLDER",
        ("checkpoint", "note"),
    ),
    "excitation": Command(
        commands.excitation,
        "draw the mean gate of every channel of the SE blocks for each class",
        options=("checkpoint",),
    ),
}


def run_command(train, network, Hyperparameters, argv=None):
    """Run the command line `argv` of a script and return the exit status: 0 for success, 1 for a
    failure, 2 for an invalid command line, 128 + N if signal N stopped the command.

    `train` is called with a Hyperparameters; `network` is the script's class. The other commands
    use the hyperparameters of the run in `run_dir`; the command line may override only those that
    do not make it another network."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what a terminal without UTF-8 cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals_as_exceptions():
            status = _run(train, network, Hyperparameters, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except HyperparameterError as error:
        return _fail(2, error)
    except Failure as error:
        return _fail(1, error)
    except Stopped as stopped:
        _print_error(stopped)
        return stopped.exit_status
    except BrokenPipeError:  # such as `| head`; Python flushes again at exit
        discard_output(1)
        return 1
    except OSError as error:
        return _fail(1, f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return _fail(1, "out of memory; use a smaller --micro_batch_size (0 means the whole batch)")
    except KeyboardInterrupt:
        return _fail(130, "interrupted; run the same command to restart")


def _run(train, network, Hyperparameters, argv):
    try:
        command, fields, arguments = parse(argv, Hyperparameters)
    except SystemExit:  # raised by argparse after --help
        return 0
    if not (function := COMMANDS[command].function):
        hp = Hyperparameters(**_network_of_initial_checkpoint(fields, Hyperparameters), **fields)
        object.__setattr__(hp, "given", frozenset(fields))
        train(hp)
        return 0
    run_dir = fields.get("run_dir", Hyperparameters.run_dir)
    trained = _fields_of_run(run_dir, Hyperparameters)
    _check_unchanged(Hyperparameters, trained, fields, allowed=MAY_DIFFER.get(command, PREDICTION))
    # The run_dir and the devices in the file may be those of another machine.
    trained.pop("devices", None)
    fields = trained | {"run_dir": run_dir} | fields
    return function(network, Hyperparameters(**fields), **arguments) or 0


def _network_of_initial_checkpoint(given, Hyperparameters):
    """Return the fields of the network, {name: value}, of the run whose weights training starts
    from, except those that are `given`. Print a line if some differ from the defaults."""
    initial = given.get("initial_checkpoint", Hyperparameters.initial_checkpoint)
    if not initial:
        return {}
    start = pathlib.Path(initial.removesuffix(".index"))
    run = pathlib.Path(given.get("run_dir", Hyperparameters.run_dir))
    # A resumed run has its own copy of them, and does not need the other run. Without a checkpoint,
    # it may be left over from an attempt with other options.
    if newest(run / "model"):
        start = run
    file = (start if start.is_dir() else start.parent.parent) / SETTINGS
    if file.exists():
        trained = Hyperparameters.load(file)
    elif pathlib.Path(f"{start}.index").exists():  # a checkpoint that was copied
        trained = SavedCheckpoint(start, "use another --initial_checkpoint").fields
    else:
        return {}
    defaults = Hyperparameters().network()
    network = {name: trained.get(name, default) for name, default in defaults.items()}
    adopted = {n: v for n, v in network.items() if n not in given and v != defaults[n]}
    replaced = {n: v for n, v in network.items() if given.get(n, v) != v}
    notes = [f"{name} {value}" for name, value in adopted.items()]
    notes += [f"{name} {given[name]} instead of {value}" for name, value in replaced.items()]
    if notes:
        print(f"network of {initial}: {', '.join(notes)}", flush=True)
    # A script's own field that makes the network, but is not marked Network, must not go unnoticed.
    # (A resumed run compares all fields.)
    own = Hyperparameters().as_dict().keys() - RunHyperparameters().as_dict().keys()
    unmarked = own - network.keys() - Hyperparameters.FINE_TUNING.keys() - given.keys()
    left = [n for n in trained if n in unmarked and trained[n] != getattr(Hyperparameters, n)]
    if left and start != run:
        listed = ", ".join(f"{name} {trained[name]}" for name in left)
        print(f"not adopted, since not marked Network: {listed}", flush=True)
    return adopted


def _check_unchanged(Hyperparameters, trained, given, allowed):
    """Raise HyperparameterError if a `given` field differs from the run's, `trained`, unless it is
    in `allowed` or is marked MAY_CHANGE. The shapes of the variables would not show it."""
    before = Hyperparameters(**trained).compared()
    for name, value in given.items():
        if name not in allowed and before.get(name, value) != value:
            raise HyperparameterError(
                f"--{name} must be {before[name]}, the value that the run was trained with, got "
                f"{value}; remove the option"
            )


def _fail(status, message):
    _print_error(f"error: {printable(message)}")
    return status


def _print_error(line):
    """Print a line to standard error, even if its reader, such as `tee`, has ended."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _fields_of_run(run_dir, Hyperparameters):
    path = pathlib.Path(run_dir) / SETTINGS
    if not path.exists():
        shipped = pathlib.Path("models", pathlib.Path(inspect.getfile(Hyperparameters)).stem)
        example = f", such as --run_dir={shipped}" if shipped.exists() else ""
        raise Failure(
            f"no run in {run_dir}; train first, or use the --run_dir of an existing run{example}"
        )
    return Hyperparameters.load(path)


def parse(argv, Hyperparameters):
    """Return (command, fields, arguments): the command's name, the hyperparameters in `argv`,
    {name: value}, and the command's other arguments, {name: value}.

    Prints the help and raises SystemExit for --help. Raises HyperparameterError if `argv` is not
    valid."""
    # Words after `--` are never options: `predict -- --xla` reads the file --xla.
    end = argv.index("--") if "--" in argv else len(argv)
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    _check_names(argv[:end], [f"--{name}" for name in (*names, *OPTIONS, "help")])
    words = _with_values_of_flags(argv[:end], Hyperparameters)
    given = vars(_parser(Hyperparameters).parse_intermixed_args(words))
    command, *operands = [*given.pop("words"), *argv[end + 1 :]] or ["train"]
    if command not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        raise HyperparameterError(f"unknown command {shown(command)}: must be one of {allowed}")
    if given.pop("help", False):
        print(
            _parser(Hyperparameters, command if argv[0] != "--help" else "").format_help(), end=""
        )
        raise SystemExit
    strings = {name: given.pop(name) for name in names if name in given}
    if wrong := given.keys() - set(COMMANDS[command].options):
        raise HyperparameterError(f"--{min(wrong)} is not an option of {command}; see --help")
    fields = Hyperparameters.validated(strings, strings=True)
    return command, fields, given | _operand(command, operands)


def _with_values_of_flags(words, Hyperparameters):
    """Return `words` with =True after each --name of a bool that has no value: `--xla evaluate`."""
    fields = dataclasses.fields(Hyperparameters)
    flags = {f"--{field.name}" for field in fields if type(field.default) is bool}
    return [
        f"{word}=True" if word in flags and after.lower() not in BOOLEANS else word
        for word, after in itertools.pairwise([*words, "--"])
    ]


def _operand(command, words):
    """Return the operand of a command, {name: value}. Raises HyperparameterError if `words` are too
    few or too many."""
    operand = COMMANDS[command].operand
    if len(words) > (len(words) if operand == "IMAGES" else bool(operand)):
        raise HyperparameterError(
            f"unexpected argument {shown(words[-1])} of {command}; see --help"
        )
    if operand and not words:
        raise HyperparameterError(f"{command} must have the argument {operand}; see --help")
    return {operand.lower(): words if operand == "IMAGES" else words[0]} if operand else {}


def _check_names(words, known):
    """Raise HyperparameterError for an unknown --name. (argparse would suggest nothing.)"""
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see --help"
            raise HyperparameterError(f"unknown option {shown(name)}: {hint}")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        text = message.removeprefix("argument ").replace(
            ": expected one argument", " must have a value"
        )
        raise HyperparameterError(f"{text}; see --help")


def _parser(Hyperparameters, command=""):
    """Return the parser of all words, whose help is that of `command`, or of the script if it is
    empty."""
    usage = "[COMMAND]"
    listed = "\n\ncommands:"
    for name, about in COMMANDS.items():
        listed += f"\n    {name:11} {about.help}"
    text = sys.modules[Hyperparameters.__module__].__doc__
    options = OPTIONS.keys()
    if command:
        _, text, operand, options = COMMANDS[command]
        named = [
            f"[--{name}{'=' * ('metavar' in OPTIONS[name])}{OPTIONS[name].get('metavar', '')}]"
            for name in options
        ]
        listed = ""
        usage = " ".join([command, *operand.replace("IMAGES", "IMAGE...").split(), *named])
    script = pathlib.Path(inspect.getfile(Hyperparameters)).name
    parser = _Parser(
        usage=f"python {script} {usage} [--name=value ...]{listed}",
        description=text,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=28, width=100),
    )
    parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)
    of_command = parser.add_argument_group("options of commands")
    for name, settings in OPTIONS.items():
        hidden = {} if name in options else {"help": argparse.SUPPRESS}
        of_command.add_argument(f"--{name}", **{**settings, **hidden})
    of_command.add_argument("--help", action="store_true", help="show the help of a command")
    groups = {}
    for name, (heading, comment) in _comments(Hyperparameters).items():
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        default = getattr(Hyperparameters, name)
        shape = Hyperparameters.metavar(name)
        about = f"{comment} (default: {'none' if default == '' else default})".strip()
        groups[heading].add_argument(f"--{name}", metavar=shape, help=about.replace("%", "%%"))
    return parser


def _comments(Hyperparameters):
    """Return {field: (heading, comment)}, the script's own fields first. The comment is the one
    after the field's declaration, `name: type = value  # comment`; the heading is the nearest
    comment line above that."""
    found = {}
    for cls in Hyperparameters.__mro__[:-1]:
        heading = "hyperparameters"
        for line in inspect.getsource(cls).splitlines():
            if above := re.fullmatch("    # (.+)", line):
                heading = above[1]
            if field := re.fullmatch(r"    (\w+)(: .+?)? = .+?(  # (.+))?", line):
                _, overriding = found.get(field[1], ("", ""))
                found[field[1]] = heading, overriding or field[4] or ""
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    in_order = [*(name for name in found if name in names), *names]
    return {name: found.get(name, ("hyperparameters", "")) for name in in_order}
