"""From the command line to a script's `Hyperparameters`, and from what goes wrong to one line and
an exit status."""

import dataclasses
import inspect
import json
import pathlib
import sys

from senet.compat import tf
from senet.errors import Failure, HyperparameterError, first_line
from senet.hyperparameters import field_type, parse_field
from senet.run.signals import Stopped


def run_command(commands, Hyperparameters, argv=None):
    """Run one of `commands`, a dict of functions that take a Hyperparameters, and return the exit
    status: 0 done, 1 a failure at run time, 2 a wrong command line, 130 or 143 stopped by a signal.

    `argv` is `[command] [argument ...] [--name=value ...]` without the program; without a command
    the first of `commands` is run, which trains. The others start from the hyperparameters of the
    run in `run_dir`. What a command takes besides hyperparameters stands in its signature.
    """
    try:
        argv = sys.argv[1:] if argv is None else argv
        train = next(iter(commands))
        name, *rest = argv if argv and not argv[0].startswith("-") else [train, *argv]
        if {"-h", "--help"} & set(argv):
            print(_help(commands, Hyperparameters))
            return 0
        if name not in commands:
            raise HyperparameterError(
                f"unknown command {name!r}: it is one of {', '.join(commands)}"
            )
        arguments, options, values = _parse(rest, name, commands[name], Hyperparameters)
        if name != train:
            run_dir = values.get("run_dir", Hyperparameters.run_dir)
            values = _of_run(run_dir, Hyperparameters) | values
        return commands[name](Hyperparameters(**values), *arguments, **options) or 0
    except HyperparameterError as error:
        return _fail(2, error)
    except Failure as error:
        return _fail(1, error)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_status
    except OSError as error:
        return _fail(1, f"{error.filename or 'input or output'}: {error.strerror or error}")
    except tf.errors.ResourceExhaustedError:
        return _fail(
            1, "out of memory: try again with a smaller --micro_batch_size (0 is the whole batch)"
        )
    except KeyboardInterrupt:
        return _fail(130, f"{name}: interrupted; the same command starts again")


def _fail(status, message):
    print(f"error: {message}", file=sys.stderr)
    return status


def _parse(argv, name, command, Hyperparameters):
    """What the command `name` is given: its arguments, its options, and values of fields."""
    parameters = list(inspect.signature(command).parameters.values())[1:]
    named = [p for p in parameters if p.default is p.empty]
    own = [(p.name, type(p.default), p.default) for p in parameters if p not in named]
    Options = dataclasses.make_dataclass("Options", own)
    kinds = dict.fromkeys([option for option, *_ in own], Options)
    kinds |= dict.fromkeys([f.name for f in dataclasses.fields(Hyperparameters)], Hyperparameters)

    arguments, given = [], {Options: {}, Hyperparameters: {}}
    for text in argv:
        if not text.startswith("-"):
            arguments.append(text)
            continue
        if not text.startswith("--"):
            raise HyperparameterError(f"{text!r} is not understood: options are --name=value")
        option, equals, value = text.removeprefix("--").partition("=")
        if option not in kinds:
            raise HyperparameterError(
                f"unknown hyperparameter {option!r}: it is one of {', '.join(kinds)}"
            )
        kind = kinds[option]
        if not equals and field_type(kind, option)[0] is not bool:
            raise HyperparameterError(f"{option} has no value: write --{option}=VALUE")
        given[kind][option] = parse_field(kind, option, value if equals else "True")

    several = any(p.kind is p.VAR_POSITIONAL for p in named)
    if not (len(arguments) == len(named) or (several and len(arguments) >= len(named))):
        wanted = [word for word in _arguments(command).split() if not word.startswith("[")]
        usage = " ".join(wanted) or "no arguments"
        raise HyperparameterError(f"{name} takes {usage}, not {' '.join(arguments) or 'none'}")
    return arguments, given[Options], given[Hyperparameters]


def _arguments(command):
    """How a command is called, without the hyperparameters: like PICTURE... [--json]."""
    words = []
    for parameter in list(inspect.signature(command).parameters.values())[1:]:
        if parameter.default is not parameter.empty:
            value = "" if isinstance(parameter.default, bool) else "=VALUE"
            words.append(f"[--{parameter.name}{value}]")
        else:
            several = parameter.kind is parameter.VAR_POSITIONAL
            words.append(parameter.name.upper().removesuffix("S") + several * "...")
    return " ".join(words)


def _of_run(run_dir, Hyperparameters):
    """The hyperparameters with which the run in `run_dir` was started, without fields that the
    script no longer has."""
    path = pathlib.Path(run_dir) / "hyperparameters.json"
    names = {field.name for field in dataclasses.fields(Hyperparameters)}
    try:
        kept = dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise Failure(f"no run in {run_dir}: train first, or give the --run_dir of a run") from None
    except (OSError, ValueError, TypeError) as error:
        raise Failure(f"{path}: cannot be read: {first_line(error)}") from None
    # Where the run is now, not where it was when it started.
    return {name: kept[name] for name in names & kept.keys()} | {"run_dir": run_dir}


def _help(commands, Hyperparameters):
    """How to call the script, and the declaration of its hyperparameters as it stands there."""
    module = inspect.getmodule(Hyperparameters)
    source = inspect.getsource(Hyperparameters)
    declaration = source.partition("class Hyperparameters:\n")[2].partition("    def ")[0]
    script = pathlib.Path(module.__file__).name
    train, *others = commands
    calls = [
        f"python {script}",
        *(f"python {script} {n} {_arguments(commands[n])}" for n in others),
    ]
    usage = "\n".join(f"{call.rstrip()} [--name=value ...]" for call in calls)
    return f"{usage}\n\n{inspect.cleandoc(module.__doc__)}\n\n{declaration.rstrip()}"
