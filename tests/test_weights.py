"""Check which variables `initial_checkpoint` loads from another network."""

import json
import shutil

import numpy as np
import pytest
from conftest import flip_a_bit
from tiny_run import arguments

import SE_ResNet
from senet.data.inputs import Statistics, encode_json, inputs_with
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.run.checkpoints import Checkpoints
from senet.run.weights import load_weights

ANIMALS = ["cat", "dog"]
NETWORK = {
    "stem/weights": [3, 4],
    "stem/moving_mean": [4],
    "classifier/weights": [4, 2],
    "classifier/bias": [2],
}


class Network:
    """A graph with the variables of a network and of its training, all equal to `value`."""

    def __init__(self, shapes, value, label_names):
        self.value, self.label_names = value, label_names
        with tf.Graph().as_default() as self.graph:
            step = tf.train.get_or_create_global_step()
            channels = np.full(3, value, np.float32)
            statistics = [channels, channels, encode_json(label_names)]
            inputs = inputs_with(8, Statistics(*statistics))
            for name, shape in shapes.items():
                frozen = name.startswith("frozen")
                tf.get_variable(name, initializer=tf.fill(shape, value), trainable=not frozen)
            network = tf.global_variables()[-len(shapes) :]
            self.outputs = [inputs.normalised, *map(tf.identity, network)]
            # Has the same name and shape in both graphs, but is not part of the network.
            tf.get_variable("stem/weights/Momentum", initializer=tf.fill([3, 4], value))
            self.names = [v.op.name for v in tf.global_variables() if v is not step]

    def save(self, folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        with self.graph.as_default(), tf.Session() as session:
            checkpoints = Checkpoints(folder, self.outputs, {"width": 4})
            session.run(tf.global_variables_initializer())
            tf.train.get_global_step().load(step, session)
            checkpoints.save(session, step)
        return folder / f"model.ckpt-{step}"

    def load(self, checkpoint):
        """Load `checkpoint`; return the line to print and {variable: value}."""
        with self.graph.as_default(), tf.Session() as session:
            session.run(tf.global_variables_initializer())
            line, index = load_weights(session, str(checkpoint), self.outputs, self.label_names)
            assert bytes.fromhex(index)
            assert session.run(tf.train.get_global_step()) == 0
            variables = {v.op.name: v for v in tf.global_variables() if v.op.name in self.names}
            return line, session.run(variables)


def loaded_names(values):
    """Return the names of the variables that have the value of the saved network, 7."""
    return {name for name, value in values.items() if np.all(value == 7)}


@pytest.fixture
def saved(tmp_path):
    """Return the path of a checkpoint of a cats-and-dogs network; all its variables are 7."""
    return Network(NETWORK, 7.0, ANIMALS).save(tmp_path / "run" / "model", 30)


def test_all_variables_of_the_network_and_no_others_are_loaded(saved):
    line, values = Network(NETWORK, 1.0, ANIMALS).load(saved)
    assert loaded_names(values) == NETWORK.keys()
    assert line == f"weights: 4 of 4 variables from {saved}"


@pytest.mark.parametrize("names", [["cat", "horse"], ["dog", "cat"], ["a", "b", "c"]])
def test_the_classifier_starts_from_scratch_for_other_classes(saved, names):
    shapes = NETWORK | {"classifier/weights": [4, len(names)], "classifier/bias": [len(names)]}
    line, values = Network(shapes, 1.0, names).load(saved)
    assert loaded_names(values) == {"stem/weights", "stem/moving_mean"}
    assert line == (
        f"weights: 2 of 4 variables from {saved}; not loaded (classes differ): "
        f"classifier/bias, classifier/weights"
    )


@pytest.mark.parametrize(
    "changes, difference",
    [
        ({"stem/weights": [3, 5]}, r"stem/weights has shape \[3, 4\], but \[3, 5\] in the network"),
        ({"block/weights": [1]}, "missing from the checkpoint: block/weights"),
        ({"stem/moving_mean": None}, "not in the network: stem/moving_mean"),
    ],
)
def test_a_network_that_does_not_match_is_rejected(saved, changes, difference):
    shapes = {n: shape for n, shape in (NETWORK | changes).items() if shape}
    message = (
        f"{saved} does not match the network: {difference}; use an --initial_checkpoint from the "
        f"same script, with --width=4$"
    )
    for names in ANIMALS, ["a", "b"]:
        with pytest.raises(Failure, match=message):
            Network(shapes, 1.0, names).load(saved)


def test_only_the_classifier_of_a_frozen_network_can_be_trained(tmp_path):
    shapes = {"frozen/weights": [3, 4], "classifier/weights": [4, 2]}
    saved = Network(shapes, 7.0, ANIMALS).save(tmp_path, 30)
    _, values = Network(shapes, 1.0, ["a", "b"]).load(saved)
    assert loaded_names(values) == {"frozen/weights"}


def test_different_classes_require_a_layer_named_classifier(tmp_path):
    shapes = {"stem/weights": [3, 4], "head/weights": [4, 2]}
    saved = Network(shapes, 7.0, ANIMALS).save(tmp_path, 30)
    with pytest.raises(Failure, match="the classes of .* differ from .* 'classifier'"):
        Network(shapes, 1.0, ["a", "b"]).load(saved)


def test_a_run_or_a_checkpoint_can_be_given(saved):
    run = saved.parent.parent
    newest = Network(NETWORK, 7.0, ANIMALS).save(saved.parent, 200)
    for name, path in (run, newest), (saved, saved), (f"{saved}.index", saved):
        line, values = Network(NETWORK, 1.0, ANIMALS).load(name)
        assert line.endswith(f" from {path}")
        assert loaded_names(values) == NETWORK.keys()


def test_a_checkpoint_that_cannot_be_read_gives_a_one_line_error(saved, tmp_path):
    network, run = Network(NETWORK, 1.0, ANIMALS), saved.parent.parent
    for name in "nowhere", str(tmp_path), f"{run}/model":
        with pytest.raises(Failure, match="is neither a run with a checkpoint nor a checkpoint"):
            network.load(name)
    flip_a_bit(saved.with_name(saved.name + ".data-00000-of-00001"))
    for name in run, saved:
        with pytest.raises(
            Failure, match=rf"{saved}: cannot be read \(.*; use another --initial_chec"
        ):
            network.load(name)


def test_a_checkpoint_of_another_program_is_rejected(tmp_path, graph):
    tf.get_variable("stem/weights", initializer=tf.ones([3, 4]))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "other"))
    with pytest.raises(Failure, match=f"{tmp_path}/other: cannot be read .*input/mean"):
        Network(NETWORK, 1.0, ANIMALS).load(tmp_path / "other")


@pytest.mark.slow
def test_a_run_that_starts_from_a_published_network_can_be_resumed(trained, tmp_path, call):
    start = tmp_path / "start"
    assert call("publish", start, f"--run_dir={trained}")[0] == 0
    # At these rates, no weight changes, except for the norm of the filters, which Muon sets.
    rates = ["--init_learning_rate=1e-12", "--filter_learning_rate=1e-12"]
    options = [f"--initial_checkpoint={start}", *rates]

    def train(*options):
        return call(*arguments(tmp_path, "run", *options))

    status, output, errors = train(*options, "--total_epochs=1")
    assert (status, errors) == (0, "")
    assert output.splitlines()[5] == f"weights: 39 of 39 variables from {start}/model/model.ckpt-20"
    before, after = (
        tf.train.load_checkpoint(str(run / "model")) for run in (trained, tmp_path / "run")
    )
    weights = [name for name in before.get_variable_to_shape_map() if name.endswith("/weights")]
    assert len(weights) == 1 + 3 * 4 + 1
    for name in weights:
        directions = [v / np.linalg.norm(v) for v in (r.get_tensor(name) for r in (before, after))]
        np.testing.assert_allclose(*directions, atol=1e-6)
    assert after.get_tensor("global_step") == 10

    start.rename(tmp_path / "gone")  # a resumed run does not need it
    status, output, errors = train(*options, "--total_epochs=2")
    assert (status, errors) == (0, "")
    assert "(resuming at step 10 of 20)" in output
    assert "weights: " not in output
    status, _, errors = train(*rates, "--total_epochs=2")
    assert (status, f"(initial_checkpoint was '{start}', now '')" in errors) == (1, True)


@pytest.mark.slow
def test_training_adopts_the_network_of_the_initial_checkpoint(trained, tmp_path, capsys):
    """The options of the network are left out, but for one that replaces the run's value."""
    data_dir = trained.parent / "data"
    trained = shutil.copytree(trained, tmp_path / "trained")
    settings = trained / "hyperparameters.json"
    settings.write_text(settings.read_text().replace('"cutout": 0.0', '"cutout": 0.25'))
    places = [f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}"]
    options = [f"--initial_checkpoint={trained}", *places, "--batch_size=20", "--total_epochs=1"]
    assert SE_ResNet.main([*options, "--padding=1"]) == 0
    network, other, *_ = capsys.readouterr().out.splitlines()
    assert other == "not adopted, since not marked Network: cutout 0.25"
    assert network == (f"network of {trained}: reduction_ratio 2, width 2, padding 1 instead of 0")
    fields = json.loads((tmp_path / "run" / "hyperparameters.json").read_text())
    expected = {"width": 2, "blocks": 1, "reduction_ratio": 2, "padding": 1}
    assert {name: fields[name] for name in expected} == expected
    assert SE_ResNet.main([*options, "--padding=1"]) == 0  # resumes, with the same fields
    assert "already finished" in capsys.readouterr().out
