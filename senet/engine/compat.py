"""TensorFlow's 1.x API on current TensorFlow, without startup messages.

All compatibility code is here. Import `tf` from here: environment variables must be set before
TensorFlow is first imported.
"""

import contextlib
import logging
import os
import signal
import sys

# Hide the info and warning messages of TensorFlow's C++ code. With several hosts, hide errors too:
# every session logs some when it ends, and real ones also raise exceptions.
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

# Point closed standard streams (`2>&-`) to /dev/null, so that no other file gets their descriptors.
while (lowest_free := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
os.close(lowest_free)
sys.stdout = sys.stdout or os.fdopen(1, "w")
sys.stderr = sys.stderr or os.fdopen(2, "w")
STANDARD_ERROR = os.dup(2)


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


@contextlib.contextmanager
def without_chatter():
    """Discard what is written to standard error inside the block, also by C++ code that ignores the
    log level. TF_CPP_MIN_LOG_LEVEL=0 shows it."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    discard_output(*[2] * (os.environ.get("TF_CPP_MIN_LOG_LEVEL") not in ("0", "1")))
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _change_ctrl_c(before, after):
    with contextlib.suppress(ValueError):  # only the main thread can
        if signal.getsignal(signal.SIGINT) is before:
            signal.signal(signal.SIGINT, after)


# Print no traceback on Ctrl-C. During imports, end the process: in a half-imported package, a
# KeyboardInterrupt may turn into an ImportError.
sys.excepthook = lambda kind, *error: kind is KeyboardInterrupt or sys.__excepthook__(kind, *error)
_change_ctrl_c(signal.default_int_handler, signal.SIG_DFL)
# Matplotlib warns when it builds its font cache or has no folder for it.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
# The import takes seconds; on a terminal, the output that follows replaces this line.
if sys.stderr.isatty():
    print("loading TensorFlow ...", end="\r", file=sys.stderr, flush=True)
with without_chatter():
    import tensorflow.compat.v1 as tf
_change_ctrl_c(signal.SIG_DFL, signal.default_int_handler)
if sys.stderr.isatty():
    print("\x1b[K", end="", file=sys.stderr, flush=True)

# TF1-style scripts use deprecated names on purpose.
tf.get_logger().addFilter(lambda record: "Instructions for updating" not in record.getMessage())
tf.disable_v2_behavior()
# Reads and writes of the older reference variables can race.
tf.enable_resource_variables()

__all__ = ["discard_output", "print_error", "tf", "without_chatter"]
