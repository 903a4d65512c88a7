"""Check the event files of the tiny run `trained`, and the images in them."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tiny_run import arguments

import SE_ResNeXt
from cifar10 import CIFAR10, load_cifar
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.evaluation import Evaluation
from senet.run.events import CHARTS, epoch_summary
from senet.run.pages import confusion_page, contact_sheet, mistakes_page


@pytest.fixture(scope="module")
def shown(trained):
    """Return the contents of the event file, {tag: {epoch: tf.Summary.Value}}."""
    (file,) = (trained / "logs").iterdir()
    found = {}
    for event in tf.train.summary_iterator(str(file)):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value
    return found


SCALARS = {
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "l2_loss",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
}
PAGES = {
    "training_images/augmented",
    "test_images/confusion_matrix",
    "test_images/misclassified",
}
GATES = {f"gates/stage{stage}/block1/SE" for stage in (1, 2, 3)}


def test_every_tag_is_written_in_each_epoch(shown):
    assert set(shown) >= SCALARS | PAGES | GATES | {"hyperparameters", "custom_scalars__config__"}
    for tag in SCALARS | PAGES | GATES:
        assert list(shown[tag]) == [1, 2], tag


def test_scalars_match_the_rows_of_logs_txt(shown, trained):
    names = "train_loss", "train_accuracy", "test_loss", "test_accuracy"
    for epoch, row in enumerate((trained / "logs.txt").read_text().splitlines(), 1):
        numbers = re.findall(r"\d+\.\d+", row)
        assert [f"{shown[name][epoch].simple_value:.4f}" for name in names] == numbers


def test_charts_show_each_scalar_exactly_once(shown):
    (value,) = shown["custom_scalars__config__"].values()
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    assert [category.title for category in layout.category] == list(CHARTS)
    charts = [chart for category in layout.category for chart in category.chart]
    tags = [tag.strip("^$") for chart in charts for tag in chart.multiline.tag]
    assert len(tags) == len(set(tags))
    assert set(tags) >= SCALARS
    assert all(shown[tag][2].HasField("simple_value") for tag in tags)


def test_hyperparameters_are_shown_as_a_table(shown, trained):
    (value,) = shown["hyperparameters"].values()
    assert value.metadata.plugin_data.plugin_name == "text"
    text = value.tensor.string_val[0].decode()
    assert text.startswith("**SE_ResNeXt**\n\n| hyperparameter | value |\n|---|---|\n")
    assert "\n| depth | 2 |\n" in text
    assert f"\n| run_dir | {trained} |\n" in text


@pytest.mark.slow
def test_the_hyperparameters_that_a_resumed_run_changed_are_shown(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    assert SE_ResNeXt.main(arguments(tmp_path, "run", "--total_epochs=3")) == 0
    newest = max((tmp_path / "run" / "logs").iterdir())
    ((step, text),) = [
        (event.step, value.tensor.string_val[0].decode())
        for event in tf.train.summary_iterator(str(newest))
        for value in event.summary.value
        if value.tag == "hyperparameters"
    ]
    assert step == 2
    assert "\n| total_epochs | 3 |\n" in text


def test_gate_histograms_count_every_class_and_channel(shown):
    for stage, channels in (1, 8), (2, 16), (3, 32):
        for epoch in (1, 2):
            histogram = shown[f"gates/stage{stage}/block1/SE"][epoch].histo
            assert histogram.num == sum(histogram.bucket) == 10 * channels
            assert 0 < histogram.min < histogram.max < 1
            np.testing.assert_allclose(histogram.bucket_limit, np.arange(1, 51) / 50)


def decode_image(value):
    image = np.array(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert image.shape == (value.image.height, value.image.width, 3)
    return image


def test_augmented_images_are_shifted_and_flipped_training_images(shown, trained):
    images = load_cifar(CIFAR10, trained.parent / "data")[0]
    pages = [decode_image(shown["training_images/augmented"][epoch]) for epoch in (1, 2)]
    # A batch of 20 images in rows of eight, enlarged by a factor of three, six pixels apart.
    assert pages[0].shape == (6 + 3 * (96 + 6), 6 + 8 * (96 + 6), 3)
    assert (pages[0] != pages[1]).any()
    # 20 of 200 images, evenly spaced, in any order
    padded = np.pad(images[::10].astype(int), [(0, 0), (4, 4), (4, 4), (0, 0)])
    for page in pages:
        found = set()
        for place in range(20):
            y, x = (6 + 102 * number for number in divmod(place, 8))
            seen = page[y : y + 96 : 3, x : x + 96 : 3].astype(int)
            # Compare only the centre, which contains no padding, with every shift, flipped or not.
            found |= {
                int(number)
                for y0 in range(9)
                for x0 in range(9)
                for flip in (0, 1)
                for number in np.flatnonzero(
                    np.abs(
                        padded[:, y0 + 8 : y0 + 24, x0 + 8 : x0 + 24][:, :, :: 1 - 2 * flip]
                        - seen[8:24, 8:24]
                    ).max(axis=(1, 2, 3))
                    <= 1
                )
            }
        assert found == set(range(20))


def summary_values(image_count=1, gates=None):
    """Return the values of a summary, by tag, for black images and `gates`, {layer: gates}."""
    split = Split(np.zeros([2, 32, 32, 3], np.uint8), np.array([0, 1], np.int32))
    data = Dataset("black", split, split, ["a", "b"])
    evaluation = Evaluation(0.0, 1.0, split.labels, split.labels, np.ones(2), gates or {}, 1.0)
    images = np.zeros([image_count, 32, 32, 3], np.uint8)
    return {value.tag: value for value in epoch_summary({}, images, evaluation, data).value}


def test_at_most_64_augmented_images_are_shown():
    page = summary_values(image_count=100)["training_images/augmented"]
    assert page.image.height == 6 + 8 * (96 + 6)


def test_gates_outside_0_and_1_are_counted():
    gates = np.array([[-1.0, 0.5, 1.5], [4.0, 0.5, np.inf]])
    histogram = summary_values(gates={"layer": gates})["gates/layer"].histo
    assert sum(histogram.bucket) == 5  # without the infinite one
    assert histogram.bucket_limit[-1] == 4
    # 50 bins of 0.1 from -1 on; TensorBoard lists their upper limits.
    assert [n for n, count in enumerate(histogram.bucket) if count] == [0, 15, 25, 49]


def test_the_first_misclassified_image_is_from_the_test_set(shown, trained):
    images = load_cifar(CIFAR10, trained.parent / "data")[2]
    page = decode_image(shown["test_images/misclassified"][2])
    # Rows of six images, enlarged by a factor of four, six pixels apart, each above a caption of 36
    # pixels.
    assert page.shape == (6 + 5 * (128 + 6 + 36), 6 + 6 * (128 + 6), 3)
    seen = page[6:134:4, 6:134:4]
    assert any((seen == image).all() for image in images)
    assert (page[134:170, 6:134] != 255).any()  # the caption


def test_cells_of_the_confusion_matrix_have_colours_worked_out_by_hand():
    """Check a matrix with two of three images of the first class correct, and all of the second."""
    page = confusion_page(np.array([[2, 1], [0, 5]]), ["a", "b"])
    first = page.shape[0] - 12 - 2 * 44  # the corner of the first cell
    corners = [
        [page[first + 44 * row + 2, first + 44 * column + 2] for column in (0, 1)] for row in (0, 1)
    ]
    white, blue, red = (np.array(c) for c in ((255, 255, 255), (31, 90, 160), (190, 40, 40)))
    expected = [
        [white + (2 / 3) ** 0.5 * (blue - white), white + (1 / 3) ** 0.5 * (red - white)],
        [white, blue],
    ]
    np.testing.assert_allclose(corners, expected, atol=1)


@pytest.mark.parametrize("classes", [2, 37, 100, 250, 1000])
def test_pages_stay_small_with_few_and_many_classes(classes):
    names = [f"a class with a rather long name, {number}" for number in range(classes)]
    assert max(confusion_page(np.eye(classes, dtype=int), names).shape) < 950
    images = np.zeros([2, 32, 32, 3], np.uint8)
    page = mistakes_page(images, [0, 1], [1, 0], [0.9, 0.8], names)
    assert page.shape == (6 + 128 + 6 + 36, 6 + 2 * (128 + 6), 3)


def test_the_page_of_mistakes_may_be_empty():
    assert mistakes_page(np.zeros([0, 32, 32, 3], np.uint8), [], [], [], ["a"]).shape[2] == 3


def test_small_images_are_enlarged_and_large_ones_are_reduced():
    for side, augmented, mistake in (32, 96, 128), (48, 96, 144), (80, 80, 160), (512, 96, 120):
        images = np.full([3, side, side, 3], (10, 20, 30), np.uint8)
        page = contact_sheet(images)
        assert page.shape == (6 + augmented + 6, 6 + 3 * (augmented + 6), 3)
        assert (page[6 : 6 + augmented, 6 : 6 + augmented] == (10, 20, 30)).all()
        page = mistakes_page(images, [0, 0, 0], [0, 0, 0], [1, 1, 1], ["a"])
        assert page.shape == (6 + mistake + 6 + 36, 6 + 3 * (mistake + 6), 3)
