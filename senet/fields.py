"""Types of hyperparameters: the values that a field allows, and when its value may change.

A field is declared as `depth: Network[Count] = 64  # channels of a path`. Add bounds with
`Annotated[int, Interval(ge=1, le=64)]` (package annotated-types), choices with `Literal["a", "b"]`.
"""

import enum
import os
import re
from typing import Annotated, TypeVar

import pydantic
from annotated_types import Ge, Gt, Interval, MinLen


class Mark(enum.Enum):
    """What a field is for, where that matters to a run."""

    NETWORK = enum.auto()  # makes the network: `initial_checkpoint` sets it to that of its run
    MAY_CHANGE = enum.auto()  # may differ when a run is resumed
    MAY_GROW = enum.auto()  # may only increase


T = TypeVar("T")
Network = Annotated[T, Mark.NETWORK]
MayChange = Annotated[T, Mark.MAY_CHANGE]
MayGrow = Annotated[T, Mark.MAY_GROW]


def check_devices(text):
    """Return `text`, a value of `devices`. Raises ValueError if it is not allowed."""
    form = "all|[0-9]{1,4}(,[0-9]{1,4})*|cpu:[0-9]{1,4}(,cpu:[0-9]{1,4})*"
    numbers = sorted(map(int, re.findall("[0-9]+", text)))
    # CPU devices are equal shares of the cores, numbered from 0 without gaps.
    distinct = list(range(len(numbers))) if "cpu" in text else sorted(set(numbers))
    if not re.fullmatch(form, text) or numbers != distinct:
        raise ValueError(
            "be all, or a list of distinct GPUs (0,1) or of CPU devices numbered from 0 "
            "(cpu:0,cpu:1)"
        )
    return text


def local_path(path):
    """Return `path` with ~ replaced by the home folder. Raises ValueError for a URL."""
    if re.match(r"\w+://", path):
        raise ValueError("be a local path, not a URL; mount or copy the folder")
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib would change the text)


def not_pattern(path):
    """Return `path`. Raises ValueError if TensorFlow would read it as a pattern, and with it the
    checkpoints of all matching folders."""
    if re.search(r"[*?\[\\]", path):
        raise ValueError("not contain *, ?, [ or \\, which TensorFlow reads as a pattern")
    return path


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
NotEmpty = Annotated[str, MinLen(1)]
Devices = Annotated[str, pydantic.AfterValidator(check_devices)]
LOCAL = pydantic.AfterValidator(local_path)
NO_PATTERN = pydantic.AfterValidator(not_pattern)
Folder = Annotated[NotEmpty, LOCAL]
RunPath = Annotated[NotEmpty, LOCAL, NO_PATTERN]
CheckpointPath = Annotated[str, LOCAL, NO_PATTERN]  # may be empty
