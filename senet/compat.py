"""TensorFlow's 1.x API and tflearn on today's TensorFlow, without their start-up chatter.

Everything that old code needs in order to run on new packages stands here and nowhere else.
Import `tf` from here: the environment has to be set before TensorFlow is first imported.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile

# Information lines of TensorFlow's C++ part; warnings and errors still get through. Not with
# several hosts, where it warns of every session that ends, and each error is raised as well.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "1")

# Written before TensorFlow's log level takes effect, said on every machine without a GPU, or said
# once more by the exception that follows.
CHATTER = re.compile(
    r"^I0000 |^WARNING: All log messages before absl::InitializeLog|^To enable the following"
    r"|failed call to cuInit|Unable to register cu\w+ factory|OP_REQUIRES failed"
    r"|Local rendezvous is aborting|^\s*\[\[|^\s*$"
)


@contextlib.contextmanager
def without_chatter(chatter=CHATTER):
    """Hold back what the process writes on standard error inside the block, C++ code included,
    and let all but the lines of `chatter` through at its end."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held_back:
        standard_error = os.dup(2)
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            held_back.seek(0)
            for line in held_back.read().decode(errors="replace").splitlines():
                if not chatter.search(line):
                    print(line, file=sys.stderr)


with without_chatter():
    import tensorflow.compat.v1 as tf


class _NotDeprecation(logging.Filter):
    """A TF1-style script uses deprecated names by intention; all other warnings matter."""

    def filter(self, record):
        return "Instructions for updating" not in record.getMessage()


tf.get_logger().addFilter(_NotDeprecation())
tf.disable_v2_behavior()


def _import_tflearn():
    """tflearn 0.5.0 was written for TensorFlow 2.2 and Pillow 9. It needs two names that newer
    packages dropped, prints "Scipy not supported!", and puts an `is_training` variable into
    whatever graph is the default one while it is imported."""
    import PIL.Image
    from tensorflow.python.util import nest

    nest.is_sequence = nest.is_nested
    PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
    with contextlib.redirect_stdout(io.StringIO()), tf.Graph().as_default():
        import tflearn
    return tflearn


global_avg_pool = _import_tflearn().global_avg_pool
# TF1 behaviour, which tflearn's import asks for once more, would include the old racy variables.
tf.enable_resource_variables()

__all__ = ["global_avg_pool", "tf", "without_chatter"]
