"""Errors that are not bugs. Each message is one line that says what is wrong and what to do;
`senet.cli.command_line` prints it without a traceback."""

import re


class OneLineError(Exception):
    """An exception whose message is `printable`, even with unusual names and paths in it."""

    def __init__(self, message):
        super().__init__(printable(message))


class HyperparameterError(OneLineError, ValueError):
    """A hyperparameter with a value that is not allowed; the message gives the name, the value and
    the allowed values."""


class Failure(OneLineError):
    """A problem with data, disk, network, device or script that stops the program."""


def first_line(error):
    """Return the message of an exception as one line of at most 300 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # Drop TensorFlow's preamble about where the graph was built.
    text = re.sub(r"^Graph execution error:.*?\nNode: [^\n]*\n", "", text, flags=re.DOTALL)
    lines = text.strip().splitlines()
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__


def printable(text):
    """Return `str(text)` with control characters, line breaks and bytes that are not UTF-8 (in file
    names) escaped, so that it prints on one line in any terminal."""
    unsafe = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    return re.sub(unsafe, lambda match: repr(match[0])[1:-1], str(text))


def shortened(names, count=5, width=60):
    """Return the first `count` names, separated by commas, and the number of the others: "a, b, c,
    d, e and 2,995 more". Names are truncated after `width` characters."""
    names = [name if len(name) <= width else f"{name[:width]}..." for name in map(printable, names)]
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
