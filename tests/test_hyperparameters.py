"""Fields with bounds, and fields that may differ when a run is resumed."""

import json
import os
from dataclasses import dataclass
from typing import Annotated

import pytest
from annotated_types import Ge, Interval, Len, MultipleOf
from scripts import by_script

from senet.errors import Failure, HyperparameterError
from senet.hyperparameters import (
    MAY_CHANGE,
    MAY_GROW,
    NOT_EMPTY,
    RunHyperparameters,
    changed_fields,
    fields_to_compare,
    load_fields,
    one_of,
    parse_field,
)


@dataclass(frozen=True)
class Settings(RunHyperparameters):
    run_dir = "runs/settings"

    width: Annotated[int, Interval(ge=1, le=64)] = 8
    even: Annotated[int, MultipleOf(2)] = 4
    rate: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    kind: Annotated[str, one_of("plain", "wide")] = "plain"
    name: str = ""
    folder: Annotated[str, NOT_EMPTY, MAY_CHANGE] = "here"
    epochs: Annotated[int, Ge(1), MAY_GROW] = 10
    fast: bool = True


REJECTED = [
    ("width", 0, "be at least 1, got 0"),
    ("width", 65, "be at most 64, got 65"),
    ("width", 10**30, f"be at most 64, got {10**30}"),
    ("width", "8", "be an integer, got '8'"),
    ("width", 8.0, "be an integer, got 8.0"),
    ("width", True, "be an integer, got True"),
    ("width", None, "be an integer, got None"),
    ("even", 3, "be a multiple of 2, got 3"),
    ("rate", 0.0, "be greater than 0, got 0.0"),
    ("rate", 1.0, "be less than 1, got 1.0"),
    ("rate", float("nan"), "be finite, got nan"),
    ("rate", float("inf"), "be finite, got inf"),
    ("rate", 10**400, f"be finite, got 1{'0' * 47}...{'0' * 49}"),
    (
        "rate",
        1e-40,
        "be 0 or have a magnitude from 1.2e-38 to 3.4e38, as float32 requires, got 1e-40",
    ),
    ("save_minutes", 1e39, "be 0 or have a magnitude from 1.2e-38 to 3.4e38"),
    ("kind", "Plain", "be one of plain, wide, got 'Plain'"),
    ("folder", "", "not be empty, got ''"),
    ("folder", "a\nb", r"not contain control characters, got 'a\nb'"),
    ("folder", "a\0b", r"not contain control characters, got 'a\x00b'"),
    ("folder", "\udcff", r"be valid UTF-8, got '\udcff'"),
    ("fast", 1, "be True or False, got 1"),
    ("devices", "cpu:0,cpu:0", "be all, or a list"),
    ("devices", "0,00", "be all, or a list"),
    ("devices", "12345", "be all, or a list"),
    ("devices", "0,cpu:0", "be all, or a list"),
    ("devices", "٣", "be all, or a list"),
    ("image_size", 7, "be at least 8, got 7"),
]


@pytest.mark.parametrize("name, value, message", REJECTED)
def test_an_invalid_value_gives_a_one_line_error_with_its_name(name, value, message):
    with pytest.raises(HyperparameterError) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(f"--{name} must {message}")
    assert "\n" not in str(caught.value)


def test_a_number_too_long_for_python_to_print_is_rejected():
    with pytest.raises(HyperparameterError, match="at most 64, got a number with thousands"):
        Settings(width=10**5000)


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(HyperparameterError) as caught:
        Settings(folder="x" * 5000)
    message = "--folder must have at most 4,096 characters, got 'xxx"
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 160


def test_values_at_the_bounds_are_allowed():
    Settings(width=1, rate=1e-9, folder="ü" * 4096, devices="cpu:0,cpu:1", even=0)
    Settings(width=64, rate=0.999, name="", devices="9999", epochs=10**9)
    Settings(devices="all")


@pytest.mark.parametrize(
    "name, text, value",
    [("width", "12", 12), ("rate", "5e-1", 0.5), ("fast", "False", False), ("name", "12", "12")],
)
def test_text_becomes_a_value_of_the_fields_type(name, text, value):
    parsed = parse_field(Settings, name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("width", "1.5", "--width must be an integer, got '1.5'"),
        ("width", "1" * 5000, "--width must be an integer, got '111"),
        ("rate", "fast", "--rate must be a number, got 'fast'"),
        ("fast", "yes", "--fast must be True or False, got 'yes'"),
    ],
)
def test_text_of_the_wrong_type_is_rejected(name, text, message):
    with pytest.raises(HyperparameterError) as caught:
        parse_field(Settings, name, text)
    assert str(caught.value).startswith(message)


class TestDeclarations:
    def test_a_default_is_overridden_without_an_annotation(self):
        assert Settings().run_dir == "runs/settings"
        with pytest.raises(HyperparameterError):
            Settings(run_dir="")

    def test_a_new_field_without_a_type_is_an_error(self):
        with pytest.raises(TypeError, match="must have a type .* as dropout: float = 0.5"):

            class _(Settings):
                dropout = 0.5

    def test_a_forgotten_decorator_is_an_error(self):
        class Undecorated(Settings):
            dropout: float = 0.5

        with pytest.raises(TypeError, match=r"dropout is not a field.*@dataclass"):
            Undecorated()

    def test_a_type_that_no_flag_supports_is_an_error(self):
        @dataclass(frozen=True)
        class WithList(RunHyperparameters):
            sizes: list | None = None

        with pytest.raises(TypeError, match="sizes must be int, float, bool or str"):
            WithList()

    def test_a_constraint_that_cannot_be_checked_is_an_error(self):
        @dataclass(frozen=True)
        class WithLength(RunHyperparameters):
            name: Annotated[str, Len(3)] = "abc"

        with pytest.raises(TypeError, match=r"name: cannot check MinLen.*; use Ge, Gt"):
            WithLength()


class TestChangedFields:
    def test_each_difference_is_reported_with_both_values(self):
        now = Settings(width=9, kind="wide")
        before = {"width": 8, "kind": "plain", "epochs": 10}
        assert changed_fields(now, before) == [("width", 8, 9), ("kind", "plain", "wide")]

    def test_fields_marked_may_change_are_not_reported(self):
        assert changed_fields(Settings(folder="there", xla=True), {"folder": "here"}) == []

    def test_fields_marked_may_grow_must_not_shrink(self):
        assert changed_fields(Settings(epochs=11), {"epochs": 10}) == []
        assert changed_fields(Settings(epochs=9), {"epochs": 10}) == [("epochs", 10, 9)]

    def test_a_field_missing_from_the_file_has_its_default(self):
        assert changed_fields(Settings(), {}) == []
        assert changed_fields(Settings(width=9), {}) == [("width", 8, 9)]

    @pytest.mark.parametrize(
        "before, message",
        [
            ({"widht": 8}, "no hyperparameter 'widht'"),
            ({"width": "8"}, "^width must be an integer, got '8'"),
            ({"folder": None}, "^folder must be a string, got None"),
            ({"rate": [0.5]}, r"^rate must be a number, got \[0.5\]"),
        ],
    )
    def test_unknown_fields_and_invalid_values_are_errors(self, before, message):
        with pytest.raises(HyperparameterError, match=message):
            changed_fields(Settings(), before)


def test_fields_that_may_change_are_not_compared():
    assert set(fields_to_compare(Settings())) == {
        *("width", "even", "rate", "kind", "name", "epochs", "fast"),
        *("image_size", "initial_checkpoint"),
    }


class TestLoadFields:
    def test_fields_are_read_as_they_were_written(self, tmp_path):
        path = tmp_path / "hyperparameters.json"
        path.write_text(json.dumps({"width": 3, "folder": "Äpfel"}), "utf-8")
        assert load_fields(path, Settings) == {"width": 3, "folder": "Äpfel"}

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"null", b"[1]", b"[" * 10**5, b"\xff", b'{"rate": NaN}'),
            *(b'{"width": %d}' % 10**4000, b"{}" + b" " * 2**20),
        ],
        ids=["empty", "null", "list", "nested", "not UTF-8", "NaN", "long number", "large"],
    )
    def test_an_unusable_file_gives_a_one_line_error_with_its_name(self, tmp_path, content):
        path = tmp_path / "hyperparameters.json"
        path.write_bytes(content)
        with pytest.raises(Failure) as caught:
            load_fields(path, Settings)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(path)) + 300

    @pytest.mark.parametrize("make, kind", [(os.mkfifo, "FIFO"), (os.mkdir, "folder")])
    def test_anything_but_a_regular_file_is_rejected_without_blocking(self, tmp_path, make, kind):
        path = tmp_path / "hyperparameters.json"
        make(path)
        with pytest.raises(Failure, match=f"not a regular file but a {kind}"):
            load_fields(path, Settings)


OUT_OF_RANGE = {
    **{"padding": -1, "image_size": 7, "batch_size": 0, "total_epochs": 0, "seed": 2**32},
    **{"micro_batch_size": -1, "reduction_ratio": -1, "schedule": "stepz"},
    **{"label_smoothing": 1.0, "momentum": 1.0, "weight_decay": -1.0, "init_learning_rate": 0.0},
    **{"dataset": "", "data_dir": "", "run_dir": "", "save_minutes": 0.0, "devices": "gpu"},
}


@by_script
@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_scripts_reject_values_out_of_range(script, name):
    with pytest.raises(HyperparameterError, match=f"--{name} must "):
        script.hyperparameters(**{name: OUT_OF_RANGE[name]})


@by_script
def test_only_certain_fields_may_differ_when_a_run_is_resumed(script):
    fields = {
        "data_dir": "d",
        "run_dir": "r",
        "save_minutes": 1.0,
        "devices": "0",
        "xla": True,
        "allow_soft_placement": False,
        "dataset": "shapes",
        "micro_batch_size": 4,
        "total_epochs": 101,
    }
    assert changed_fields(script.hyperparameters(**fields), {}) == []
    changed = script.hyperparameters(seed=1, mixed_precision=False, flip=False)
    assert len(changed_fields(changed, {})) == 3
