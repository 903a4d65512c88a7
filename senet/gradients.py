"""Keeping gradients in proportion to what they change."""

from senet.compat import tf


def clip_gradients(gradients_and_variables, threshold):
    """Scale down each gradient whose size exceeds `threshold` times its variable's; 0 leaves all as
    they are. Takes and returns what an optimizer's `compute_gradients` does.

    This is adaptive gradient clipping (arXiv 2102.06171, section 4), a whole variable at a time.
    Size is the root of the mean square. Gains and offsets count as of size 1 at least, the scale
    that batch norm gives them: offsets start at 0, and could never leave it otherwise.
    """
    if not threshold:
        return gradients_and_variables
    clipped = []
    with tf.name_scope("clip_gradients"):
        for gradient, variable in gradients_and_variables:
            least = 1.0 if variable.shape.ndims == 1 else 1e-3
            size = tf.maximum(_size(variable), least)
            # A gradient of zeros stays one.
            scale = tf.minimum(1.0, threshold * size / tf.maximum(_size(gradient), 1e-12))
            clipped.append((gradient * scale, variable))
    return clipped


def _size(tensor):
    return tf.sqrt(tf.reduce_mean(tf.square(tensor)))
