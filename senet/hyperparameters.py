"""Types for the fields of a script's `Hyperparameters`: what a field takes, checked in one place.

@dataclass(frozen=True)
class Hyperparameters:
    batch_size: at_least(1) = 128

    def __post_init__(self):
        check_fields(self)
"""

import dataclasses
import math
import re
from typing import Annotated, Any, NamedTuple, get_type_hints

from senet.errors import HyperparameterError


class Range(NamedTuple):
    """What the values of a field satisfy, and how to say that."""

    words: str
    holds: Any


def at_least(least):
    """A number of `least` or more, of the type of `least`."""
    return Annotated[type(least), Range(f"{least} or more", lambda value: value >= least)]


def above(bound):
    """A number above `bound`, of the type of `bound`."""
    return Annotated[type(bound), Range(f"above {bound}", lambda value: value > bound)]


def between(least, bound):
    """A number from `least` up to, not including, `bound`."""
    return Annotated[
        type(least),
        Range(f"from {least} up to, not including, {bound}", lambda value: least <= value < bound),
    ]


def written(words, pattern):
    """A text that the regular expression `pattern` fits; `words` say so to people."""
    return Annotated[str, Range(words, lambda value: re.fullmatch(pattern, value))]


path = Annotated[str, Range("not empty", bool)]
device_names = written(
    "all, numbers of GPUs like 0,1 or CPU devices like cpu:0,cpu:1",
    r"all|\d+(,\d+)*|cpu:\d+(,cpu:\d+)*",
)

WORDS = {int: "a whole number,", float: "a number,", bool: "True or False", str: "a text,"}


def field_type(Hyperparameters, name):
    """The plain type of a field (int, float, bool or str) and its ranges."""
    hint = get_type_hints(Hyperparameters, include_extras=True)[name]
    if hasattr(hint, "__metadata__"):
        return hint.__origin__, hint.__metadata__
    return hint, ()


def takes(Hyperparameters, name):
    """What a field takes, in words."""
    kind, ranges = field_type(Hyperparameters, name)
    return " ".join([WORDS[kind], *(limit.words for limit in ranges)]).rstrip(",")


def parse_field(Hyperparameters, name, text):
    """The value of `--name=text`.

    Raises HyperparameterError if the text is not of the field's type."""
    kind, _ = field_type(Hyperparameters, name)
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise HyperparameterError(
            f"{name}={text}: {name} takes {takes(Hyperparameters, name)}"
        ) from None


def check_fields(hyperparameters):
    """Raise HyperparameterError for the first field whose value is not what the field takes."""
    cls = type(hyperparameters)
    for field in dataclasses.fields(cls):
        value = getattr(hyperparameters, field.name)
        kind, ranges = field_type(cls, field.name)
        right_type = type(value) is kind or (kind is float and type(value) is int)
        finite = kind is not float or (right_type and math.isfinite(value))
        if not (right_type and finite and all(limit.holds(value) for limit in ranges)):
            raise HyperparameterError(
                f"{field.name}={value}: {field.name} takes {takes(cls, field.name)}"
            )


MAY = {
    "data_dir",
    "run_dir",
    "save_minutes",
    "devices",
    "xla",
    "allow_soft_placement",
    "dataset",
    "micro_batch_size",
}


def computing_fields(hyperparameters):
    return {n: v for n, v in dataclasses.asdict(hyperparameters).items() if n not in MAY}


def changed_fields(hyperparameters, before):
    d = {f.name: f.default for f in dataclasses.fields(hyperparameters)}
    return [
        (n, before.get(n, d[n]), v)
        for n, v in computing_fields(hyperparameters).items()
        if v != before.get(n, d[n]) and not (n == "total_epochs" and v > before[n])
    ]
