"""Errors that are not bugs. Each message is one line that says what is wrong and what to do;
`senet.cli.command_line` prints it without a traceback."""

from senet.engine.text import printable


class OneLineError(Exception):
    """An exception whose message is `printable`, even with unusual names and paths in it."""

    def __init__(self, message):
        super().__init__(printable(message))


class HyperparameterError(OneLineError, ValueError):
    """A hyperparameter with a value that is not allowed."""


class Failure(OneLineError):
    """A problem with data, disk, network, device or script that stops the program."""
