"""Parse the command line of a script, run the command, and turn errors into one line and an exit
status."""

import argparse
import ast
import collections
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import pathlib
import re
import shlex
import sys
import textwrap
import traceback

from senet.cli import commands
from senet.cli.publish import publish
from senet.compat import discard_output, tf
from senet.errors import Failure, HyperparameterError, first_line, printable
from senet.hyperparameters import choices, load_fields, parse_field, shown
from senet.signals import Stopped

CHECKPOINT = (
    "[--checkpoint=NAME]",
    "--checkpoint",
    {"metavar": "NAME", "help": "checkpoint to use (default: the newest)"},
)
# Words after a flag that are read as its value; all but True and False are then rejected.
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")
JSON = ("[--json]", "--json", {"action": "store_true", "help": "print one JSON object per image"})
NOTE = (
    "[--note=TEXT]",
    "--note",
    {"metavar": "TEXT", "help": "remark on the training data for the model card"},
)
# The function, its help, and the arguments, each as (usage, name, settings for argparse).
COMMANDS = {
    "train": (None, "train, or resume the run in run_dir (the default command)"),
    "evaluate": (
        commands.evaluate,
        "print loss, accuracy and the confusion matrix of the test set",
        CHECKPOINT,
    ),
    "predict": (
        commands.predict,
        "print the most probable classes of image files",
        ("IMAGE...", "images", {"metavar": "IMAGE", "nargs": "+"}),
        CHECKPOINT,
        JSON,
    ),
    "export": (
        commands.export,
        "write a SavedModel into a new folder",
        ("FOLDER", "folder", {"metavar": "FOLDER"}),
        CHECKPOINT,
    ),
    "publish": (
        publish,
        "write the network (without the optimizer's state) and a model card into a new folder",
        ("FOLDER", "folder", {"metavar": "FOLDER"}),
        CHECKPOINT,
        NOTE,
    ),
    "excitation": (
        commands.excitation,
        "draw the mean gate of every channel of the SE blocks for each class",
        CHECKPOINT,
    ),
}


def run_command(train, network, Hyperparameters, argv=None):
    """Run the command line `argv` of a script and return the exit status: 0 for success, 1 for a
    failure, 2 for an invalid command line, 128 + N if signal N stopped the command.

    `train` is called with a Hyperparameters; `network` is the script's class. The other commands
    use the hyperparameters of the run in `run_dir`, unless the command line overrides them."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what a terminal without UTF-8 cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
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
    except (OverflowError, RecursionError, UnicodeError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{pathlib.Path(frame.filename).name}, line {frame.lineno}"
        kind = type(error).__name__
        return _fail(1, f"{kind} in {where}: {first_line(error)}; check the options")
    except KeyboardInterrupt:
        return _fail(130, "interrupted; run the same command to restart")


def _run(train, network, Hyperparameters, argv):
    try:
        command, fields, arguments = parse(argv, Hyperparameters)
    except SystemExit:  # raised by argparse after --help
        return 0
    if command == "train":
        train(Hyperparameters(**fields))
        return 0
    run_dir = fields.get("run_dir", Hyperparameters.run_dir)
    # The run_dir and the devices in the file may be those of another machine.
    trained = _fields_of_run(run_dir, Hyperparameters) | {"run_dir": run_dir}
    trained.pop("devices", None)
    fields = trained | fields
    function, *_ = COMMANDS[command]
    return function(network, Hyperparameters(**fields), **arguments) or 0


def _fail(status, message):
    _print_error(f"error: {printable(message)}")
    return status


def _print_error(line):
    """Print a line to standard error, even if its reader, such as `tee`, has ended."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _fields_of_run(run_dir, Hyperparameters):
    path = pathlib.Path(run_dir) / "hyperparameters.json"
    if not path.exists():
        shipped = _shipped(Hyperparameters)
        example = f", such as --run_dir={shlex.quote(str(shipped))}" if shipped else ""
        raise Failure(
            f"no run in {run_dir}; train first, or use the --run_dir of an existing run{example}"
        )
    return load_fields(path, Hyperparameters)


def _shipped(Hyperparameters):
    """Return the folder of the trained network that comes with the script, or None."""
    script = _script(Hyperparameters).resolve()
    folder = script.parent / "models" / script.stem
    if not folder.exists():
        return None
    here = pathlib.Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _script(Hyperparameters):
    """Return the path of the script that defines `Hyperparameters`."""
    module = sys.modules[Hyperparameters.__module__]
    return pathlib.Path(getattr(module, "__file__", None) or sys.argv[0])


def parse(argv, Hyperparameters):
    """Return (command, fields, arguments): the command's name, the hyperparameters in `argv`,
    {name: value}, and the command's other arguments, {name: value}.

    Prints the help and raises SystemExit for --help. Raises HyperparameterError if `argv` is not
    valid."""
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    flags = {f"--{f.name}" for f in dataclasses.fields(Hyperparameters) if type(f.default) is bool}
    arguments = {name: settings for _, _, *rest in COMMANDS.values() for _, name, settings in rest}
    of_commands = [name for name in arguments if name.startswith("--")]
    if taken := {"--help", *of_commands} & {f"--{name}" for name in names}:
        raise HyperparameterError(
            f"{min(taken)} is already an option of a command; rename the hyperparameter"
        )
    _check_names(argv, [*(f"--{name}" for name in names), *of_commands, "--help"])
    before = _before_dashes(argv)
    valueless = {"--help", *(name for name in of_commands if "action" in arguments[name])}
    command, options, others = _sorted_words(before, flags, valueless)
    words = [*command, *options, *others, *argv[len(before) :]]
    parsed = vars(_parser(Hyperparameters).parse_args(words))
    command = parsed.pop("command", None) or "train"
    strings = {name: parsed.pop(f"--{name}") for name in names if f"--{name}" in parsed}
    fields = {name: parse_field(Hyperparameters, name, text) for name, text in strings.items()}
    return command, fields, parsed


def _before_dashes(argv):
    """Return the words before `--`. Those after it are never options: `predict -- --xla` reads the
    file --xla."""
    return list(itertools.takewhile(lambda word: word != "--", argv))


def _sorted_words(words, flags, valueless):
    """Return three lists: the command (empty if there is none), the options, as --name=value, and
    the positional arguments. They are separated because argparse requires positional arguments to
    be adjacent, which they are not in `predict a.png --json b.png`. Options in `flags` may omit
    their value; those in `valueless` have none. Raises HyperparameterError if another option has no
    value."""
    options, others = [], []
    rest = collections.deque(words)
    while rest:
        word = rest.popleft()
        following = rest[0] if rest else "--"
        if not word.startswith("--"):
            others.append(word)
        elif "=" in word or word in valueless:
            options.append(word)
        elif word in flags and following.lower() not in BOOLEANS:  # `--xla evaluate`
            options.append(f"{word}=True")
        elif following.startswith("--"):
            raise HyperparameterError(f"{word} must have a value; see --help")
        else:
            options.append(f"{word}={rest.popleft()}")
    return others[:1], options, others[1:]


def _check_names(argv, known):
    """Raise HyperparameterError for an unknown --name. (argparse would report the wrong word.)"""
    for word in _before_dashes(argv):
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(known)}"
            raise HyperparameterError(f"unknown option {shown(name)}: {hint}")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings):
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **settings)

    def error(self, message):
        text = message.removeprefix("argument ").replace("COMMAND: ", "")
        text = re.sub(r"\S{101,}", lambda word: f"{word[0][:60]}...{word[0][-20:]}", text)
        raise HyperparameterError(f"{text}; see --help")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=100)


def _parser(Hyperparameters):
    script = _script(Hyperparameters).name
    fields, groups = _Parser(add_help=False), {}
    for name, (heading, comment) in _comments(Hyperparameters).items():
        if heading not in groups:
            groups[heading] = fields.add_argument_group(heading)
        default = getattr(Hyperparameters, name)
        allowed = ", ".join(map(str, choices(Hyperparameters, name)))
        default = f"default: {'none' if default == '' else default}"
        text = f"{comment} ({'; '.join(filter(None, [allowed, default]))})"
        text = text.strip().replace("%", "%%")
        groups[heading].add_argument(f"--{name}", dest=f"--{name}", metavar="VALUE", help=text)

    common = {"parents": [fields], "formatter_class": _Formatter}
    usage = f"python {script} [COMMAND] [--name=value ...]"
    parser = _Parser(
        usage=usage, description=sys.modules[Hyperparameters.__module__].__doc__, **common
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command, (_, text, *arguments) in COMMANDS.items():
        words = " ".join([command, *(usage for usage, *_ in arguments)])
        usage = f"python {script} {words} [--name=value ...]"
        subparser = subparsers.add_parser(
            command, usage=usage, help=text, description=text, **common
        )
        for _, name, settings in arguments:
            subparser.add_argument(name, **settings)
    return parser


def _comments(Hyperparameters):
    """Return {field: (heading, comment)}, the script's own fields first. The comment is the one
    after the field's declaration; the heading is the nearest comment line above that. Without
    source code, the comment is "" and the heading "hyperparameters"."""
    fields = {field.name: ("hyperparameters", "") for field in dataclasses.fields(Hyperparameters)}
    found = {}
    for cls in Hyperparameters.__mro__[:-1]:
        for name, heading, comment in _declarations(cls):
            _, overriding = found.get(name, ("", ""))
            found[name] = heading, overriding or comment
    own = {name: found[name] for name in inspect.get_annotations(Hyperparameters) if name in found}
    return {name: text for name, text in (own | fields | found).items() if name in fields}


def _declarations(cls):
    """Yield (name, heading, comment) of each assignment in the source of a class."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # no source, such as for a class typed into an interpreter
        return
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    for node in definition.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            last = lines[(node.end_lineno or node.lineno) - 1]
            after = last.encode()[node.end_col_offset :].decode()
            above = [line.strip(" #") for line in lines[: node.lineno] if line.strip()[:1] == "#"]
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            yield ast.unparse(target), (above or ["hyperparameters"])[-1], after.strip(" #")
