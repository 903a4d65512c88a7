"""The commands that use a trained network, on the tiny run `trained`."""

import json
import os
import re
import resource
import shutil
import signal

import numpy as np
import pytest
from conftest import run_python
from image_folders import write_image_folder
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import SE_ResNeXt
from cifar10 import CIFAR10, load_cifar
from senet.cli.excitation import draw_excitation, save_excitation
from senet.engine.compat import tf
from senet.run.folder import RunFolder


@pytest.fixture
def call(capsys, trained):
    """Return a function that runs a command on the tiny run and returns (exit status, standard
    output, standard error)."""

    def call(command, *arguments, run_dir=trained):
        status = SE_ResNeXt.main([command, *map(str, arguments), f"--run_dir={run_dir}"])
        return status, *capsys.readouterr()

    return call


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


def rows(run_dir):
    """Return [(test_loss, test_acc)] of the epochs in logs.txt, as strings."""
    return re.findall(r"test_loss: (\S+), test_acc: (\S+)", (run_dir / "logs.txt").read_text())


def test_evaluate_matches_the_rows_of_logs_txt_and_the_labels(call, trained, images_and_labels):
    (first, second) = rows(trained)
    for options, (loss, accuracy) in ([], second), (["--checkpoint=model.ckpt-10"], first):
        status, output, errors = call("evaluate", *options)
        assert (status, errors) == (0, "")
        step = 10 if options else 20
        checkpoint, data, numbers, _, head, *classes, _, figure = output.splitlines()
        assert checkpoint == f"checkpoint: {trained}/model/model.ckpt-{step}"
        assert data == "data: cifar10, 40 test images"
        assert numbers == f"test_loss: {loss}, test_acc: {accuracy}"
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
    lines = output.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in files]
    predictions = [re.findall(r"class (\d) (0\.\d{4})", line) for line in lines]
    assert {len(prediction) for prediction in predictions} == {3}
    for prediction in predictions:
        probabilities = [float(probability) for _, probability in prediction]
        assert probabilities == sorted(probabilities, reverse=True)
    correct = [
        int(prediction[0][0]) == label
        for prediction, label in zip(predictions, images_and_labels[1], strict=True)
    ]
    assert f"{np.mean(correct):.4f}" == rows(trained)[-1][1]


def test_predict_with_json_gives_the_same_predictions(call, files):
    _, plain, _ = call("predict", files[0], files[1])
    status, output, errors = call("predict", files[0], files[1], "--json")
    assert (status, errors) == (0, "")
    for line, as_text in zip(output.splitlines(), plain.splitlines(), strict=True):
        prediction = json.loads(line)
        top = ", ".join(f"{part['label']} {part['probability']:.4f}" for part in prediction["top"])
        assert f"{prediction['image']}: {top}" == as_text


def test_predict_skips_broken_images(call, files):
    files[1].write_text("broken")
    status, output, errors = call("predict", *files[:3], "nowhere.png")
    assert status == 1
    _, whole, _ = call("predict", files[0], files[2])
    assert output == whole
    assert errors.splitlines() == [
        f"error: {files[1]}: not an image file, or damaged",
        "error: nowhere.png: cannot be read as an image: No such file or directory",
    ]


LOAD_EXPORT = """
import sys, numpy, tensorflow as tf
from PIL import Image
model = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
images = numpy.stack([numpy.array(Image.open(path)) for path in sys.argv[2:]])
for batch in images[:1], images:
    predictions = model(images=tf.constant(batch))
labels = [[label.decode() for label in row] for row in predictions["labels"].numpy()]
print([labels, predictions["probabilities"].numpy().tolist()])
"""


@pytest.mark.slow
def test_an_export_loaded_in_plain_tensorflow_agrees_with_predict(call, files, tmp_path):
    status, output, errors = call("export", tmp_path / "models" / "1")
    assert (status, errors) == (0, "")
    assert f"exported: {tmp_path}/models/1 (" in output
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["1"]
    code, predictions, errors = run_python(
        "-c", LOAD_EXPORT, tmp_path / "models" / "1", *files[:5], cwd=tmp_path, PYTHONPATH=""
    )
    assert code == 0, errors
    graph = saved_model_pb2.SavedModel()
    graph.ParseFromString((tmp_path / "models" / "1" / "saved_model.pb").read_bytes())
    nodes = graph.meta_graphs[0].graph_def.node
    assert {node.device for node in nodes} == {""}  # it may run on other devices
    labels, probabilities = json.loads(predictions.replace("'", '"'))
    _, output, _ = call("predict", *files[:5], "--json")
    for line, names, values in zip(output.splitlines(), labels, probabilities, strict=True):
        top = json.loads(line)["top"]
        assert [part["label"] for part in top] == names[:3]
        np.testing.assert_allclose([part["probability"] for part in top], values[:3], atol=1e-6)
        assert sorted(names) == [f"class {number}" for number in range(10)]
        assert abs(sum(values) - 1) < 1e-6


def test_export_does_not_replace_a_folder(call, tmp_path):
    (tmp_path / "file").write_text("precious")
    status, output, errors = call("export", tmp_path)
    assert (status, output) == (1, "")
    assert errors == f"error: {tmp_path} already exists; remove it, or use another folder\n"
    assert (tmp_path / "file").read_text() == "precious"


def test_an_export_that_cannot_be_written_gives_a_one_line_error(call, tmp_path):
    (tmp_path / "file").write_text("")
    status, output, errors = call("export", tmp_path / "file" / "model")
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: cannot write {tmp_path}/file/model: ")
    assert errors.count("\n") == 1


def test_export_does_not_replace_a_link(call, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    status, output, errors = call("export", tmp_path / "link")
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {tmp_path}/link already exists; ")
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]


def test_export_on_a_full_disk_gives_a_one_line_error_and_leaves_no_files(trained, tmp_path, capfd):
    """Simulate a full disk by limiting the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        status = SE_ResNeXt.main(["export", str(tmp_path / "model"), f"--run_dir={trained}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    output, errors = capfd.readouterr()
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: cannot write {tmp_path}/model: ")
    assert errors.endswith("File too large; fix the cause, or use another folder\n")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_stopped_by_sigterm_leaves_no_files(call, tmp_path, monkeypatch):
    def save(_):
        assert [path.name[:8] for path in tmp_path.iterdir()] == [".export-"]
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tf.saved_model.Builder, "save", save)
    status, output, errors = call("export", tmp_path / "model")
    message = "stopped by SIGTERM; run the same command to restart\n"
    assert (status, output, errors) == (143, "", message)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_saving_a_figure_replaces_a_symbolic_link_instead_of_following_it(call, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for command, name in ("evaluate", "confusion_matrix.png"), ("excitation", "excitation.png"):
        for place in name, f"{name}.new":
            (tmp_path / place).write_text("precious")
            (tmp_path / "run" / place).unlink(missing_ok=True)
            (tmp_path / "run" / place).symlink_to(tmp_path / place)
        status, _, errors = call(command, run_dir=tmp_path / "run")
        assert (status, errors) == (0, "")
        assert not (tmp_path / "run" / name).is_symlink()
        Image.open(tmp_path / "run" / name).verify()
        assert not (tmp_path / "run" / f"{name}.new").is_symlink()
        for place in name, f"{name}.new":
            assert (tmp_path / place).read_text() == "precious"


def test_evaluate_warns_and_excitation_fails_if_their_figure_cannot_be_written(
    call, trained, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*.png"))
    for name in "confusion_matrix.png", "excitation.png":
        (run / name / "in the way").mkdir(parents=True)
    status, output, errors = call("evaluate", run_dir=run)
    assert status == 0
    assert "test_acc: " in output
    assert errors == f"warning: cannot write {run}/confusion_matrix.png: Is a directory\n"
    status, output, errors = call("excitation", run_dir=run)
    assert status == 1
    assert "stage1/block1/SE" in output
    assert errors.startswith(f"error: cannot write {run}/excitation.png: Is a directory; fix")
    assert errors.count("\n") == 1


@pytest.mark.filterwarnings("error")
def test_class_names_missing_from_the_font_are_drawn_without_a_warning(tmp_path):
    save_excitation(tmp_path / "figure.png", {"block": np.full([2, 8], 0.5)}, ["猫", "犬"])


def test_the_gate_legend_shows_class_names_unchanged():
    names = ["$10_$20", "_other", "cat"]
    figure = draw_excitation({"block": np.full([3, 8], 0.5)}, names)
    figure.canvas.draw()  # parses mathematics
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [r"\$10_\$20", " _other", "cat"]


def test_excitation_prints_one_line_per_block_and_draws_a_figure(call, trained):
    status, output, errors = call("excitation")
    assert (status, errors) == (0, "")
    _, head, *blocks, figure = output.splitlines()
    assert head.split()[:3] == ["SE", "block", "channels"]
    # depth 2: 8, 16 and 32 channels; gates start at 1/2, and 20 steps change them little.
    for line, stage, channels in zip(blocks, (1, 2, 3), (8, 16, 32), strict=True):
        name, count, mean, *_ = line.split()
        assert (name, count) == (f"stage{stage}/block1/SE", str(channels))
        assert 0.3 < float(mean) < 0.7
    assert figure == f"figure: {trained}/excitation.png"
    Image.open(trained / "excitation.png").verify()


def test_a_copied_run_gives_the_same_predictions(call, trained, tmp_path, files):
    _, output, _ = call("predict", files[0])
    shutil.copytree(trained, tmp_path / "moved")
    assert call("predict", files[0], run_dir=tmp_path / "moved") == (0, output, "")


def test_the_commands_work_while_the_run_is_training(call, trained, files):
    hyperparameters = SE_ResNeXt.Hyperparameters(
        **json.loads((trained / "hyperparameters.json").read_text())
    )
    with RunFolder(hyperparameters):  # holds the lock, as the training process does
        assert call("predict", files[0])[0] == 0
        assert call("evaluate")[0] == 0


def test_predict_writes_nothing_and_evaluate_only_a_figure(call, trained, files):
    def contents():
        return {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}

    before = contents()
    assert call("predict", files[0])[0] == 0
    assert contents() == before
    assert call("evaluate")[0] == 0
    assert {p.name for p in contents().items() ^ before.items() for p in p[:1]} <= {
        "confusion_matrix.png"
    }


def test_a_save_in_progress_gives_no_warning(call, trained, tmp_path, files):
    shutil.copytree(trained, tmp_path / "run")
    # A save moves its data into place before its index.
    (tmp_path / "run" / "model" / "model.ckpt-30.data-00000-of-00001").write_bytes(b"complete")
    status, _, errors = call("predict", files[0], run_dir=tmp_path / "run")
    assert (status, errors) == (0, "")


def test_a_damaged_checkpoint_is_reported(call, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    newest = run / "model" / "model.ckpt-20.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:100])
    status, output, errors = call("evaluate", run_dir=run)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {run}/model/model.ckpt-20: cannot be read (")
    assert errors.endswith("use another --checkpoint\n")
    assert call("evaluate", "--checkpoint=model.ckpt-10", run_dir=run)[0] == 0


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["evaluate", "--checkpoint=model.ckpt-7"], 1, "model.ckpt-7.index does not exist"),
        (["evaluate", "--checkpoint=."], 1, "model.index does not exist"),
        (["evaluate", "--depth=4"], 2, "--depth must be 2, the value that the run was trained"),
        (["predict", "a.png", "--padding=4"], 2, "--padding must be 0, the value that the run was"),
        (["export", "a", "--reduction_ratio=0"], 2, "--reduction_ratio must be 2, the value that"),
        (["evaluate", "--dataset=shapes"], 1, "was trained on the classes class 0, class 1"),
        (["evaluate", "--devices=1"], 1, "--devices=1 names a GPU that TensorFlow does not see"),
        (["export", "a", "b"], 2, "unexpected argument 'b' of export"),
        (["predict", "a.png", "--checkpoint"], 2, "--checkpoint"),
        (["publish"], 2, "FOLDER"),
        (["predict", "a.png", "--top=5"], 2, "unknown option '--top'"),
    ],
)
def test_an_invalid_command_gives_a_one_line_error(call, arguments, status, message):
    code, output, errors = call(*arguments)
    assert (code, output) == (status, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_without_a_run_every_command_says_to_train_first(call, tmp_path):
    for command in (
        ["evaluate"],
        ["predict", "a.png"],
        ["export", "a"],
        ["publish", "a"],
        ["excitation"],
    ):
        status, output, errors = call(*command, run_dir=tmp_path)
        assert (status, output) == (1, "")
        message = (
            f"error: no run in {tmp_path}; train first, or use the --run_dir of an existing run"
        )
        assert errors.startswith(message)
        assert errors.count("\n") == 1


@pytest.fixture
def train_on_folder(tmp_path, capsys):
    """Return a function that trains on a folder of images and returns the run_dir."""

    def train(names, *options):
        images = write_image_folder(tmp_path / "images", names, size=(20, 30))
        run_dir = tmp_path / "run"
        tiny = ["--cardinality=2", "--depth=2", "--blocks=1", "--reduction_ratio=2", "--padding=0"]
        small = ["--batch_size=20", "--micro_batch_size=0", "--total_epochs=1"]
        small += [f"--dataset={images}"]
        places = [f"--data_dir={tmp_path / 'data'}", f"--run_dir={run_dir}"]
        assert SE_ResNeXt.main([*tiny, *small, *options, *places]) == 0
        capsys.readouterr()
        return run_dir

    return train


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 37])
def test_own_images_work_from_training_to_export(train_on_folder, call, tmp_path, classes):
    names = [f"kind {number:02}" for number in range(classes)]
    run_dir = train_on_folder(names)
    image = tmp_path / "images" / "test" / names[0] / "0.png"
    status, output, errors = call("evaluate", run_dir=run_dir)
    assert (status, errors) == (0, "")
    assert f"{2 * classes} test images" in output
    # The first two lines and the last contain paths.
    assert all(len(line) <= 100 for line in output.splitlines()[2:-1])

    shutil.rmtree(tmp_path / "images" / "train")  # the class names are in the checkpoint
    _, output, errors = call("predict", image, "--json", run_dir=run_dir)
    assert errors == ""
    top = json.loads(output)["top"]
    assert {part["label"] for part in top} <= set(names)
    assert len(top) == min(3, classes)

    assert call("export", tmp_path / "model", run_dir=run_dir)[0] == 0
    with tf.Graph().as_default(), tf.Session() as session:
        meta = tf.saved_model.load(session, ["serve"], str(tmp_path / "model"))
        outputs = meta.signature_def["serving_default"].outputs
        feed = {"input/images:0": np.zeros([3, 32, 32, 3], np.uint8)}
        fetches = [outputs["labels"].name, outputs["probabilities"].name]
        labels, probabilities = session.run(fetches, feed)
    assert sorted(label.decode() for label in labels[0]) == names
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_excitation_figure_has_exactly_one_panel_per_block():
    for blocks in 1, 3, 4, 16, 22:
        gates = {f"block{number}": np.full([2, 8], 0.5) for number in range(blocks)}
        assert len(draw_excitation(gates, ["a", "b"]).axes) == blocks


def test_excitation_shows_gates_outside_0_and_1():
    gates = {"inside": np.full([2, 3], 0.5), "outside": np.array([[-0.5, np.inf, 2.0]] * 2)}
    for panel in draw_excitation(gates, ["a", "b"]).axes:
        assert panel.get_ylim() == (-0.5, 2)


@pytest.mark.slow
def test_excitation_rejects_a_network_without_se_blocks(train_on_folder, call):
    status, output, errors = call(
        "excitation", run_dir=train_on_folder("ab", "--reduction_ratio=0")
    )
    assert (status, output) == (1, "")
    assert "has no gates: its reduction_ratio is 0, or " in errors


@pytest.mark.slow
def test_a_larger_image_size_works_from_training_to_export(train_on_folder, call, tmp_path):
    run_dir = train_on_folder("ab", "--image_size=48")
    status, output, errors = call("export", tmp_path / "model", run_dir=run_dir)
    assert (status, errors) == (0, "")
    assert "images of 48x48" in output
