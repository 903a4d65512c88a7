"""The layer of tflearn 0.5.0 that the networks use.

tflearn was written for TensorFlow 2.2 and Pillow 9: it needs two names that newer versions lack,
prints "Scipy not supported!", and creates a variable `is_training` in the default graph.
"""

import contextlib
import io

import PIL.Image
from tensorflow.python.util import nest

from senet.engine.compat import tf

nest.is_sequence = nest.is_nested  # pyright: ignore[reportAttributeAccessIssue]
PIL.Image.ANTIALIAS = PIL.Image.LANCZOS  # pyright: ignore[reportAttributeAccessIssue]
with contextlib.redirect_stdout(io.StringIO()), tf.Graph().as_default():
    import tflearn
global_avg_pool = tflearn.global_avg_pool
# tflearn calls tf.disable_v2_behavior(), which turns off resource variables. Reads and writes of
# the older reference variables can race.
tf.enable_resource_variables()

__all__ = ["global_avg_pool"]
