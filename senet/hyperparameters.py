"""Hyperparameters: a frozen dataclass whose annotations define the values each field allows.

    depth: Count = 64  # channels of a path

This line defines the default, the check, the flag `--depth=64` and its help."""

import dataclasses
import enum
import functools
import inspect
import json
import pathlib
import re
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import pydantic
from annotated_types import Ge, Gt, Interval, MinLen
from pydantic_core import core_schema

from senet.engine.errors import Failure, HyperparameterError
from senet.engine.files import read_regular
from senet.engine.text import first_line, shown
from senet.evaluation import VARIANTS
from senet.schedules import SCHEDULES


class Resume(enum.Enum):
    """Markers for fields that may change when a run is resumed; the others must stay the same."""

    MAY_CHANGE = enum.auto()
    MAY_GROW = enum.auto()  # may only increase


MAY_CHANGE, MAY_GROW = Resume


class one_of:  # noqa: N801 (it is used like a function)
    """The constraint that a value must be one of `choices`."""

    def __init__(self, *choices):
        self.choices = choices

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.literal_schema(list(self.choices))


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


def check_not_pattern(path):
    """Return `path`. Raises ValueError if TensorFlow would read it as a pattern, and with it the
    checkpoints of all matching folders."""
    if re.search(r"[*?\[\\]", path):
        raise ValueError("not contain *, ?, [ or \\, which TensorFlow reads as a pattern")
    return path


def check_path(name, path):
    """Raise HyperparameterError if TensorFlow would read `path`, the argument `name`, as a
    pattern."""
    try:
        check_not_pattern(path)
    except ValueError as error:
        raise HyperparameterError(f"{name} must {error}, got {shown(path)}") from None


# Types of fields
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
NotEmpty = Annotated[str, MinLen(1)]
Devices = Annotated[str, pydantic.AfterValidator(check_devices)]
Path = Annotated[str, pydantic.AfterValidator(check_not_pattern)]
Folder = Annotated[NotEmpty, pydantic.AfterValidator(check_not_pattern)]


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
    dataset: Annotated[NotEmpty, MAY_CHANGE] = "cifar10"  # cifar10, cifar100, shapes, FOLDER
    data_dir: Annotated[NotEmpty, MAY_CHANGE] = "data"  # CIFAR files, image cache
    image_size: Annotated[int, Interval(ge=8, le=1024)] = 32  # side of the images, in pixels
    test_time_augmentation: Annotated[str, one_of(*VARIANTS)] = "none"  # average over variants
    micro_batch_size: Annotated[Whole, MAY_CHANGE] = 0  # images processed at once; 0: whole batch
    mixed_precision: bool = True  # use bfloat16 if the device supports it
    devices: Annotated[Devices, MAY_CHANGE] = "all"  # all, or a list: 0,1 or cpu:0,cpu:1
    allow_soft_placement: Annotated[bool, MAY_CHANGE] = True  # run ops on CPU if a GPU cannot
    xla: Annotated[bool, MAY_CHANGE] = False  # compile for GPUs with XLA; slow to start

    # run
    run_dir: Annotated[Folder, MAY_CHANGE] = "runs/run"  # checkpoints, logs
    initial_checkpoint: Path = ""  # run or checkpoint to load weights from
    save_minutes: Annotated[Positive, MAY_CHANGE] = 10.0  # minutes between checkpoints

    # fields that make a network, which `initial_checkpoint` sets to those of its run
    NETWORK: ClassVar[tuple[str, ...]] = ("reduction_ratio", "padding")

    # limits of the network
    MIN_SIDE: ClassVar[int] = 1  # pixels of a padded image
    MIN_MICRO_BATCH: ClassVar[int] = 1  # images

    def __init_subclass__(cls):
        # @dataclass ignores a default without an annotation: add the inherited annotation, or raise
        # an error if there is none.
        annotations = inspect.get_annotations(cls)
        for name, value in list(vars(cls).items()):
            if name.startswith("_") or name in annotations or type(value) not in METAVARS:
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
        validate(type(self), dataclasses.asdict(self), prefix="--")
        side = self.image_size + 2 * self.padding
        if side < self.MIN_SIDE:
            least = -(-(self.MIN_SIDE - self.image_size) // 2)
            raise HyperparameterError(
                f"--padding must be at least {least}, got {self.padding}: the network needs at "
                f"least {self.MIN_SIDE}x{self.MIN_SIDE} pixels, but the padded images are "
                f"{side}x{side}"
            )


# {type of a field: how the help shows its value}
METAVARS = {int: "INT", float: "FLOAT", bool: "{True,False}", str: "TEXT"}


@functools.cache
def _annotations(Hyperparameters):
    """Return {field name: annotation}. Raises TypeError for a field that is not in the dataclass or
    whose type no flag supports."""
    hints = get_type_hints(Hyperparameters, include_extras=True)
    names = {field.name for field in dataclasses.fields(Hyperparameters)}
    for name, hint in hints.items():
        where = f"{Hyperparameters.__name__}.{name}"
        if get_origin(hint) is not ClassVar and name not in names:
            raise TypeError(
                f"{where} is not a field; decorate the class with @dataclass(frozen=True)"
            )
        if name in names and getattr(hint, "__origin__", hint) not in METAVARS:
            raise TypeError(f"{where} must be int, float, bool or str, got {hint}")
    return {name: hint for name, hint in hints.items() if name in names}


@functools.cache
def _model(Hyperparameters):
    """Return the pydantic model that checks the fields."""
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    fields: dict[str, Any] = {
        name: (hint, None) for name, hint in _annotations(Hyperparameters).items()
    }
    return pydantic.create_model("Fields", __config__=config, **fields)


def validate(Hyperparameters, fields, prefix, strings=False):
    """Return `fields`, {name: value}; with `strings`, converted from text. Raises
    HyperparameterError, with `prefix` before the name, for a value that is not allowed."""
    model = _model(Hyperparameters)
    try:
        checked = (model.model_validate_strings if strings else model.model_validate)(fields)
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        value = found["input"]
        number = strings and re.fullmatch(r"[-+.\de]{1,20}", value)
        raise HyperparameterError(
            f"{prefix}{found['loc'][0]} must {_requirement(found)}, got "
            f"{value if number else shown(value)}"
        ) from None
    return {name: getattr(checked, name) for name in fields}


def _requirement(error):
    """Return what pydantic's `error` asks for: "be at least 1"."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    text = re.sub(r"^\w+ should |, (unable|got) .*", "", error["msg"])
    text = text.replace("greater than or equal to", "at least")
    return text.replace("less than or equal to", "at most")


def metavar(Hyperparameters, name):
    """Return how the help shows a value of the field `name`, such as INT or {a,b}."""
    hint = _annotations(Hyperparameters)[name]
    for item in getattr(hint, "__metadata__", ()):
        if isinstance(item, one_of):
            return f"{{{','.join(map(str, item.choices))}}}"
    return METAVARS[getattr(hint, "__origin__", hint)]


def _marked(Hyperparameters, marker):
    """Return the names of the fields declared with `marker`."""
    hints = _annotations(Hyperparameters).items()
    return {name for name, hint in hints if marker in getattr(hint, "__metadata__", ())}


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
    if unknown := sorted(fields.keys() - _annotations(Hyperparameters).keys()):
        raise HyperparameterError(f"the script has no hyperparameter {shown(unknown[0])}")
    validate(Hyperparameters, fields, prefix="")


def load_fields(path, Hyperparameters):
    """Return the dict in the hyperparameters.json at `path`. Fields that were added to the script
    later are missing from it. Raises Failure if the file cannot be read or does not match the
    script."""
    try:
        fields = json.loads(read_regular(path).decode())
        check_fields(Hyperparameters, fields)
    except HyperparameterError as error:
        raise Failure(
            f"{path} does not match this script: {error}; use the script that trained the run, or "
            f"fix the file"
        ) from None
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
