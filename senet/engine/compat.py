"""TensorFlow's 1.x API and tflearn on current TensorFlow, without startup messages.

All compatibility code is here. Import `tf` from here: environment variables must be set before
TensorFlow is first imported.
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

# Hide the info and warning messages of TensorFlow's C++ code, such as the allocator's report before
# an out-of-memory error. With several hosts, hide errors too: every session logs some when it
# ends, and real ones also raise exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")

# TensorFlow turns oneDNN off on x86 CPUs without VNNI or similar instructions. Even with AVX2
# alone, oneDNN makes convolutions 1.1 to 3.3 times as fast. Without it, grouped convolutions have
# no CPU gradient.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Allocate GPU memory as needed, even in the sessions and contexts that TensorFlow opens itself for
# several devices.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# TensorFlow imports Keras 3, which imports Matplotlib: a fifth of the startup time, for unused
# packages. With this setting, TensorFlow looks for `tf_keras` instead, which is not installed.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# Lines to hide: printed before the log level applies, printed on every machine without a GPU, or
# repeated by the exception that follows.
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
    """Point closed standard streams (`2>&-`) to /dev/null, so that no other file gets their
    descriptors. Return a copy of standard error's descriptor."""
    for descriptor in range(3):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    return os.dup(2)


STANDARD_ERROR = _open_standard_streams()


def print_error(line):
    """Print a line to standard error, even inside `without_chatter`. Ignore write errors."""
    with contextlib.suppress(OSError):
        os.write(STANDARD_ERROR, f"{line}\n".encode(errors="backslashreplace"))


def discard_output(*descriptors):
    """Redirect the file descriptors to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def _buffer():
    """Return a temporary file, in memory if possible, since there may be no writable folder."""
    try:
        return os.fdopen(os.memfd_create("standard error"), "w+b")
    except (AttributeError, OSError):  # not Linux, or not allowed
        return tempfile.TemporaryFile()


@contextlib.contextmanager
def without_chatter(chatter=CHATTER):
    """Capture the standard error of the process, including that of C++ code, inside the block. At
    its end, print the captured lines that do not match `chatter`."""
    sys.stderr.flush()
    with _buffer() as buffer:
        standard_error = os.dup(2)
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            buffer.seek(0)
            for line in buffer.read().decode(errors="replace").splitlines():
                if not chatter.search(line):
                    print(line, file=sys.stderr)


@contextlib.contextmanager
def _ending_on_ctrl_c():
    """End the process at once on Ctrl-C inside the block, since a KeyboardInterrupt in a
    half-imported package may turn into an ImportError."""
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
    """Print an uncaught exception, unless it is a KeyboardInterrupt."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


# Matplotlib warns when it builds its font cache or has no folder for it.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
sys.excepthook = _without_traceback_of_ctrl_c
with _ending_on_ctrl_c(), without_chatter():
    import tensorflow.compat.v1 as tf


class _NotDeprecation(logging.Filter):
    """A filter that drops deprecation notes: TF1-style scripts use deprecated names on purpose."""

    def filter(self, record):
        return "Instructions for updating" not in record.getMessage()


tf.get_logger().addFilter(_NotDeprecation())
tf.disable_v2_behavior()


def _import_tflearn():
    """Import and return tflearn 0.5.0, which was written for TensorFlow 2.2 and Pillow 9. It needs
    two names that newer versions lack, prints "Scipy not supported!", and creates a variable
    `is_training` in the default graph."""
    import PIL.Image
    from tensorflow.python.util import nest

    nest.is_sequence = nest.is_nested  # pyright: ignore[reportAttributeAccessIssue]
    PIL.Image.ANTIALIAS = PIL.Image.LANCZOS  # pyright: ignore[reportAttributeAccessIssue]
    with (
        _ending_on_ctrl_c(),
        contextlib.redirect_stdout(io.StringIO()),
        tf.Graph().as_default(),
    ):
        import tflearn
    return tflearn


global_avg_pool = _import_tflearn().global_avg_pool
# tf.disable_v2_behavior(), which tflearn calls again, also turns off resource variables. Reads and
# writes of the older reference variables can race.
tf.enable_resource_variables()

__all__ = ["discard_output", "global_avg_pool", "print_error", "tf", "without_chatter"]
