"""The commands that use a trained network, on the tiny run `trained`."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_run
from conftest import assert_one_line_error
from fake_cifar10 import make_files, write_folder
from image_folders import write_image_folder
from PIL import Image

import SE_ResNet
from cifar10 import CIFAR10, load_cifar
from senet.run.folder import RunFolder
from senet.run.pages import draw_excitation, drawn


@pytest.fixture
def call(call, trained):
    """Return a function that runs a command on the tiny run."""
    return lambda *words, run_dir=trained: call(*words, f"--run_dir={run_dir}")


@pytest.fixture(scope="session")
def images_and_labels(trained):
    """Return (images, labels) of the test set, 40 images."""
    return load_cifar(CIFAR10, trained.parent / "data")[2:4]


@pytest.fixture
def files(tmp_path, images_and_labels):
    """Return the paths of the test images as PNG files."""
    paths = [tmp_path / f"{number}.png" for number in range(len(images_and_labels[0]))]
    for path, image in zip(paths, images_and_labels[0], strict=True):
        Image.fromarray(image).save(path)
    return paths


def rows(run):
    """Return [(test_loss, test_acc)] of the epochs in logs.txt, as strings."""
    return re.findall(r"test_loss: ([\d.]+), test_acc: ([\d.]+)", (run / "logs.txt").read_text())


def test_evaluate_matches_the_rows_of_logs_txt_and_the_labels(call, trained, images_and_labels):
    (first, second) = rows(trained)
    best = first if float(first[1]) >= float(second[1]) else second
    for options, row in (
        ([], second),
        (["--checkpoint=model.ckpt-10"], first),
        (["--checkpoint=best", f"--data_dir={trained.parent / 'data'}"], best),
    ):
        loss, accuracy = row
        status, output, errors = call("evaluate", *options)
        assert (status, errors) == (0, "")
        step = 20 if row is second else 10
        checkpoint, data, numbers, _, head, *classes, _, figure = output.splitlines()
        assert checkpoint == f"checkpoint: {trained}/model/model.ckpt-{step}"
        assert data == "data: cifar10, 40 test images"
        assert numbers.startswith(f"test_loss: {loss}, test_acc: {accuracy}")
        assert head.split() == ["class", "accuracy", "images", *map(str, range(10))]
        lines = head, *classes
        ends = [[part.end() for part in re.finditer(r"\S+", line)][-12:] for line in lines]
        assert all(line == ends[0] for line in ends)
        table = [line.replace(" .", " 0").split()[3:] for line in classes]
        matrix = np.array([row[2:] for row in table], int)
        counts = np.bincount(images_and_labels[1], minlength=10)
        np.testing.assert_array_equal(matrix.sum(axis=1), counts)
        np.testing.assert_array_equal([int(row[1]) for row in table], counts)
        assert matrix.trace() == round(40 * float(accuracy))
        accuracies = [float(row[0]) for row in table]
        np.testing.assert_allclose(accuracies, matrix.diagonal() / counts, atol=5e-5)
        assert figure == f"figure: {trained}/confusion_matrix.png"
        assert all(len(line) <= 100 for line in output.splitlines()[1:-1])
        Image.open(trained / "confusion_matrix.png").verify()


def test_a_checkpoint_can_be_given_by_path_or_name(call, trained):
    path = trained / "model" / "model.ckpt-10"
    for name in path, path.name, f"{path}.index":
        status, output, _ = call("evaluate", f"--checkpoint={name}")
        assert (status, output.splitlines()[0]) == (0, f"checkpoint: {path}")


def test_predictions_have_the_accuracy_in_logs_txt(call, trained, files, images_and_labels):
    status, output, errors = call("predict", *files)
    assert (status, errors) == (0, "")
    predictions = [re.findall(r"class (\d) (0\.\d{4})", line) for line in output.splitlines()]
    assert {len(prediction) for prediction in predictions} == {3}
    for prediction in predictions:
        probabilities = [float(probability) for _, probability in prediction]
        assert probabilities == sorted(probabilities, reverse=True)
    pairs = zip(predictions, images_and_labels[1], strict=True)
    correct = [int(prediction[0][0]) == label for prediction, label in pairs]
    assert f"{np.mean(correct):.4f}" == rows(trained)[-1][1]


def test_predict_reads_folders_and_prints_json_records_also_of_files_that_fail(call, files):
    folder = files[0].parent
    broken = folder / "inner" / "broken.JPG"
    broken.parent.mkdir()
    broken.write_text("broken")
    (folder / "__MACOSX").mkdir()
    for name in "Thumbs.db", "labels.txt", ".hidden.png", "__MACOSX/a.png":
        (folder / name).write_text("not an image")
    paths = [*map(str, sorted(files)), str(broken), "nowhere.png"]
    status, plain, errors = call("predict", folder, "nowhere.png", "--top=2")
    assert status == 1
    assert errors.splitlines() == [
        f"error: {broken}: not an image file, or damaged",
        "error: nowhere.png: cannot be read as an image: No such file or directory",
    ]
    assert [line.partition(": ")[0] for line in plain.splitlines()] == paths[:-2]

    status, output, _ = call("predict", folder, "nowhere.png", "--top=2", "--json")
    assert status == 1
    *good, bad, missing = map(json.loads, output.splitlines())
    assert bad == {"image": str(broken), "error": "not an image file, or damaged"}
    assert missing["error"] == "cannot be read as an image: No such file or directory"
    for record, line in zip(good, plain.splitlines(), strict=True):
        path, top = line.split(": ")
        pairs = [part.rsplit(" ", 1) for part in top.split(", ")]
        rounded = [(name, pytest.approx(float(value), abs=1e-4)) for name, value in pairs]
        assert [(part["label"], part["probability"]) for part in record["top"]] == rounded
        assert record["image"] == path
        assert all(round(part["probability"], 6) == part["probability"] for part in record["top"])
        assert len(record["top"]) == 2


def test_the_best_checkpoint_does_not_depend_on_the_data_set_of_evaluate(call, trained, tmp_path):
    """The other data set has 20 steps per epoch instead of 10."""
    photos = write_image_folder(tmp_path / "photos", [f"class {n}" for n in range(10)], train=40)
    best = f"evaluate --checkpoint=best --data_dir={trained.parent / 'data'}".split()
    outputs = [call(*best, *other)[1] for other in ([], [f"--dataset={photos}"])]
    own, other = (output.splitlines()[0] for output in outputs)
    assert own == other
    assert own.startswith(f"checkpoint: {trained}/model/model.ckpt-")


def test_export_does_not_replace_a_folder_or_a_link(call, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in tmp_path, tmp_path / "link":
        assert_one_line_error(call("export", folder), 1, f"{folder} already exists; remove it, or")
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]


def test_an_export_that_cannot_be_written_gives_a_one_line_error(call, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("export", tmp_path / "file" / "model")
    assert_one_line_error(result, 1, f"cannot write {tmp_path}/file/model: ")
    assert result[2].endswith("; fix the cause, or use another folder\n")


def test_evaluate_warns_if_the_test_images_are_not_those_of_the_run(call, tmp_path):
    files = make_files(count=tiny_run.IMAGES)
    write_folder(tmp_path, files | {"test_batch": files["data_batch_1"]})
    status, _, errors = call("evaluate", f"--data_dir={tmp_path}")
    assert (status, errors) == (
        0,
        "warning: the images or labels of cifar10 differ from those that the network was trained "
        "and tested on\n",
    )


@pytest.mark.parametrize(
    "command, name, text",
    [
        ("evaluate", "confusion_matrix.png", "test_acc: "),
        ("excitation", "excitation.png", "stage1/block1/SE"),
    ],
)
def test_a_figure_that_cannot_be_written_is_a_warning(call, trained, tmp_path, command, name, text):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*.png"))
    (run / name / "in the way").mkdir(parents=True)
    status, output, errors = call(command, run_dir=run)
    assert (status, text in output) == (0, True)
    assert errors == f"warning: cannot write {run / name}: Is a directory\n"


def test_excitation_prints_one_line_per_block_and_draws_a_figure(call, trained):
    status, output, errors = call("excitation")
    assert (status, errors) == (0, "")
    _, head, *blocks, figure = output.splitlines()
    assert head.split()[:3] == ["SE", "block", "channels"]
    # Gates start at 1/2, and 20 steps change them little.
    for line, stage, channels in zip(blocks, (1, 2, 3), (2, 8, 8), strict=True):
        name, count, mean, *_ = line.split()
        assert (name, count) == (f"stage{stage}/block1/SE", str(channels))
        assert 0.3 < float(mean) < 0.7
    assert figure == f"figure: {trained}/excitation.png"
    Image.open(trained / "excitation.png").verify()


def test_the_commands_work_while_the_run_is_training(call, trained, files):
    hyperparameters = SE_ResNet.Hyperparameters(
        **json.loads((trained / "hyperparameters.json").read_text())
    )
    with RunFolder(hyperparameters):  # holds the lock, as the training process does
        assert call("predict", files[0])[0] == 0
        assert call("evaluate")[0] == 0


def test_a_damaged_checkpoint_is_reported(call, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    newest = run / "model" / "model.ckpt-20.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:100])
    result = call("evaluate", run_dir=run)
    assert_one_line_error(result, 1, f"{run}/model/model.ckpt-20: cannot be read (")
    assert result[2].endswith("use another --checkpoint\n")
    assert call("evaluate", "--checkpoint=model.ckpt-10", run_dir=run)[0] == 0


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["evaluate", "--checkpoint=model.ckpt-7"], 1, "model.ckpt-7.index does not exist"),
        (["evaluate", "--checkpoint=."], 1, "model.index does not exist"),
        (["evaluate", "--width=4"], 2, "--width must be 2, the value that the run was trained"),
        (["predict", "a.png", "--padding=4"], 2, "--padding must be 0, the value that the run was"),
        (["export", "a", "--reduction_ratio=0"], 2, "--reduction_ratio must be 2, the value that"),
        (["publish", "a", "--seed=3"], 2, "--seed must be 0, the value that the run was trained"),
        (["publish", "a", "--total_epochs=9"], 2, "--total_epochs must be 2, the value that"),
        (["evaluate", "--dataset=shapes"], 1, "was trained on the classes class 0, class 1"),
        (["evaluate", "--devices=1"], 1, "--devices=1 names a GPU that TensorFlow does not see"),
        (["export", "a", "b"], 2, "unexpected argument 'b' of export"),
        (["predict", "a.png", "--checkpoint"], 2, "--checkpoint"),
        (["publish"], 2, "FOLDER"),
        (["predict", "a.png", "--top=0"], 2, "--top: must be a whole number of at least 1, got"),
        (["predict", "a.png", "--tip=5"], 2, "unknown option '--tip'"),
    ],
)
def test_an_invalid_command_gives_a_one_line_error(call, arguments, status, message):
    result = call(*arguments)
    assert_one_line_error(result, status, "")
    assert message in result[2]


def test_without_a_run_every_command_says_to_train_first(call, tmp_path, monkeypatch):
    for command in "evaluate", "predict a.png", "export a", "publish a", "excitation":
        result = call(*command.split(), run_dir=tmp_path)
        assert_one_line_error(result, 1, f"no run in {tmp_path}; train first, or use the --run_dir")
    (tmp_path / "models" / "SE_ResNet").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    _, _, errors = call("evaluate", run_dir=tmp_path)
    assert errors.endswith(" of an existing run, such as --run_dir=models/SE_ResNet\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes, options", [(2, []), (37, ["--image_size=48", "--reduction_ratio=0"])]
)
def test_own_images_work_from_training_to_export(call, tmp_path, classes, options):
    names = [f"kind {number:02}" for number in range(classes)]
    images = write_image_folder(tmp_path / "images", names, size=(20, 30))
    run_dir = tmp_path / "run"
    options = [*tiny_run.TINY_OPTIONS, f"--dataset={images}", "--total_epochs=1", *options]
    assert call("train", f"--data_dir={tmp_path / 'data'}", *options, run_dir=run_dir)[0] == 0
    image = tmp_path / "images" / "test" / names[0] / "0.png"
    status, output, errors = call("evaluate", run_dir=run_dir)
    assert (status, errors) == (0, "")
    assert f"{2 * classes} test images" in output
    # The first two lines and the last contain paths.
    assert all(len(line) <= 100 for line in output.splitlines()[2:-1])
    if "--image_size=48" in options:
        status, output, errors = call("excitation", run_dir=run_dir)
        assert (status, output) == (1, "")
        assert "has no gates: its reduction_ratio is 0, or " in errors

    shutil.rmtree(tmp_path / "images" / "train")  # the class names are in the checkpoint
    _, output, errors = call("predict", image, "--json", run_dir=run_dir)
    assert errors == ""
    top = json.loads(output)["top"]
    assert {part["label"] for part in top} <= set(names)
    assert len(top) == min(3, classes)

    status, output, _ = call("export", tmp_path / "model", run_dir=run_dir)
    side = 48 if "--image_size=48" in options else 32
    assert (status, f"images of {side}x{side}" in output) == (0, True)


@pytest.mark.filterwarnings("error")
def test_class_names_missing_from_the_font_are_drawn_without_a_warning():
    drawn(draw_excitation({"block": np.full([2, 8], 0.5)}, ["猫", "犬"]))


def test_the_gate_legend_shows_class_names_unchanged():
    names = ["$10_$20", "_other", "cat"]
    figure = draw_excitation({"block": np.full([3, 8], 0.5)}, names)
    figure.canvas.draw()  # parses mathematics
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [r"\$10_\$20", " _other", "cat"]


def test_excitation_shows_gates_outside_0_and_1():
    gates = {"inside": np.full([2, 3], 0.5), "outside": np.array([[-0.5, np.inf, 2.0]] * 2)}
    panels = draw_excitation(gates, ["a", "b"]).axes
    assert [panel.get_ylim() for panel in panels] == [(-0.5, 2)] * 2  # one for each block
