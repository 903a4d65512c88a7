"""From the command line to a script's `Hyperparameters`, and from what goes wrong to one line and
an exit status."""

import dataclasses
import inspect
import pathlib
import sys

from senet.compat import tf
from senet.errors import Failure, HyperparameterError
from senet.hyperparameters import parse_field
from senet.stopping import Stopped


def run_command(commands, Hyperparameters, argv=None):
    """Run one of `commands`, a dict of functions that take a Hyperparameters, and return the exit
    status: 0 done, 1 a failure at run time, 2 a wrong command line, 130 or 143 stopped by a signal.

    `argv` is `[command] [--name=value ...]` without the program; without a command the first of
    `commands` is run.
    """
    try:
        command, values = _parse(sys.argv[1:] if argv is None else argv, commands, Hyperparameters)
        if command == "help":
            print(_help(commands, Hyperparameters))
        else:
            commands[command](Hyperparameters(**values))
        return 0
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
        return _fail(130, "interrupted before training began: the same command starts again")


def _fail(status, message):
    print(f"error: {message}", file=sys.stderr)
    return status


def _parse(argv, commands, Hyperparameters):
    """The command's name and a dict of the field values given."""
    command, *options = (
        argv if argv and not argv[0].startswith("-") else [next(iter(commands)), *argv]
    )
    if command not in commands:
        raise HyperparameterError(
            f"unknown command {command!r}: it is one of {', '.join(commands)}"
        )
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    values = {}
    for option in options:
        if option in ("-h", "--help"):
            return "help", {}
        name, equals, text = option.removeprefix("--").partition("=")
        if not option.startswith("--"):
            raise HyperparameterError(f"{option!r} is not understood: options are --name=value")
        if name not in names:
            raise HyperparameterError(
                f"unknown hyperparameter {name!r}: it is one of {', '.join(names)}"
            )
        if not equals:
            raise HyperparameterError(f"{name} has no value: write --{name}=VALUE")
        values[name] = parse_field(Hyperparameters, name, text)
    return command, values


def _help(commands, Hyperparameters):
    """How to call the script, and the declaration of its hyperparameters as it stands there."""
    module = inspect.getmodule(Hyperparameters)
    source = inspect.getsource(Hyperparameters)
    declaration = source.partition("class Hyperparameters:\n")[2].partition("    def ")[0]
    script = pathlib.Path(module.__file__).name
    usage = f"usage: python {script} [{'|'.join(commands)}] [--name=value ...]"
    return f"{usage}\n\n{inspect.cleandoc(module.__doc__)}\n\n{declaration.rstrip()}"
