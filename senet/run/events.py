"""What TensorBoard shows of a run."""

import contextlib
import dataclasses
import io
import time

import numpy as np
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar

from senet.compat import tf
from senet.errors import Failure, first_line
from senet.run.pages import confusion_page, contact_sheet, mistakes_page

MISTAKES_SHOWN = 30  # those of whose wrong class the network is surest

# The page "Custom Scalars": {group: {chart: tags}}
CHARTS = {
    "loss": {"cross-entropy": ["train_loss", "test_loss"], "L2": ["l2_loss"]},
    "accuracy": {"accuracy": ["train_accuracy", "test_accuracy"]},
    "optimizer": {"learning rate": ["learning_rate"], "gradient norm": ["gradient_norm"]},
    "speed": {"images per second": ["images_per_second"]},
}


@contextlib.contextmanager
def writing(path):
    """Make a Failure of what goes wrong in writing the file `path` of a run."""
    try:
        yield
    except (tf.errors.OpError, OSError, RuntimeError, IndexError) as error:
        raise Failure(
            f"cannot write {path}: {first_line(error)}; "
            f"once that is mended, the same command goes on from the last checkpoint"
        ) from None


class EventFile:
    """A file of TensorBoard's in `folder`. `tf.summary.FileWriter` writes from a thread of its own
    and after a while; this one has written when `write` returns, or raises Failure."""

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
        # All is written; closing what could not be would only hide the first error.
        with contextlib.suppress(tf.errors.OpError, OSError):
            self.writer.close()


def graph_to_show(graph):
    """The tf.GraphDef of a graph without what saves and restores: that hangs on every variable,
    and would be the largest thing on the page."""
    shown = tf.GraphDef()
    nodes = graph.as_graph_def(add_shapes=True).node
    shown.node.extend(node for node in nodes if not node.name.startswith("save/"))
    return shown


def chart_layout():
    """The tf.Summary that arranges the scalars as CHARTS says."""
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
    """The tf.Summary of the tab "Text": a table of the hyperparameters, in Markdown."""
    fields = dataclasses.asdict(hyperparameters).items()
    rows = "".join(f"\n| {name} | {value} |" for name, value in fields)
    markdown = f"**{network}**\n\n| hyperparameter | value |\n|---|---|{rows}"
    summary, metadata = tf.Summary(), tf.SummaryMetadata()
    metadata.plugin_data.plugin_name = "text"
    tensor = tf.make_tensor_proto(markdown, tf.string)
    summary.value.add(tag="hyperparameters", metadata=metadata, tensor=tensor)
    return summary


def epoch_summary(scalars, augmented, tested, data):
    """The tf.Summary of an epoch: its `scalars`, {tag: number}; some pictures, uint8 [N, side,
    side, 3], as `augmented`; and what `tested`, a `senet.evaluation.Evaluation` of the test set of
    `data`, says of its classes and its gates."""
    summary, names = tf.Summary(), data.label_names
    for tag, value in scalars.items():
        summary.value.add(tag=tag, simple_value=value)
    for block, gates in tested.gates.items():
        summary.value.add(tag=f"gates/{block}", histo=_histogram(gates))
    wrong = np.flatnonzero(tested.predicted != tested.labels)
    surest = wrong[np.argsort(-tested.probability[wrong], kind="stable")][:MISTAKES_SHOWN]
    pages = {
        "training_pictures/augmented": contact_sheet(augmented),
        "test_pictures/confusion_matrix": confusion_page(
            tested.confusion_matrix(len(names)), names
        ),
        "test_pictures/misclassified": mistakes_page(
            data.test.images[surest],
            tested.labels[surest],
            tested.predicted[surest],
            tested.probability[surest],
            names,
        ),
    }
    for tag, page in pages.items():
        summary.value.add(tag=tag, image=_png(page))
    return summary


def _png(image):
    """A picture, uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    height, width, _ = image.shape
    return tf.Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
    )


def _histogram(values):
    """The distribution of an array of numbers from 0 to 1, in fifty steps."""
    counts, edges = np.histogram(values, bins=50, range=(0, 1))
    return tf.HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
