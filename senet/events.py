"""What TensorBoard shows of a run."""

import contextlib
import io
import time

import numpy as np
from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar

from senet.compat import tf
from senet.errors import Failure, first_line

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


def add_text(summary, tag, markdown):
    """A page of the tab "Text"."""
    metadata = tf.SummaryMetadata()
    metadata.plugin_data.plugin_name = "text"
    value = tf.make_tensor_proto(markdown, tf.string)
    summary.value.add(tag=tag, metadata=metadata, tensor=value)


def add_picture(summary, tag, image):
    """A picture, uint8 [height, width, 3], of the tab "Images"."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    height, width, _ = image.shape
    summary.value.add(
        tag=tag,
        image=tf.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
        ),
    )


def add_histogram(summary, tag, values):
    """The distribution of `values`, an array of numbers from 0 to 1."""
    counts, edges = np.histogram(values, bins=50, range=(0, 1))
    summary.value.add(
        tag=tag,
        histo=tf.HistogramProto(
            min=values.min(),
            max=values.max(),
            num=values.size,
            sum=values.sum(),
            sum_squares=np.square(values).sum(),
            bucket_limit=edges[1:],
            bucket=counts,
        ),
    )
