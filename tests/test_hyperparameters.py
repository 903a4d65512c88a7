"""Fields with bounds, and fields that may differ when a run is resumed."""

import json
from typing import Annotated, Literal

import pytest
from annotated_types import Interval, MultipleOf
from scripts import by_script

from senet.engine.compat import tf
from senet.engine.errors import Failure, HyperparameterError
from senet.fields import Count, Fraction, MayChange, MayGrow, Network, NotEmpty, not_pattern
from senet.hyperparameters import RunHyperparameters


class Settings(RunHyperparameters):
    run_dir = "runs/settings"

    width: Network[Annotated[int, Interval(ge=1, le=64)]] = 8
    even: Annotated[int, MultipleOf(2)] = 4
    rate: Fraction = 0.5
    kind: Literal["plain", "wide"] = "plain"
    name: str = ""
    folder: MayChange[NotEmpty] = "here"
    epochs: MayGrow[Count] = 10
    fast: bool = True


REJECTED = [
    ("width", 0, "be at least 1, got 0"),
    ("width", 65, "be at most 64, got 65"),
    ("width", "8", "be a valid integer, got '8'"),
    ("width", 8.0, "be a valid integer, got 8.0"),
    ("width", True, "be a valid integer, got True"),
    ("width", None, "be a valid integer, got None"),
    ("even", 3, "be a multiple of 2, got 3"),
    ("rate", -0.1, "be at least 0, got -0.1"),
    ("rate", 1.0, "be less than 1, got 1.0"),
    ("rate", float("nan"), "be a finite number, got nan"),
    ("kind", "Plain", "be 'plain' or 'wide', got 'Plain'"),
    ("folder", "", "have at least 1 character, got ''"),
    ("fast", 1, "be a valid boolean, got 1"),
    ("run_dir", "a*", r"not contain *, ?, [ or \, which TensorFlow reads as a pattern, got 'a*'"),
    ("initial_checkpoint", "a?b", "not contain *, ?, [ or "),
    ("devices", "cpu:0,cpu:0", "be all, or a list"),
    ("devices", "0,00", "be all, or a list"),
    ("devices", "0,cpu:0", "be all, or a list"),
    ("image_size", 7, "be at least 8, got 7"),
]


@pytest.mark.parametrize("name, value, message", REJECTED)
def test_an_invalid_value_gives_a_one_line_error_with_its_name(name, value, message):
    with pytest.raises(HyperparameterError) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(f"--{name} must {message}")
    assert "\n" not in str(caught.value)


def test_values_at_the_bounds_are_allowed():
    Settings(width=1, rate=0.0, devices="cpu:0,cpu:1", even=0)
    Settings(width=64, rate=0.999, name="", devices="9999", epochs=10**9)
    Settings(devices="1,0", rate=0)


def test_tensorflow_reads_back_a_checkpoint_with_any_allowed_name(tmp_path, graph):
    variable = tf.get_variable("v", [])
    saver = tf.train.Saver(max_to_keep=None)
    with tf.Session() as session:
        # Save under each name, and under one that it would match as a pattern.
        for name in ["X", *" !\"#$%&'()+,-.:;<=>@]^_`{|}~ü"]:
            path = str(tmp_path / f"a{name}b")
            variable.load(ord(name), session)
            saver.save(session, path, write_state=False, write_meta_graph=False)
            assert not_pattern(path) == path
            assert tf.train.NewCheckpointReader(path).get_tensor("v") == ord(name)


@pytest.mark.parametrize(
    "name, text, value",
    [("width", "12", 12), ("rate", "5e-1", 0.5), ("fast", "False", False), ("name", "12", "12")],
)
def test_text_becomes_a_value_of_the_fields_type(name, text, value):
    parsed = Settings.validated({name: text}, strings=True)
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)


class TestDeclarations:
    def test_a_default_is_overridden_without_an_annotation(self):
        assert Settings().run_dir == "runs/settings"
        with pytest.raises(HyperparameterError):
            Settings(run_dir="")

    def test_a_new_field_without_a_type_is_an_error(self):
        with pytest.raises(TypeError, match="must have a type .* as dropout: float = 0.5"):

            class _(Settings):
                dropout = 0.5

    def test_a_rate_for_fine_tuning_without_a_field_is_an_error(self):
        with pytest.raises(TypeError, match="FINE_TUNING has no field 'filter_rate' to set"):

            class _(Settings):
                FINE_TUNING = {"filter_rate": 0.1}

    def test_a_type_that_no_flag_supports_is_an_error(self):
        class WithList(RunHyperparameters):
            sizes: list | None = None

        with pytest.raises(TypeError, match="sizes must be int, float, bool, str or Literal"):
            WithList()

    def test_the_fields_of_the_network_are_marked(self):
        assert Settings(width=9).network() == {"width": 9, "reduction_ratio": 16, "padding": 32}


class TestChangedFields:
    def test_each_difference_is_reported_with_both_values(self):
        now = Settings(width=9, kind="wide")
        before = {"width": 8, "kind": "plain", "epochs": 10}
        assert now.changes_since(before) == [("width", 8, 9), ("kind", "plain", "wide")]
        # A field missing from the file has its default.
        assert Settings(width=9).changes_since({}) == [("width", 8, 9)]

    def test_fields_marked_may_change_or_may_grow_are_not_reported_if_they_do(self):
        assert Settings(folder="there", xla=True).changes_since({"folder": "here"}) == []
        assert Settings(epochs=11).changes_since({"epochs": 10}) == []
        assert Settings(epochs=9).changes_since({"epochs": 10}) == [("epochs", 10, 9)]


class TestLoadFields:
    def test_fields_are_read_as_they_were_written(self, tmp_path):
        path = tmp_path / "hyperparameters.json"
        path.write_text(json.dumps({"width": 3, "folder": "Äpfel"}), "utf-8")
        assert Settings.load(path) == {"width": 3, "folder": "Äpfel"}

    @pytest.mark.parametrize(
        "content, message",
        [
            ("", "cannot be read: Expecting value"),
            ("null", "the file must contain a JSON object, got None"),
            ("\udcff", "cannot be read: 'utf-8' codec"),
            ('{"rate": NaN}', "rate must be a finite number, got nan"),
            ('{"widht": 8}', "the script has no hyperparameter 'widht'"),
            ('{"width": "8"}', "width must be a valid integer, got '8'"),
        ],
    )
    def test_an_unusable_file_gives_a_one_line_error_with_its_name(
        self, tmp_path, content, message
    ):
        path = tmp_path / "hyperparameters.json"
        path.write_text(content, "utf-8", "surrogateescape")
        with pytest.raises(Failure) as caught:
            Settings.load(path)
        assert str(caught.value).startswith(str(path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


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
        **{"data_dir": "d", "run_dir": "r", "save_minutes": 1.0, "devices": "0", "xla": True},
        **{"allow_soft_placement": False, "dataset": "shapes", "micro_batch_size": 4},
        **{"total_epochs": 101},
    }
    assert script.hyperparameters(**fields).changes_since({}) == []
    changed = script.hyperparameters(seed=1, mixed_precision=False, flip=False)
    assert len(changed.changes_since({})) == 3


def test_a_tilde_is_the_home_folder_and_a_url_is_rejected(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    settings = Settings(run_dir="~/runs/a", dataset="~/photos", data_dir="~")
    paths = [settings.run_dir, settings.dataset, settings.data_dir]
    assert paths == ["/home/ada/runs/a", "/home/ada/photos", "/home/ada"]
    for name in "run_dir", "initial_checkpoint", "dataset":
        with pytest.raises(HyperparameterError, match=f"--{name} must be a local path, not a URL"):
            Settings(**{name: "gs://bucket/run"})
    with pytest.raises(HyperparameterError, match="averages over mirror images, but with --flip="):
        Settings(test_time_augmentation="flip", flip=False)


class TestFineTuning:
    @pytest.mark.parametrize(
        "images, batch_size, total_epochs",
        [(90, 16, 34), (1000, 48, 10), (20_000, 128, 8)],
    )
    def test_batches_and_epochs_suit_the_number_of_images(self, images, batch_size, total_epochs):
        short = type("Short", (RunHyperparameters,), {"total_epochs": 8})
        tuned = short().for_fine_tuning(images)
        assert (tuned.batch_size, tuned.total_epochs) == (batch_size, total_epochs)
        assert tuned.total_epochs * -(-images // tuned.batch_size) >= 200
        assert tuned.init_learning_rate == 0.02

    def test_what_was_set_stays(self):
        settings = RunHyperparameters(batch_size=64)
        object.__setattr__(settings, "given", {"total_epochs"})
        tuned = settings.for_fine_tuning(90)
        assert (tuned.batch_size, tuned.total_epochs) == (64, 100)
