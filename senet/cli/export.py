"""The command `export`, and the functions that write into a new folder."""

import contextlib
import os
import pathlib
import shlex
import tempfile

from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.text import first_line
from senet.run.trained import TrainedNetwork


def new_folder(text):
    """Return `text`, the argument FOLDER, as the path of a new folder. Raises Failure if it
    exists."""
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
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as parent:
            temporary = pathlib.Path(parent) / "model"
            yield temporary
            temporary.rename(folder)
    except (tf.errors.OpError, OSError) as error:
        raise Failure(
            f"cannot write {folder}: {first_line(error)}; fix the cause, or use another folder"
        ) from None


def export(network, hyperparameters, folder, checkpoint=""):
    """Write a SavedModel into a new `folder`. Its signature `serving_default` maps `images`, uint8
    [batch, side, side, 3], to all classes, the most probable first: `labels`, string [batch,
    classes], and `probabilities`, float32 [batch, classes]. The signature `encoded` does so for
    `image_bytes`, string [batch], the contents of JPEG and PNG files."""
    target = new_folder(folder)
    side = hyperparameters.image_size
    with TrainedNetwork(network, hyperparameters, checkpoint) as trained:
        names = trained.label_names
        predictions = trained.outputs["probabilities"]
        # Constants instead of variables, and only the operations that predictions need.
        graph = tf.graph_util.convert_variables_to_constants(
            trained.session, trained.graph.as_graph_def(), [predictions.op.name]
        )
    with temporary_folder(target) as temporary, tf.Graph().as_default(), tf.Session() as session:
        encoded = tf.placeholder(tf.string, [None], "image_bytes")
        decoded = tf.map_fn(lambda data: decode_image(data, side), encoded, tf.uint8)
        images = tf.placeholder_with_default(decoded, [None, side, side, 3], "images")
        # TensorFlow Serving does not compare shapes.
        replaced = {trained.inputs.images.name: tf.ensure_shape(images, [None, side, side, 3])}
        (probabilities,) = tf.import_graph_def(graph, replaced, [predictions.name], name="network")
        probabilities, order = tf.math.top_k(probabilities, k=len(names))
        outputs = {"probabilities": probabilities, "labels": tf.gather(tf.constant(names), order)}
        signatures = {
            name: tf.saved_model.predict_signature_def(inputs, outputs)
            for name, inputs in (
                (tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY, {"images": images}),
                ("encoded", {"image_bytes": encoded}),
            )
        }
        builder = tf.saved_model.Builder(str(temporary))
        with without_chatter():
            # The machine that loads the model may have other devices.
            builder.add_meta_graph_and_variables(
                session,
                [tf.saved_model.tag_constants.SERVING],
                signatures,
                clear_devices=True,
                strip_default_attrs=True,
            )
            builder.save()
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    print(f"checkpoint: {trained.checkpoint}")
    print(
        f"exported: {folder} ({size / 1e6:.1f} MB); classifies images of {side}x{side} pixels into "
        f"{len(names)} classes"
    )
    print(f"next: saved_model_cli show --all --dir {shlex.quote(folder)}")


def decode_image(data, side):
    """Return the image in the contents of a JPEG or PNG file, uint8 [side, side, 3]. The pixels are
    those of `read_image`, except that the image is not rotated according to EXIF."""
    is_jpeg = tf.equal(tf.substr(data, 0, 2), b"\xff\xd8")
    image = tf.cond(is_jpeg, lambda: _decode_jpeg(data, 2 * side), lambda: _decode_png(data))
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    scale = side / tf.minimum(height, width)
    # Like Pillow, resize the rows and round to whole numbers before resizing the columns.
    image = _resize(image, [tf.shape(image)[0], side], [1.0, scale], [0.0, side - scale * width])
    image = _resize(image, [side, side], [scale, 1.0], [side - scale * height, 0.0])
    return tf.cast(image, tf.uint8)


def _decode_jpeg(data, least):
    """Return float32 [height, width, 3]. The image is decoded at a fraction of its size if it then
    still has at least `least` pixels a side."""

    def decode(ratio):
        return lambda: tf.image.decode_jpeg(data, 3, ratio, dct_method="INTEGER_ACCURATE")

    times = tf.reduce_min(tf.image.extract_jpeg_shape(data)[:2]) // least
    image = tf.case([(times >= ratio, decode(ratio)) for ratio in (8, 4, 2)], default=decode(1))
    return tf.cast(image, tf.float32)


def _decode_png(data):
    """Return float32 [height, width, 3], composited onto white."""
    image = tf.image.decode_png(data, channels=4)
    with tf.control_dependencies([image]):  # first of all, check that it is a PNG image
        depth = tf.cast(tf.decode_raw(tf.substr(data, 24, 1), tf.uint8), tf.int32)
    too_deep = tf.assert_less(depth, 9, message="the image has more than 8 bits per channel")
    with tf.control_dependencies([too_deep]):
        colour, alpha = tf.split(tf.cast(image, tf.float32), [3, 1], axis=2)
    # Without transparency, TensorFlow gives images of fewer bits per channel an alpha below 255.
    opaque = tf.reduce_all(tf.equal(alpha, tf.cast(2**depth - 1, tf.float32)))
    alpha = tf.cond(opaque, lambda: tf.fill(tf.shape(alpha), 255.0), lambda: alpha)
    return tf.floor(255.5 + (colour - 255) * alpha / 255)


def _resize(image, size, scale, excess):
    """Return `image` resized with Pillow's bicubic filter, and half of `excess` moved in."""
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=scale,
        translation=tf.stack(excess) / 2,
        kernel_type="keyscubic",
    )
    return tf.clip_by_value(tf.floor(resized[0] + 0.5), 0, 255)
