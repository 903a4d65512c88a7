"""Check the event files of the tiny run `trained`, and the images in them."""

import io
import os
import re
import signal

import numpy as np
import pytest
from forked import run_script
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tiny_run import STEPS, command

import SE_ResNet
from cifar10 import CIFAR10, load_cifar
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.evaluation import Evaluation
from senet.run import events, run
from senet.run.pages import confusion_page, contact_sheet, mistakes_page

EPOCH = {"accuracy/train", "loss/train", "loss/l2", "optimizer/gradient_norm"}
WITHIN = {"progress/accuracy", "progress/loss", "optimizer/learning_rate"}
CURVES = EPOCH | WITHIN | {"speed/images_per_second"}
TEST_CURVES = {"accuracy/test", "loss/test"}
GATES = {f"squeeze_excitation/stage{stage}/block1/SE" for stage in (1, 2, 3)}
TRAIN = CURVES | {"samples/augmented"}
TEST = TEST_CURVES | GATES | {"samples/confusion_matrix", "samples/misclassified"}
START = {"custom_scalars__config__", "graph", "hyperparameters", "_hparams_/session_start_info"}


def read(folder):
    """Return the graph and {tag: {epoch: tf.Summary.Value}} of the event file in `folder`."""
    (file,) = folder.glob("events.out.tfevents.*")
    found = {}
    for event in tf.train.summary_iterator(str(file)):
        if event.graph_def:
            found["graph"] = tf.GraphDef.FromString(event.graph_def)
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step / STEPS] = value
    return found


@pytest.fixture(scope="module")
def shown(trained):
    return read(trained) | read(trained / "test")


def test_every_tag_is_written_in_each_epoch(trained):
    train = read(trained)
    test = read(trained / "test")
    assert train.keys() == TRAIN | START
    assert test.keys() >= TEST  # and those of further metrics
    assert all(list((train | test)[tag]) == [1, 2] for tag in TRAIN | TEST)


def test_scalars_match_the_rows_of_logs_txt(shown, trained):
    names = "loss/train", "accuracy/train", "loss/test", "accuracy/test"
    for epoch, row in enumerate((trained / "logs.txt").read_text().splitlines(), 1):
        numbers = re.findall(r"\d+\.\d+", row)
        assert [f"{shown[name][epoch].simple_value:.4f}" for name in names] == numbers[:4]
        assert f"{shown['progress/loss'][epoch].simple_value:.4f}" == numbers[0]


def test_scalars_of_a_script_keep_their_names():
    values = events.scalar_summary({"my/norm": 1, "norm": 2, "test_top5": 3}).value
    tags = {value.tag: value.simple_value for value in values}
    assert tags == {"my/norm": 1, "scalars/norm": 2, "top5/test": 3}


def test_charts_show_each_scalar_exactly_once(shown):
    (value,) = shown["custom_scalars__config__"].values()
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    tags = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    expected = CURVES | TEST_CURVES | {"accuracy/val", "loss/val"}  # of runs with --validation
    assert sorted(tags) == sorted(f"^{tag}$" for tag in expected)


def test_hyperparameters_are_shown_as_a_table_and_compared_without_those_of_the_machine(
    shown, trained
):
    (value,) = shown["hyperparameters"].values()
    text = value.tensor.string_val[0].decode()
    assert text.startswith("| hyperparameter | value |\n|---|---|\n| network | SE_ResNet |\n")
    assert f"\n| run_dir | {trained} |\n" in text
    (value,) = shown["_hparams_/session_start_info"].values()
    data = value.metadata.plugin_data
    fields = metadata.parse_session_start_info_plugin_data(data.content).hparams
    assert fields["network"].string_value == "SE_ResNet"
    assert fields["width"].number_value == 2
    assert fields["flip"].bool_value
    assert "dataset" in fields
    assert not fields.keys() & {"data_dir", "run_dir", "devices", "micro_batch_size", "xla"}


def kill_in_step_18():
    """Write a point every three steps, and kill this process after step 18."""
    run.POINT_STEPS = 3
    end_step = run.Run.end_step

    def end_step_or_kill(self, result):
        end_step(self, result)
        if self.session.run(tf.train.get_global_step()) == 18:
            os.kill(os.getpid(), signal.SIGKILL)

    run.Run.end_step = end_step_or_kill


@pytest.mark.slow
def test_a_run_that_was_killed_within_an_epoch_shows_each_point_once(tmp_path, monkeypatch):
    """Kill a run in step 18, and resume it after step 10."""
    monkeypatch.setattr(run, "POINT_STEPS", 3)
    whole, killed = (command(tmp_path, name, "--total_epochs=2") for name in ("whole", "killed"))
    assert run_script(*killed, prepare=(kill_in_step_18,))[0] == -signal.SIGKILL
    for line in whole, killed:
        assert SE_ResNet.main(line[1:]) == 0
    for part, tags in ("", EPOCH | WITHIN), ("test", TEST_CURVES):
        folders = [tmp_path / name / part for name in ("whole", "killed")]
        readers = [EventAccumulator(str(folder)).Reload() for folder in folders]
        for tag in tags:
            events_of_whole, events_of_killed = (
                [(e.step, e.tensor_proto) for e in reader.Tensors(tag)] for reader in readers
            )
            assert events_of_whole == events_of_killed
            steps = [3, 6, 9, 10, 12, 15, 18, 20] if tag in WITHIN else [10, 20]
            assert [step for step, _ in events_of_whole] == steps


def test_gate_histograms_count_every_class_and_channel(shown):
    for stage, channels in (1, 2), (2, 8), (3, 8):
        value = shown[f"squeeze_excitation/stage{stage}/block1/SE"][2]
        left, right, count = tf.make_ndarray(value.tensor).T
        assert count.sum() == 10 * channels
        assert 0 < left[0] < right[-1] < 1


def decode_image(value):
    return np.array(Image.open(io.BytesIO(value.image.encoded_image_string)))


def test_augmented_images_are_shifted_and_flipped_training_images(shown, trained):
    images = load_cifar(CIFAR10, trained.parent / "data")[0]
    pages = [decode_image(shown["samples/augmented"][epoch]) for epoch in (1, 2)]
    # A batch of 20 images in rows of eight, enlarged three times, six pixels apart
    assert pages[0].shape == (3 * (6 + 96), 8 * (6 + 96), 3)
    assert (pages[0] != pages[1]).any()
    # Compare only the centre, which contains no padding, with every shift, flipped or not.
    padded = np.pad(images.astype(int), [(0, 0), (4, 4), (4, 4), (0, 0)])
    shifted = sliding_window_view(padded[:, 8:32, 8:32], (16, 16), axis=(1, 2))
    for page in pages:
        found = set()
        for place in range(20):
            y, x = (6 + 102 * number for number in divmod(place, 8))
            centre = page[y : y + 96 : 3, x : x + 96 : 3][8:24, 8:24].transpose(2, 0, 1).astype(int)
            for seen in centre, centre[..., ::-1]:
                same = (np.abs(shifted - seen) <= 1).all(axis=(3, 4, 5)).any(axis=(1, 2))
                found |= set(np.flatnonzero(same).tolist())
        assert len(found) == 20


def test_at_most_64_augmented_images_and_only_finite_gates_are_shown():
    split = Split(np.zeros([2, 32, 32, 3], np.uint8), np.array([0, 1], np.int32))
    data = Dataset("black", split, split, ["a", "b"])
    gates = {"layer": np.array([[-1.0, 0.5, 1.5], [4.0, 0.5, np.inf]])}
    evaluation = Evaluation({}, split.labels, split.labels, np.ones(2), gates, 1.0)
    images = np.zeros([100, 32, 32, 3], np.uint8)
    assert events.epoch_summary({}, images).value[0].image.height == 8 * (6 + 96)
    histogram = events.test_summary({}, evaluation, data).value[0].tensor
    left, right, count = tf.make_ndarray(histogram).T
    assert (left[0], right[-1], count.sum()) == (-1, 4, 5)


def test_the_first_misclassified_image_is_from_the_test_set(shown, trained):
    images = load_cifar(CIFAR10, trained.parent / "data")[2]
    page = decode_image(shown["samples/misclassified"][2])
    # Rows of four images, enlarged three times, six pixels apart, above captions of 32 pixels
    assert page.shape == (6 * (6 + 96 + 32), 4 * (6 + 96), 3)
    assert any((page[6:102:3, 6:102:3] == image).all() for image in images)
    assert (page[102:134, 6:102] != 255).any()  # the caption


def test_cells_of_the_confusion_matrix_have_colours_worked_out_by_hand():
    """Check a matrix with two of three images of the first class correct, and all of the second."""
    page = confusion_page(np.array([[2, 1], [0, 5]]), ["a", "b"]).astype(int)
    white, blue, red = (np.array(c) for c in ((255, 255, 255), (31, 90, 160), (190, 40, 40)))
    mixed = white + (2 / 3) ** 0.5 * (blue - white), white + (1 / 3) ** 0.5 * (red - white)
    areas = [(np.abs(page - colour).max(axis=-1) <= 1).sum() for colour in (*mixed, blue)]
    # A number covers a part of each cell.
    np.testing.assert_allclose(areas, areas[0], rtol=0.1)
    assert areas[0] > 0.1 * page[..., 0].size


@pytest.mark.parametrize("classes", [2, 12, 40, 100, 1000])
def test_pages_stay_small_with_few_and_many_classes(classes):
    # Neither name is mathematics.
    names = [f"$\\frac{{$ and a rather long name, {number}" for number in range(classes)]
    assert max(confusion_page(np.eye(classes, dtype=int), names).shape) < 1100
    images = np.zeros([2, 32, 32, 3], np.uint8)
    page = mistakes_page(images, [0, 1], [1, 0], [0.9, 0.8], names)
    assert page.shape == (6 + 96 + 32, 4 * (6 + 96), 3)
    assert mistakes_page(images[:0], [], [], [], names).shape[2] == 3


def test_small_images_are_enlarged_and_large_ones_are_reduced():
    for side, augmented in (32, 96), (40, 80), (80, 80), (512, 96):
        images = np.full([3, side, side, 3], (10, 20, 30), np.uint8)
        page = contact_sheet(images)
        assert page.shape == (6 + augmented, 8 * (6 + augmented), 3)
        assert (page[6:, 6 : 6 + augmented] == (10, 20, 30)).all()
        page = mistakes_page(images, [0, 0, 0], [0, 0, 0], [1, 1, 1], ["a"])
        assert (page[6:102, 6:102] == (10, 20, 30)).all()
