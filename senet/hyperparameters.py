"""Hyperparameters: a frozen dataclass whose annotations define the values each field allows.

    depth: Network[Count] = 64  # channels of a path

This line defines the default, the check, the flag `--depth=64` and its help. See
`senet/fields.py` for the types."""

import dataclasses
import functools
import inspect
import json
import pathlib
import re
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pydantic
from annotated_types import Interval
from typing_extensions import dataclass_transform

from senet.engine.errors import Failure, HyperparameterError
from senet.engine.files import read_regular
from senet.engine.text import first_line, shown
from senet.evaluation import Variants
from senet.fields import (
    CheckpointPath,
    Count,
    Devices,
    Folder,
    Fraction,
    Mark,
    MayChange,
    MayGrow,
    Network,
    NotNegative,
    Positive,
    RunPath,
    Whole,
)
from senet.schedules import ScheduleFields

# {type of a field: how the help shows its value}
METAVARS = {int: "INT", float: "FLOAT", bool: "{True,False}", str: "TEXT"}
MACHINE = {"data_dir", "run_dir", "save_minutes", "devices", "xla"}  # not part of an experiment


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True)
class RunHyperparameters(ScheduleFields):
    """The settings of every run. A script's `Hyperparameters` inherits them, overrides defaults
    without repeating the annotation (`run_dir = "runs/mine"`), and adds its own.

    Raises HyperparameterError for the first field whose value is not allowed."""

    # network
    reduction_ratio: Network[Whole] = 16  # in SE blocks; 0: no SE blocks
    padding: Network[Whole] = 32  # zeros on each side of an image (with 32: 32x32 becomes 96x96)

    # training
    init_learning_rate: Positive = 0.1  # peak learning rate
    momentum: Fraction = 0.9  # Nesterov momentum
    weight_decay: NotNegative = 5e-4  # L2 penalty on decayed_variables()
    clip_norm: NotNegative = 0.0  # largest norm of the gradient; 0: not clipped
    ema: Fraction = 0.0  # decay per step of the averaged weights used for testing; 0: off
    label_smoothing: Fraction = 0.0  # training loss only
    flip: bool = True  # flip half of the training images left to right
    batch_size: Count = 128  # images per step
    total_epochs: MayGrow[Count] = 100  # raise to extend a run
    validation: Fraction = 0.0  # fraction of the training images held out, to test on after epochs
    test_every: MayChange[Count] = 1  # epochs between tests; the last epoch is always tested
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0  # weights, shuffling, augmentation, dropout

    # data, memory and speed
    dataset: MayChange[Folder] = "cifar10"  # cifar10, cifar100, shapes, ... or FOLDER
    data_dir: MayChange[Folder] = "data"  # CIFAR files, image cache
    image_size: Annotated[int, Interval(ge=8, le=1024)] = 32  # side of the images, in pixels
    test_time_augmentation: Variants = "none"  # average over variants
    micro_batch_size: MayChange[Whole] = 0  # images processed at once; 0: whole batch
    mixed_precision: bool = True  # use bfloat16 if the device supports it
    devices: MayChange[Devices] = "all"  # all, or a list: 0,1 or cpu:0,cpu:1
    allow_soft_placement: MayChange[bool] = True  # run ops on CPU if a GPU cannot
    xla: MayChange[bool] = False  # compile for GPUs with XLA; slow to start

    # run
    run_dir: MayChange[RunPath] = "runs/run"  # checkpoints, logs
    initial_checkpoint: CheckpointPath = ""  # run or checkpoint to load weights from
    save_minutes: MayChange[Positive] = 10.0  # minutes between checkpoints

    # rates that replace higher defaults when `initial_checkpoint` is set
    FINE_TUNING: ClassVar[dict[str, float]] = {"init_learning_rate": 0.02}
    # names that were set on the command line, even if to the default
    given: ClassVar[frozenset[str]] = frozenset()

    # limits of the network
    MIN_SIDE: ClassVar[int] = 1  # pixels of a padded image
    MIN_MICRO_BATCH: ClassVar[int] = 1  # images

    def __init_subclass__(cls):
        # A default without an annotation overrides an inherited field.
        inherited = {}
        for base in reversed(cls.__mro__[1:-1]):
            inherited |= inspect.get_annotations(base)
        for name, value in list(vars(cls).items()):
            if name.startswith("_") or name in cls.__annotations__ or type(value) not in METAVARS:
                continue
            if name not in inherited:
                kind = type(value).__name__
                raise TypeError(
                    f"{cls.__name__}.{name} must have a type annotation, such as "
                    f"{name}: {kind} = {value!r}"
                )
            cls.__annotations__[name] = inherited[name]
        dataclasses.dataclass(frozen=True)(cls)
        if unknown := cls.FINE_TUNING.keys() - cls.__dataclass_fields__.keys():
            raise TypeError(f"{cls.__name__}.FINE_TUNING has no field {unknown.pop()!r} to set")

    def __post_init__(self):
        for name, value in self.validated(self.as_dict()).items():
            object.__setattr__(self, name, value)
        side = self.image_size + 2 * self.padding
        if side < self.MIN_SIDE:
            least = -(-(self.MIN_SIDE - self.image_size) // 2)
            raise HyperparameterError(
                f"--padding must be at least {least}, got {self.padding}: the network needs at "
                f"least {self.MIN_SIDE}x{self.MIN_SIDE} pixels, but the padded images are "
                f"{side}x{side}"
            )
        if self.test_time_augmentation != "none" and not self.flip:
            raise HyperparameterError(
                f"--test_time_augmentation={self.test_time_augmentation} averages over mirror "
                f"images, but with --flip=False they may belong to other classes; remove one"
            )
        object.__setattr__(self, "_read", set())  # names, for `check_effect`

    def __getattribute__(self, name):
        # Note each attribute that is read.
        object.__getattribute__(self, "__dict__").get("_read", set()).add(name)
        return object.__getattribute__(self, name)

    def as_dict(self):
        """Return {name: value} of the fields. This does not count as reading them."""
        values = vars(self)
        return {field.name: values[field.name] for field in dataclasses.fields(self)}

    def check_effect(self):
        """Raise HyperparameterError if nothing has read a field that was set, on the command line
        or as a default of the script: it would have no effect. Call it when the graph is built."""
        common = {field.name: field.default for field in dataclasses.fields(RunHyperparameters)}
        read = vars(self)["_read"]
        for name, value in self.compared().items():
            is_set = name in self.given or value != common.get(name, value)
            if is_set and name not in read:
                raise HyperparameterError(
                    f"--{name}={value} has no effect, since nothing reads it with these options "
                    f"before the first step; remove it (or mark it MayChange, if only the training "
                    f"loop reads it)"
                )

    @classmethod
    def validated(cls, fields, prefix="--", strings=False):
        """Return `fields`, {name: value}; with `strings`, converted from text. Raises
        HyperparameterError, with `prefix` before the name, for a value that is not allowed."""
        model = _model(cls)
        try:
            checked = (model.model_validate_strings if strings else model.model_validate)(fields)
        except pydantic.ValidationError as error:
            raise HyperparameterError(_message(error.errors()[0], prefix, strings)) from None
        return {name: getattr(checked, name) for name in fields}

    @classmethod
    def load(cls, path):
        """Return the fields in the hyperparameters.json at `path`, {name: value}. Fields that were
        added to the script later are missing. Raises Failure if the file cannot be read or does
        not match the script."""
        try:
            return cls.validated(json.loads(read_regular(path)), prefix="")
        except HyperparameterError as error:
            raise Failure(
                f"{path} does not match this script: {error}; use the script that trained the "
                f"run, or fix the file"
            ) from None
        except (OSError, ValueError) as error:
            raise Failure(f"{path} cannot be read: {first_line(error)}; fix the file") from None

    @classmethod
    def marked(cls, mark):
        """Return the names of the fields declared with the Mark `mark`."""
        return {name for name, f in _model(cls).model_fields.items() if mark in f.metadata}

    @classmethod
    def metavar(cls, name):
        """Return how the help shows a value of the field `name`, such as INT or {a,b}."""
        hint = _model(cls).model_fields[name].annotation
        if get_origin(hint) is Literal:
            return f"{{{','.join(map(str, get_args(hint)))}}}"
        return METAVARS[hint]

    def network(self):
        """Return {name: value} of the fields that make the network."""
        values = self.as_dict()
        return {name: values[name] for name in sorted(self.marked(Mark.NETWORK))}

    def for_fine_tuning(self, images):
        """Return the hyperparameters with which to start from trained weights on that many training
        `images`: batches small enough for 20 steps per epoch, epochs enough for 200 steps, and the
        rates in FINE_TUNING. What was set otherwise stays."""
        values = self.as_dict()
        batch_size = min(self.batch_size, max(16, images // 320 * 16))
        steps = -(-images // batch_size)
        chosen = {
            "batch_size": batch_size,
            "total_epochs": max(self.total_epochs, -(-200 // steps)),
        }
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(self)}
        lower = {name: min(rate, defaults[name]) for name, rate in self.FINE_TUNING.items()}
        for name, value in (chosen | lower).items():
            if name not in self.given and values[name] == defaults[name]:
                values[name] = value
        tuned = type(self)(**values)
        for name in "given", "_read":
            object.__setattr__(tuned, name, getattr(self, name))
        return tuned

    def compared(self):
        """Return {name: value} of all fields that must not change when a run is resumed."""
        may_change = self.marked(Mark.MAY_CHANGE)
        return {n: v for n, v in self.as_dict().items() if n not in may_change}

    def changes_since(self, before):
        """Return [(name, before, now)] of the changes that prevent resuming a run whose fields were
        `before`, a dict. Fields missing from it count as having their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        may_grow = self.marked(Mark.MAY_GROW)
        changes = []
        for name, now in self.compared().items():
            was = before.get(name, defaults[name])
            if was != now and not (name in may_grow and now > was):
                changes.append((name, was, now))
        return changes

    def portable(self):
        """Return {name: value} of the fields, for use on another machine: without settings of this
        machine such as data_dir, and with the portable part of each path."""
        return {
            name: portable_path(value) if isinstance(value, str) else value
            for name, value in self.as_dict().items()
            if name not in MACHINE
        }


def portable_path(text):
    """Return a path under the current folder unchanged, and the last part of any other path."""
    path = pathlib.PurePath(text)
    return path.name if path.is_absolute() or ".." in path.parts else text


@functools.cache
def _model(Hyperparameters):
    """Return the pydantic model that checks the fields. Raises TypeError for a type that no flag
    supports."""
    hints = get_type_hints(Hyperparameters, include_extras=True)
    fields: dict[str, Any] = {
        f.name: (hints[f.name], None) for f in dataclasses.fields(Hyperparameters)
    }
    config = pydantic.ConfigDict(
        strict=True, allow_inf_nan=False, extra="forbid", protected_namespaces=()
    )
    model = pydantic.create_model("Fields", __config__=config, **fields)
    for name, field in model.model_fields.items():
        if field.annotation not in METAVARS and get_origin(field.annotation) is not Literal:
            where = f"{Hyperparameters.__name__}.{name}"
            raise TypeError(f"{where} must be int, float, bool, str or Literal, got {hints[name]}")
    return model


def _message(error, prefix, strings):
    """Return pydantic's `error` as one line: "--depth must be at least 1, got 0"."""
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return f"the script has no hyperparameter {shown(error['loc'][0])}"
    if not error["loc"]:
        return f"the file must contain a JSON object, got {shown(value)}"
    if error["type"] == "value_error":
        requirement = str(error["ctx"]["error"])
    else:
        requirement = re.sub(r"^\w+ should |, (unable|got) .*", "", error["msg"])
        requirement = requirement.replace("greater than or equal to", "at least")
        requirement = requirement.replace("less than or equal to", "at most")
    number = strings and re.fullmatch(r"[-+.\de]{1,20}", value)
    return f"{prefix}{error['loc'][0]} must {requirement}, got {value if number else shown(value)}"
