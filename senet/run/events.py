"""Event files for TensorBoard, and their contents."""

# Protocol buffers define their names at run time.
# pyright: reportAttributeAccessIssue=false

import contextlib
import dataclasses
import io
import sys
import time

import numpy as np
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar

from senet.engine.compat import tf
from senet.run.folder import writing
from senet.run.pages import confusion_page, contact_sheet, mistakes_page

MISTAKES_SHOWN = 30  # the most confident ones
AUGMENTED_SHOWN = 64

# The page "Custom Scalars": {group: {chart: tags}}
CHARTS = {
    "loss": {"cross-entropy": ["train_loss", "test_loss"], "L2": ["l2_loss"]},
    "accuracy": {"accuracy": ["train_acc", "test_acc"]},
    "optimizer": {"learning rate": ["learning_rate"], "gradient norm": ["gradient_norm"]},
    "speed": {"images per second": ["images_per_second"]},
}


class EventFile:
    """An event file for TensorBoard in `folder`. `tf.summary.FileWriter` writes in the background;
    this class's `write` returns only once the event is in the file, and raises Failure if it cannot
    be written."""

    def __init__(self, folder):
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"

    def __enter__(self):
        with writing(self.path):
            self._open()
        return self

    def _open(self):
        self.path.parent.mkdir(exist_ok=True)
        self.writer = tf.io.TFRecordWriter(str(self.path))
        self.write(file_version="brain.Event:2")

    def write(self, **event):
        """Append a `tf.Event` with these fields. If the file was deleted, start a new one."""
        with writing(self.path):
            if not self.path.exists():
                self._open()
                print(f"warning: {self.path} was deleted; starting a new one", file=sys.stderr)
            self.writer.write(tf.Event(wall_time=time.time(), **event).SerializeToString())
            self.writer.flush()

    def __exit__(self, *_):
        # Everything has already been written; an error here would only hide an earlier one.
        with contextlib.suppress(tf.errors.OpError, OSError):
            self.writer.close()


def chart_layout():
    """Return the tf.Summary that lays out TensorBoard's page "Custom Scalars" as CHARTS says."""
    categories = [
        layout_pb2.Category(
            title=group,
            chart=[
                layout_pb2.Chart(
                    title=chart,
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]),
                )
                for chart, tags in charts.items()
            ],
        )
        for group, charts in CHARTS.items()
    ]
    return custom_scalar.pb(layout_pb2.Layout(category=categories))


def hyperparameter_page(network, hyperparameters):
    """Return the tf.Summary for the tab "Text": a table of the hyperparameters, in Markdown."""
    fields = dataclasses.asdict(hyperparameters).items()
    rows = "".join(f"\n| {name} | {value} |" for name, value in fields)
    markdown = f"**{network.__name__}**\n\n| hyperparameter | value |\n|---|---|{rows}"
    summary, metadata = tf.Summary(), tf.SummaryMetadata()
    metadata.plugin_data.plugin_name = "text"
    tensor = tf.make_tensor_proto(markdown, tf.string)
    summary.value.add(tag="hyperparameters", metadata=metadata, tensor=tensor)
    return summary


def epoch_summary(scalars, images, evaluation, data):
    """Return the tf.Summary of an epoch: its `scalars`, {tag: number}; some augmented training
    images, uint8 [N, side, side, 3]; and the gates, confusion matrix and misclassified images of
    `evaluation`, the Evaluation of the test set of `data`."""
    summary, names = tf.Summary(), data.label_names
    for tag, value in scalars.items():
        summary.value.add(tag=tag, simple_value=value)
    for layer, gates in evaluation.gates.items():
        summary.value.add(tag=f"gates/{layer}", histo=_histogram(gates))
    matrix = evaluation.confusion_matrix(len(names))
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    order = np.argsort(-evaluation.probability[wrong], kind="stable")
    most_confident = wrong[order[:MISTAKES_SHOWN]]
    pages = {
        "training_images/augmented": contact_sheet(images[:AUGMENTED_SHOWN]),
        "test_images/confusion_matrix": confusion_page(matrix, names),
        "test_images/misclassified": mistakes_page(
            data.test.images[most_confident],
            evaluation.labels[most_confident],
            evaluation.predicted[most_confident],
            evaluation.probability[most_confident],
            names,
        ),
    }
    for tag, page in pages.items():
        summary.value.add(tag=tag, image=_png(page))
    return summary


def _png(image):
    """Return an image, uint8 [height, width, 3], as a tf.Summary.Image in PNG format."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    height, width, _ = image.shape
    return tf.Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
    )


def _histogram(values):
    """Return the tf.HistogramProto of an array of numbers, with 50 bins from 0 to 1, or further if
    there are values outside."""
    finite = values[np.isfinite(values)]
    limits = finite.min(initial=0), finite.max(initial=1)
    counts, edges = np.histogram(values, bins=50, range=limits)
    return tf.HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
