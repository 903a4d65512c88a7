"""What ends a program without being a mistake in it. Each message is one line that says what to
do; `senet.cli.command_line` prints it without a traceback."""


class HyperparameterError(ValueError):
    """A hyperparameter that cannot work; names the field, the value and what the field takes."""


class Failure(Exception):
    """Something outside the code (data, disk, network, device) that stops the program."""


def first_line(error):
    """What an exception says, on one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__


def shortened(names, limit=3):
    """Return a list of names as text: the first `limit`, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
