"""Hyperparameters: a frozen dataclass whose annotations define the values each field allows.

    depth: Count = 64  # channels of a path

This line defines the default, the check, the flag `--depth=64` and its help."""

import dataclasses
import enum
import functools
import inspect
import json
import operator
import pathlib
import re
import reprlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MultipleOf

from senet.errors import Failure, HyperparameterError, first_line
from senet.evaluation import VARIANTS
from senet.files import read_regular
from senet.schedules import SCHEDULES


class Rule(NamedTuple):
    """A constraint given by a function; `words` complete the sentence "--name must ..."."""

    words: str
    is_met: Callable[[Any], bool]
    choices: tuple = ()  # the allowed values, if the rule lists them


def one_of(*choices):
    """Return the constraint that a value must be one of `choices`."""
    return Rule(f"be one of {', '.join(map(str, choices))}", choices.__contains__, choices)


def _are_devices(text):
    if not re.fullmatch("all|[0-9]{1,4}(,[0-9]{1,4})*|cpu:[0-9]{1,4}(,cpu:[0-9]{1,4})*", text):
        return False
    numbers = sorted(map(int, re.findall("[0-9]+", text)))
    if "cpu" in text:  # equal shares of the cores, numbered from 0 without gaps
        return numbers == list(range(len(numbers)))
    return len(set(numbers)) == len(numbers)


def _is_utf8(text):
    return text == text.encode(errors="ignore").decode()


LARGEST_FILE = 2**20  # bytes of a hyperparameters.json
NOT_EMPTY = Rule("not be empty", bool)
# Given a pattern, TensorFlow would read the checkpoints of all matching folders.
NOT_A_PATTERN = Rule(
    "not contain *, ?, [ or \\, which TensorFlow reads as a pattern",
    lambda path: not re.search(r"[*?\[\\]", path),
)
DEVICES = Rule(
    "be all, or a list of distinct GPUs (0,1) or of CPU devices numbered from 0 (cpu:0,cpu:1)",
    _are_devices,
)
# Constraints on all fields of a type.
EVERY = {
    float: [
        Rule("be finite", lambda value: abs(value) <= sys.float_info.max),
        Rule(
            "be 0 or have a magnitude from 1.2e-38 to 3.4e38, as float32 requires",
            lambda value: value == 0 or 1.2e-38 <= abs(value) <= 3.4e38,
        ),
    ],
    str: [
        Rule("have at most 4,096 characters", lambda text: len(text) <= 4096),
        Rule(
            "not contain control characters", lambda text: not re.search(r"[\x00-\x1f\x7f]", text)
        ),
        Rule("be valid UTF-8", _is_utf8),
    ],
}
TYPES = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
LIMITS = {
    Ge: ("ge", operator.ge, "be at least"),
    Gt: ("gt", operator.gt, "be greater than"),
    Le: ("le", operator.le, "be at most"),
    Lt: ("lt", operator.lt, "be less than"),
    MultipleOf: ("multiple_of", lambda value, n: value % n == 0, "be a multiple of"),
}


class Resume(enum.Enum):
    """Markers for fields that may change when a run is resumed; the others must stay the same."""

    MAY_CHANGE = enum.auto()
    MAY_GROW = enum.auto()  # may only increase


MAY_CHANGE, MAY_GROW = Resume

# Types of fields
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]


@dataclasses.dataclass(frozen=True)
class RunHyperparameters:
    """The settings of every run; a script's `Hyperparameters` inherits them and adds its own.

    A subclass may override a default without repeating the annotation: `run_dir = "runs/mine"`.
    Raises HyperparameterError for the first field whose value is not allowed."""

    # network
    reduction_ratio: Whole = 16  # in SE blocks; 0: no SE blocks
    padding: Whole = 32  # zeros on each side of an image: 32x32 becomes 96x96

    # training
    init_learning_rate: Positive = 0.1  # peak learning rate
    schedule: Annotated[str, one_of(*SCHEDULES)] = "steps"  # learning-rate schedule
    momentum: Fraction = 0.9  # Nesterov momentum
    weight_decay: NotNegative = 5e-4  # L2 penalty on decayed_variables()
    label_smoothing: Fraction = 0.0  # training loss only
    flip: bool = True  # flip half of the training images left to right
    batch_size: Count = 128  # images per step
    total_epochs: Annotated[Count, MAY_GROW] = 100  # raise to extend a run
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0  # weights, shuffling, augmentation, dropout

    # data, memory and speed
    dataset: Annotated[str, NOT_EMPTY, MAY_CHANGE] = "cifar10"  # cifar10, cifar100, shapes, FOLDER
    data_dir: Annotated[str, NOT_EMPTY, MAY_CHANGE] = "data"  # CIFAR files, image cache
    image_size: Annotated[int, Interval(ge=8, le=1024)] = 32  # side of the images, in pixels
    test_time_augmentation: Annotated[str, one_of(*VARIANTS)] = "none"  # average over variants
    micro_batch_size: Annotated[Whole, MAY_CHANGE] = 0  # images processed at once; 0: whole batch
    mixed_precision: bool = True  # use bfloat16 if the device supports it
    devices: Annotated[str, DEVICES, MAY_CHANGE] = "all"  # all, or a list: 0,1 or cpu:0,cpu:1
    allow_soft_placement: Annotated[bool, MAY_CHANGE] = True  # run ops on CPU if a GPU cannot
    xla: Annotated[bool, MAY_CHANGE] = False  # compile for GPUs with XLA; slow to start

    # run
    run_dir: Annotated[str, NOT_EMPTY, NOT_A_PATTERN, MAY_CHANGE] = "runs/run"  # checkpoints, logs
    initial_checkpoint: Annotated[str, NOT_A_PATTERN] = ""  # run or checkpoint to load weights from
    save_minutes: Annotated[Positive, MAY_CHANGE] = 10.0  # minutes between checkpoints

    # limits of the network
    MIN_SIDE: ClassVar[int] = 1  # pixels of a padded image
    MIN_MICRO_BATCH: ClassVar[int] = 1  # images

    def __init_subclass__(cls):
        # @dataclass ignores a default without an annotation: add the inherited annotation, or raise
        # an error if there is none.
        annotations = inspect.get_annotations(cls)
        for name, value in list(vars(cls).items()):
            if name.startswith("_") or name in annotations or not isinstance(value, tuple(TYPES)):
                continue
            inherited = [base.__annotations__ for base in cls.__mro__[1:-1]]
            found = [hints[name] for hints in inherited if name in hints]
            if not found:
                kind = type(value).__name__
                raise TypeError(
                    f"{cls.__name__}.{name} must have a type annotation, such as "
                    f"{name}: {kind} = {value!r}"
                )
            cls.__annotations__[name] = found[0]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_field(type(self), field.name, getattr(self, field.name))
        side = self.image_size + 2 * self.padding
        if side < self.MIN_SIDE:
            least = -(-(self.MIN_SIDE - self.image_size) // 2)
            raise HyperparameterError(
                f"--padding must be at least {least}, got {self.padding}: the network needs at "
                f"least {self.MIN_SIDE}x{self.MIN_SIDE} pixels, but the padded images are "
                f"{side}x{side}"
            )


@functools.cache
def _declared(Hyperparameters):
    """Return {field name: (type, metadata)}. Raises TypeError if a field cannot be checked."""
    hints = get_type_hints(Hyperparameters, include_extras=True)
    names = {field.name for field in dataclasses.fields(Hyperparameters)}
    declared = {}
    for name, hint in hints.items():
        if get_origin(hint) is ClassVar:
            continue
        where = f"{Hyperparameters.__name__}.{name}"
        if name not in names:
            raise TypeError(
                f"{where} is not a field; decorate the class with @dataclass(frozen=True)"
            )
        kind = getattr(hint, "__origin__", hint)
        if kind not in TYPES:
            raise TypeError(f"{where} must be int, float, bool or str, got {hint}")
        metadata: list = list(EVERY.get(kind, []))
        for item in getattr(hint, "__metadata__", ()):
            metadata.extend(item if isinstance(item, GroupedMetadata) else [item])
        for item in metadata:
            if not isinstance(item, (Rule, Resume, *LIMITS)):
                allowed = ", ".join(cls.__name__ for cls in LIMITS)
                raise TypeError(f"{where}: cannot check {item!r}; use {allowed}, Interval or Rule")
        declared[name] = kind, metadata
    return declared


def shown(value):
    """Return the repr of a value, on one line and shortened to about 100 characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = 100
    try:
        return short.repr(value)
    except ValueError:  # Python does not print an int of thousands of digits
        return "a number with thousands of digits"


def check_field(Hyperparameters, name, value, prefix="--"):
    """Raise HyperparameterError if the field `name` does not allow `value`. The message has
    `prefix` before the name."""
    kind, metadata = _declared(Hyperparameters)[name]
    must = []
    if type(value) is not kind and not (kind is float and type(value) is int):
        must = [f"be {TYPES[kind]}"]
    else:
        for item in metadata:
            if isinstance(item, Rule) and not item.is_met(value):
                must.append(item.words)
            elif type(item) in LIMITS:
                attribute, compare, words = LIMITS[type(item)]
                if not compare(value, getattr(item, attribute)):
                    must.append(f"{words} {getattr(item, attribute)}")
    if must:
        raise HyperparameterError(f"{prefix}{name} must {must[0]}, got {shown(value)}")


def check_path(name, path):
    """Raise HyperparameterError unless TensorFlow can write a checkpoint to `path` and read it
    back. The message begins with `name`, the name of the argument."""
    for rule in (*EVERY[str], NOT_A_PATTERN):
        if not rule.is_met(path):
            raise HyperparameterError(f"{name} must {rule.words}, got {shown(path)}")


def parse_field(Hyperparameters, name, text):
    """Return `text` converted to the type of the field `name`. Raises HyperparameterError if the
    field does not allow the value."""
    kind, _ = _declared(Hyperparameters)[name]
    try:
        value = {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        value = text
    check_field(Hyperparameters, name, value)
    return value


def choices(Hyperparameters, name):
    """Return the values that a field declared with `one_of` allows, () for other fields."""
    _, metadata = _declared(Hyperparameters)[name]
    return tuple(c for item in metadata if isinstance(item, Rule) for c in item.choices)


def _marked(Hyperparameters, marker):
    """Return the names of the fields declared with `marker`."""
    return {
        name for name, (_, metadata) in _declared(Hyperparameters).items() if marker in metadata
    }


def fields_to_compare(hyperparameters):
    """Return {name: value} of all fields not marked MAY_CHANGE."""
    may_change = _marked(type(hyperparameters), MAY_CHANGE)
    fields = dataclasses.asdict(hyperparameters)
    return {name: value for name, value in fields.items() if name not in may_change}


def portable_fields(hyperparameters):
    """Return {name: value} of the fields, for use on another machine: without settings of this
    machine such as data_dir, and with the portable part of each path."""
    machine_settings = {"data_dir", "run_dir", "save_minutes", "devices", "xla"}
    return {
        name: portable_path(value) if isinstance(value, str) else value
        for name, value in dataclasses.asdict(hyperparameters).items()
        if name not in machine_settings
    }


def portable_path(text):
    """Return a path under the current folder unchanged, and the last part of any other path."""
    path = pathlib.PurePath(text)
    return path.name if path.is_absolute() or ".." in path.parts else text


def check_fields(Hyperparameters, fields):
    """Raise HyperparameterError unless `fields`, read from a file, is a dict of declared fields and
    allowed values. Fields may be missing."""
    if not isinstance(fields, dict):
        raise HyperparameterError(f"the file must contain a JSON object, got {shown(fields)}")
    for name, value in fields.items():
        if name not in _declared(Hyperparameters):
            raise HyperparameterError(f"the script has no hyperparameter {shown(name)}")
        check_field(Hyperparameters, name, value, prefix="")


def load_fields(path, Hyperparameters):
    """Return the dict in the hyperparameters.json at `path`. Fields that were added to the script
    later are missing from it. Raises Failure if the file cannot be read or does not match the
    script."""
    try:
        fields = json.loads(read_regular(path, LARGEST_FILE).decode())
        check_fields(Hyperparameters, fields)
    except HyperparameterError as error:
        raise Failure(
            f"{path} does not match this script: {error}; use the script that trained the run, or "
            f"fix the file"
        ) from None
    except RecursionError:
        raise Failure(f"{path} cannot be read: it is too deeply nested; fix the file") from None
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}; fix the file") from None
    return fields


def changed_fields(hyperparameters, before):
    """Return [(name, before, now)] of the changes that prevent resuming a run whose fields were
    `before`, a dict. Fields missing from it count as having their defaults.

    Raises HyperparameterError for an unknown field or a value that is not allowed."""
    check_fields(type(hyperparameters), before)
    defaults = {field.name: field.default for field in dataclasses.fields(hyperparameters)}
    may_grow = _marked(type(hyperparameters), MAY_GROW)
    changes = []
    for name, now in fields_to_compare(hyperparameters).items():
        was = before.get(name, defaults[name])
        if was != now and not (name in may_grow and now > was):
            changes.append((name, was, now))
    return changes
