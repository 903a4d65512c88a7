"""TensorFlow's 1.x API and tflearn on today's TensorFlow, without their start-up chatter.

Everything that old code needs to run on new packages is here and nowhere else. Import `tf` from
here: the environment has to be set before TensorFlow is first imported.
"""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import tempfile
import threading

# Hide the information and the warnings of TensorFlow's C++ part: they list the allocator's memory
# before an error says that there is too little. With several hosts hide its errors too: it reports
# every session that ends, and each error is raised as well.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")

# TensorFlow turns oneDNN off on x86 CPUs without AVX-512 VNNI. On AVX2 alone it makes convolutions
# 1.1 to 3.3 times as fast, and without it grouped ones have no gradient on the CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# TensorFlow imports Keras 3, and Keras Matplotlib, which takes a fifth of the time; nothing here
# uses them. With this, TensorFlow looks for `tf_keras` instead, which is not installed.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# Printed before TensorFlow's log level takes effect, on every machine without a GPU, or repeated by
# the exception that follows.
CHATTER = re.compile(
    r"^I0000 |^WARNING: All log messages before absl::InitializeLog|^To enable the following"
    r"|failed call to cuInit|Unable to register cu\w+ factory|OP_REQUIRES failed"
    r"|Local rendezvous is aborting|^\s*\[\[|^\s*$"
)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_standard_streams():
    """Open what was closed (`2>&-`) as /dev/null, so that no other file takes its place. Return a
    copy of standard error."""
    for descriptor in range(3):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    return os.dup(2)


STANDARD_ERROR = _open_standard_streams()


def print_error(line):
    """Print a line on standard error, even inside `without_chatter` and if nobody can read it."""
    with contextlib.suppress(OSError):
        os.write(STANDARD_ERROR, f"{line}\n".encode(errors="backslashreplace"))


def discard_output(*descriptors):
    """Send what is written to the file descriptors nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def without_chatter(chatter=CHATTER):
    """Hold back what the process, C++ code included, writes on standard error inside the block, and
    print all but the lines that match `chatter` at its end."""
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


@contextlib.contextmanager
def _ending_on_ctrl_c():
    """End the process at once on Ctrl-C inside the block. As an exception it would pass through
    packages that are half imported, and come out of some of them as an ImportError."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _without_traceback_of_ctrl_c(kind, error, trace):
    """Print an exception that ends the program, unless it is Ctrl-C between two imports."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


# Matplotlib warns that it builds a cache of fonts, or that it has no folder for it.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
sys.excepthook = _without_traceback_of_ctrl_c
with _ending_on_ctrl_c(), without_chatter():
    import tensorflow.compat.v1 as tf


class _NotDeprecation(logging.Filter):
    """Drop deprecation notes: a TF1-style script uses deprecated names on purpose."""

    def filter(self, record):
        return "Instructions for updating" not in record.getMessage()


tf.get_logger().addFilter(_NotDeprecation())
tf.disable_v2_behavior()


def _import_tflearn():
    """Import tflearn 0.5.0, written for TensorFlow 2.2 and Pillow 9. It needs two names that newer
    packages dropped, prints "Scipy not supported!", and makes an `is_training` variable in whatever
    graph is the default one."""
    import PIL.Image
    from tensorflow.python.util import nest

    nest.is_sequence = nest.is_nested
    PIL.Image.ANTIALIAS = PIL.Image.LANCZOS
    with (
        _ending_on_ctrl_c(),
        contextlib.redirect_stdout(io.StringIO()),
        tf.Graph().as_default(),
    ):
        import tflearn
    return tflearn


global_avg_pool = _import_tflearn().global_avg_pool
# TF1 behaviour, which tflearn's import asks for once more, would include the old racy variables.
tf.enable_resource_variables()

__all__ = ["discard_output", "global_avg_pool", "print_error", "tf", "without_chatter"]
