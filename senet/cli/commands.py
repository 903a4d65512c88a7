"""The commands that use a trained network: evaluate, predict and excitation.

Their arguments are the network's class, the hyperparameters, and those declared in `COMMANDS` of
`senet/cli/command_line.py`.
"""

import argparse
import json as json_format
import pathlib
import sys

import numpy as np
from PIL import Image

from senet.data.datasets import batches, load_dataset
from senet.data.image_files import ImageError, images_below, read_image
from senet.data.inputs import statistics_of
from senet.engine.errors import Failure
from senet.engine.files import replacing
from senet.engine.text import first_line, printable, shortened
from senet.evaluation import evaluate as evaluate_batches
from senet.run.folder import RunFolder
from senet.run.pages import confusion_page, draw_excitation, drawn
from senet.run.trained import BATCH, TrainedNetwork


def evaluate_trained(trained):
    """Evaluate a TrainedNetwork on the test set; return the Evaluation and the Dataset. Raises
    Failure if the classes of the data set are not those that the network was trained on."""
    hp = trained.hyperparameters
    data = load_dataset(hp.dataset, hp.data_dir, hp.image_size, hp.validation)
    if data.label_names != trained.label_names:
        raise Failure(
            f"{trained.checkpoint} was trained on the classes {shortened(trained.label_names)}, "
            f"but {hp.dataset} has {shortened(data.label_names)}; use the training run's --dataset"
        )
    same = (
        all(map(np.array_equal, trained.statistics, statistics_of(data)))
        if trained.checksums is None
        else np.array_equal(trained.checksums, data.checksums())
    )
    if not same:
        print(
            f"warning: the images or labels of {data.name} differ from those that the network was "
            f"trained and tested on",
            file=sys.stderr,
        )
    # Use the same batches as the evaluation after each epoch, so that the results are identical,
    # bit for bit, on the same CPU with the same number of cores.
    test_batches = batches(data.test, hp.micro_batch_size or hp.batch_size)
    return evaluate_batches(trained.session, trained.outputs, trained.inputs, test_batches), data


def evaluate(network, hyperparameters, checkpoint=""):
    """Print the loss, the accuracy, the accuracy of each class and the confusion matrix of the test
    set, and save a drawing of the matrix as confusion_matrix.png."""
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        evaluation, data = evaluate_trained(trained)
    matrix = evaluation.confusion_matrix(len(data.label_names))
    print(f"checkpoint: {trained.checkpoint}")
    print(f"data: {data.name}, {len(evaluation.labels):,} test images")
    print(result_line(evaluation))
    if (augmentation := hyperparameters.test_time_augmentation) != "none":
        print(
            f"these are averages over {augmentation}; without test-time augmentation, test_acc: "
            f"{evaluation.plain_accuracy:.4f}"
        )
    print("", *class_table(matrix, data.label_names), sep="\n")
    print()
    _save_figure("confusion_matrix.png", confusion_page(matrix, data.label_names), hyperparameters)


def _save_figure(name, page, hyperparameters):
    """Write a page to the PNG file `name` in run_dir, or in the current folder for a published
    network, which stays as it is."""
    run = RunFolder(hyperparameters)
    figure = pathlib.Path(name) if run.published else run.path / name
    try:
        with replacing(figure) as temporary:
            Image.fromarray(page).save(temporary, "PNG")
        print(f"figure: {figure}")
    except OSError as error:  # such as for a shared network that only others may write
        print(f"warning: cannot write {figure}: {first_line(error)}", file=sys.stderr)


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


def number_of_classes(text):
    """Return the value of --top. Raises argparse.ArgumentTypeError if it is not allowed."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def predict(network, hyperparameters, images, checkpoint="", json=False, top=3):
    """Print the `top` most probable classes of each image file, one file per line; with `json`, as
    a JSON object. `images` is a list of paths; a folder means all images in it. Return 1 if a file
    could not be read, 0 otherwise."""
    status = 0
    paths = [file for path in images for file in _files(path)]
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        for first in range(0, len(paths), BATCH):
            some = paths[first : first + BATCH]
            read = [_image_or_error(path, hyperparameters.image_size) for path in some]
            good = [image for image in read if isinstance(image, np.ndarray)]
            predictions = iter(trained.probabilities(good) if good else [])
            for path, image in zip(some, read, strict=True):
                if isinstance(image, ImageError):
                    status = 1
                    print(f"error: {image}", file=sys.stderr, flush=True)
                    record = {"error": str(image).removeprefix(f"{printable(path)}: ")}
                    line = ""
                else:
                    probabilities = next(predictions)
                    order = np.argsort(-probabilities, kind="stable")[:top]
                    pairs = [(trained.label_names[c], float(probabilities[c])) for c in order]
                    record = {"top": [{"label": n, "probability": round(p, 6)} for n, p in pairs]}
                    line = f"{printable(path)}: " + ", ".join(f"{n} {p:.4f}" for n, p in pairs)
                if json or line:
                    print(json_format.dumps({"image": path} | record) if json else line, flush=True)
    return status


def _files(path):
    """Return the paths of the images in a folder, sorted, or only `path` if there are none."""
    return (images_below(path) if pathlib.Path(path).is_dir() else []) or [path]


def _image_or_error(path, side):
    if pathlib.Path(path).is_dir():
        return ImageError(f"{path}: no images in this folder that Pillow can read")
    try:
        return read_image(path, side)
    except ImageError as error:
        return error


def excitation(network, hyperparameters, checkpoint=""):
    """Plot the mean gate of each channel of every SE block for each class of the test set, save the
    figure as excitation.png, and print the standard deviations over channels and over classes
    (SENet, arXiv 1709.01507, the section on the role of excitation)."""
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
        print(
            f"{block:{width}}{gates.shape[1]:>10,}{gates.mean():>11.4f}"
            f"{gates.mean(axis=0).std():>19.4f}{gates.std(axis=0).mean():>18.4f}"
        )
    page = drawn(draw_excitation(evaluation.gates, data.label_names))
    _save_figure("excitation.png", page, hyperparameters)
