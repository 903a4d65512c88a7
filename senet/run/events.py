"""Event files for TensorBoard, and their contents.

The step of every event is the number of training steps, as in the names of checkpoints. A resumed
run can thus discard the events of all steps that it repeats, whatever their tags."""

# Protocol buffers define their names at run time.
# pyright: reportAttributeAccessIssue=false

import contextlib
import io
import time

import numpy as np
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from senet.engine.compat import tf
from senet.run.folder import writing
from senet.run.pages import confusion_page, contact_sheet, mistakes_page

MISTAKES_SHOWN = 24  # the most confident ones
AUGMENTED_SHOWN = 64

# {scalar: its tag}; see also `tag_of`
TAGS = {
    "l2_loss": "loss/l2",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "loss": "progress/loss",  # means over the epoch so far, as in the progress bar
    "acc": "progress/accuracy",
    "images_per_second": "speed/images_per_second",
}
GATES = "squeeze_excitation"  # TensorBoard sorts groups by name: after all scalars

# The page "Custom Scalars": {group: {chart: tags}}
CHARTS = {
    "accuracy": {"accuracy": ["accuracy/train", "accuracy/val", "accuracy/test"]},
    "loss": {"cross-entropy": ["loss/train", "loss/val", "loss/test"], "L2": ["loss/l2"]},
    "within an epoch": {"accuracy": ["progress/accuracy"], "cross-entropy": ["progress/loss"]},
    "optimizer": {
        "learning rate": ["optimizer/learning_rate"],
        "gradient norm": ["optimizer/gradient_norm"],
    },
    "speed": {"images per second": ["speed/images_per_second"]},
}


class EventFile:
    """An event file for TensorBoard in `folder`. `tf.summary.FileWriter` writes in the background;
    this class's `write` returns only once the event is in the file, and raises Failure if it cannot
    be written."""

    def __init__(self, folder):
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"

    def __enter__(self):
        with writing(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self.writer = tf.io.TFRecordWriter(str(self.path))
        self.write(file_version="brain.Event:2")
        return self

    def write(self, **event):
        """Append a `tf.Event` with these fields."""
        with writing(self.path):
            self.writer.write(tf.Event(wall_time=time.time(), **event).SerializeToString())
            self.writer.flush()

    def __exit__(self, *_):
        # Everything has already been written; an error here would only hide an earlier one.
        with contextlib.suppress(tf.errors.OpError, OSError):
            self.writer.close()


def start_summary(network, hyperparameters):
    """Return the tf.Summary of a run's start: the charts of the tab "Custom Scalars", the fields
    that the tab "HParams" compares, and a table of all fields for the tab "Text"."""
    layout = layout_pb2.Layout()
    for group, charts in CHARTS.items():
        category = layout.category.add(title=group)
        for chart, tags in charts.items():
            category.chart.add(title=chart).multiline.tag.extend(f"^{tag}$" for tag in tags)
    script = {"network": network.__name__, "dataset": hyperparameters.dataset}
    fields = script | hyperparameters.as_dict()
    # Without the settings of the machine, which may change when a run is resumed
    compared = script | hyperparameters.compared()
    rows = "".join(f"\n| {name} | {value} |" for name, value in fields.items())
    return _merged(
        custom_scalar.pb(layout),
        hparams_pb(compared, trial_id=hyperparameters.run_dir),
        text_pb("hyperparameters", f"| hyperparameter | value |\n|---|---|{rows}"),
    )


def graph_for_tensorboard(output):
    """Return the serialized GraphDef of what computes `output`, a tensor of the network in the name
    scope "test". Without this scope, the operations are in the boxes of their variables."""
    graph = output.graph.as_graph_def(add_shapes=True)
    graph = tf.graph_util.extract_sub_graph(graph, [output.op.name])
    for node in graph.node:
        node.name = node.name.removeprefix("test/")
        node.input[:] = [name.replace("^test/", "^").removeprefix("test/") for name in node.input]
    return graph.SerializeToString()


def tag_of(name):
    """Return the tag of a scalar: that of TAGS, or METRIC/train for train_METRIC and likewise for
    val and test, or a name with a slash itself, or scalars/NAME."""
    split, _, metric = name.partition("_")
    metric = {"acc": "accuracy"}.get(metric, metric)
    group = f"{metric}/{split}" if split in ("train", "val", "test") else f"scalars/{name}"
    return TAGS.get(name, name if "/" in name else group)


def scalar_summary(scalars):
    """Return the tf.Summary of `scalars`, {name: number}."""
    summary = tf.Summary()
    for name, value in scalars.items():
        summary.value.add(tag=tag_of(name), simple_value=value)
    return summary


def epoch_summary(scalars, images):
    """Return the tf.Summary of an epoch: its `scalars`, {name: number}, and some augmented training
    images, uint8 [N, side, side, 3]."""
    summary = scalar_summary(scalars)
    _add_page(summary, "augmented", contact_sheet(images[:AUGMENTED_SHOWN]))
    return summary


def test_summary(scalars, evaluation, data):
    """Return the tf.Summary of a test: its `scalars`, {name: number}, and the gates, confusion
    matrix and misclassified images of `evaluation`, the Evaluation of the test set of `data`."""
    gates = [
        histogram_pb(f"{GATES}/{layer}", gates[np.isfinite(gates)])
        for layer, gates in evaluation.gates.items()
    ]
    summary = _merged(scalar_summary(scalars), *gates)
    names = data.label_names
    matrix = evaluation.confusion_matrix(len(names))
    _add_page(summary, "confusion_matrix", confusion_page(matrix, names))
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    order = np.argsort(-evaluation.probability[wrong], kind="stable")
    shown = wrong[order[:MISTAKES_SHOWN]]
    columns = evaluation.labels, evaluation.predicted, evaluation.probability
    mistakes = data.tested.images[shown], *(column[shown] for column in columns)
    _add_page(summary, "misclassified", mistakes_page(*mistakes, label_names=names))
    return summary


def _merged(*parts):
    """Return one tf.Summary with the values of `parts`, some of which are TensorBoard's own copies
    of the class."""
    return tf.Summary.FromString(b"".join(part.SerializeToString() for part in parts))


def _add_page(summary, name, page):
    """Add an image, uint8 [height, width, 3], in PNG format."""
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG", compress_level=1)
    height, width, _ = page.shape
    image = tf.Summary.Image(height=height, width=width, colorspace=3)
    image.encoded_image_string = file.getvalue()
    summary.value.add(tag=f"samples/{name}", image=image)
