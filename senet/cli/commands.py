"""The commands that use a trained network: evaluate, predict, export, excitation.

Their arguments are the network's class, the hyperparameters, and those declared in `COMMANDS` of
`senet/cli/command_line.py`.
"""

import contextlib
import json as json_format
import os
import pathlib
import shlex
import sys
import tempfile

import numpy as np
from PIL import Image

from senet.data.datasets import batches, load_dataset
from senet.data.image_files import ImageError, read_image
from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.files import replacing
from senet.engine.signals import signals_as_exceptions
from senet.engine.text import first_line, printable, shortened
from senet.evaluation import evaluate as evaluate_batches
from senet.hyperparameters import check_path
from senet.run.pages import confusion_page
from senet.run.trained import TrainedNetwork

TOP = 3  # classes printed per image
PREDICT_BATCH = 64  # images


def evaluate_trained(trained):
    """Evaluate a TrainedNetwork on the test set; return the Evaluation and the Dataset. Raises
    Failure if the classes of the data set are not those that the network was trained on."""
    hp = trained.hyperparameters
    data = load_dataset(hp.dataset, hp.data_dir, hp.image_size)
    if data.label_names != trained.label_names:
        raise Failure(
            f"{trained.checkpoint} was trained on the classes {shortened(trained.label_names)}, "
            f"but {hp.dataset} has {shortened(data.label_names)}; use the training run's --dataset"
        )
    # Use the same batches as the evaluation after each epoch, so that the results are identical,
    # bit for bit, on the same CPU with the same number of cores.
    test_batches = batches(data.test, hp.micro_batch_size or hp.batch_size)
    return evaluate_batches(trained.session, trained.outputs, trained.inputs, test_batches), data


def evaluate(network, hyperparameters, checkpoint=""):
    """Print the loss, the accuracy, the accuracy of each class and the confusion matrix of the test
    set, and save a drawing of the matrix as run_dir/confusion_matrix.png."""
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        evaluation, data = evaluate_trained(trained)
        matrix, names = evaluation.confusion_matrix(len(data.label_names)), data.label_names
        print(f"checkpoint: {trained.checkpoint}")
        print(f"data: {data.name}, {len(evaluation.labels):,} test images")
        print(result_line(evaluation))
        if hyperparameters.test_time_augmentation != "none":
            print(
                f"these are averages over {hyperparameters.test_time_augmentation}; without "
                f"test-time augmentation, test_acc: {evaluation.plain_accuracy:.4f}"
            )
        print()
        for line in class_table(matrix, names):
            print(line)
        figure = pathlib.Path(hyperparameters.run_dir) / "confusion_matrix.png"
        try:
            with replacing(figure) as temporary:
                Image.fromarray(confusion_page(matrix, names)).save(temporary, "PNG")
        except OSError as error:  # such as for a shared network that only others may write
            print(f"warning: cannot write {figure}: {first_line(error)}", file=sys.stderr)
        else:
            print(f"\nfigure: {figure}")


def result_line(evaluation):
    """Return the loss and the accuracy of an Evaluation, formatted as in a row of logs.txt."""
    return ", ".join(f"test_{name}: {value:.4f}" for name, value in evaluation.metrics.items())


def class_table(matrix, names):
    """Yield the lines of a table with the accuracy of each class, its number of images and its row
    of the confusion matrix. If the lines would exceed 100 columns, the row is replaced by the class
    that the images were most often mistaken for."""
    digits = len(str(len(names) - 1))
    width = min(20, max(4, *map(len, names)))
    cell = max(4, len(str(matrix.max())) + 1)
    whole = digits + width + 18 + cell * len(names) <= 100
    heads = [f"{number}".rjust(cell) for number in range(len(names))]
    last = "".join(heads) if whole else "  most often mistaken for"
    yield f"{'class':{digits + 2 + width}}{'accuracy':>9}{'images':>7}{last}"
    for number, (name, row) in enumerate(zip(names, matrix, strict=True)):
        images = row.sum()
        share = f"{row[number] / images:.4f}" if images else "   -  "
        wrong = np.where(np.arange(len(row)) == number, 0, row)
        if whole:
            last = "".join(f"{count or '.'}".rjust(cell) for count in row)
        else:
            last = f"  {names[wrong.argmax()]} ({wrong.max():,})" if wrong.max() else "  -"
        yield f"{number:{digits}}  {name[:width]:{width}}{share:>9}{images:>7,}{last}"


def predict(network, hyperparameters, images, checkpoint="", json=False):
    """Print the three most probable classes of each image file, one file per line; with `json`, as
    a JSON object. `images` is a list of paths. Return 1 if a file could not be read, 0 otherwise.
    """
    status = 0
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        for first in range(0, len(images), PREDICT_BATCH):
            paths = images[first : first + PREDICT_BATCH]
            read = [_image_or_error(path, hyperparameters.image_size) for path in paths]
            good = [image for image in read if image is not None]
            status |= len(good) < len(read)
            predictions = iter(trained.probabilities(np.stack(good)) if good else [])
            for path, image in zip(paths, read, strict=True):
                if image is not None:
                    line = _prediction(path, next(predictions), trained.label_names, json)
                    print(line, flush=True)
    return int(status)


def _image_or_error(path, side):
    """Return the image in a file, or None after printing an error."""
    try:
        return read_image(path, side)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return None


def _prediction(path, probabilities, names, as_json):
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    if as_json:
        top = [{"label": names[c], "probability": float(probabilities[c])} for c in order]
        return json_format.dumps({"image": path, "top": top})
    return f"{printable(path)}: " + ", ".join(f"{names[c]} {probabilities[c]:.4f}" for c in order)


def new_folder(text):
    """Return `text`, the argument FOLDER, as the path of a new folder. Raises
    HyperparameterError if the path is not allowed, Failure if it exists."""
    check_path("FOLDER", text)
    folder = pathlib.Path(text)
    if os.path.lexists(folder):
        raise Failure(f"{folder} already exists; remove it, or use another folder")
    return folder


@contextlib.contextmanager
def temporary_folder(folder):
    """Yield a path at which to create a folder, and rename that folder to `folder` at the end of
    the block: other processes, such as a server, never see an incomplete one. Raises Failure if it
    cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            signals_as_exceptions(),
            tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as parent,
        ):
            temporary = pathlib.Path(parent) / "model"
            yield temporary
            temporary.rename(folder)
    except (tf.errors.OpError, OSError) as error:
        raise Failure(
            f"cannot write {folder}: {first_line(error)}; fix the cause, or use another folder"
        ) from None


def export(network, hyperparameters, folder, checkpoint=""):
    """Write a SavedModel into a new `folder`. It maps `images`, uint8 [batch, side, side, 3], to
    all classes, the most probable first: `labels`, string [batch, classes], and `probabilities`,
    float32 [batch, classes]."""
    folder = new_folder(folder)
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        names = trained.label_names
        with tf.name_scope("predict"):
            probabilities, order = tf.math.top_k(trained.predictions, k=len(names))
            labels = tf.gather(tf.constant(names), order)
        signature = tf.saved_model.predict_signature_def(
            {"images": trained.inputs.images}, {"probabilities": probabilities, "labels": labels}
        )
        with temporary_folder(folder) as temporary:
            builder = tf.saved_model.Builder(str(temporary))
            with without_chatter():
                builder.add_meta_graph_and_variables(
                    trained.session,
                    [tf.saved_model.tag_constants.SERVING],
                    {tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: signature},
                    # The machine that loads the model may have other devices.
                    clear_devices=True,
                    strip_default_attrs=True,
                )
                builder.save()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"checkpoint: {trained.checkpoint}")
        print(
            f"exported: {folder} ({size / 1e6:.1f} MB); classifies images of "
            f"{hyperparameters.image_size}x{hyperparameters.image_size} pixels into {len(names)} "
            f"classes"
        )
        print(f"next: saved_model_cli show --all --dir {shlex.quote(str(folder))}")


def excitation(network, hyperparameters, checkpoint=""):
    """Plot the mean gate of each channel of every SE block for each class of the test set, save the
    figure as run_dir/excitation.png, and print the standard deviations over channels and over
    classes (SENet, arXiv 1709.01507, the section on the role of excitation)."""
    # Imported here because only this command needs Matplotlib.
    from senet.cli.excitation import save_excitation

    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        if not trained.outputs["gates"]:
            raise Failure(
                f"{trained.checkpoint} has no gates: its reduction_ratio is 0, or its layers add "
                f"no Gate to GATES; use the --run_dir of a network with gates"
            )
        evaluation, data = evaluate_trained(trained)
        print(f"checkpoint: {trained.checkpoint}")
        width = max(map(len, evaluation.gates))
        print(f"{'SE block':{width}}  channels  mean gate  std over channels  std over classes")
        for block, gates in evaluation.gates.items():
            over_classes = gates.std(axis=0).mean()
            print(
                f"{block:{width}}{gates.shape[1]:>10,}{gates.mean():>11.4f}"
                f"{gates.mean(axis=0).std():>19.4f}{over_classes:>18.4f}"
            )
        figure = pathlib.Path(hyperparameters.run_dir) / "excitation.png"
        try:
            with replacing(figure) as temporary:
                save_excitation(temporary, evaluation.gates, data.label_names)
        except OSError as error:
            raise Failure(
                f"cannot write {figure}: {first_line(error)}; fix the cause, or use a copy of the "
                f"run"
            ) from None
        print(f"figure: {figure}")
