"""The console output of a run."""

import pathlib
import shlex
import sys

from tqdm import tqdm

from senet.engine.compat import discard_output, tf
from senet.engine.devices import describe_devices, describe_precision
from senet.engine.text import duration

MINUTE = 60  # seconds


def say(text):
    """Print a line. If it cannot be written, discard this and all later output instead of stopping
    the training."""
    try:
        print(text, flush=True)
    except OSError:
        discard_output(1)


def start_lines(network, data, strategy, hyperparameters, state):
    """Return the startup lines, one str. `state` says whether the run is new or resumes."""
    parameters = sum(v.shape.num_elements() for v in tf.trainable_variables())
    # TensorBoard names a run by its path below --logdir.
    runs = pathlib.Path(hyperparameters.run_dir).parent
    return (
        f"network: {network.__name__}, {parameters:,} trainable parameters\n"
        f"data: {data.name}, {len(data.train.labels):,} training and "
        f"{len(data.tested.labels):,} {'validation' if data.validation else 'test'} images in "
        f"{len(data.label_names)} classes\n"
        f"device: {describe_devices(strategy)}, "
        f"{describe_precision(hyperparameters.mixed_precision)}\n"
        f"run: {hyperparameters.run_dir} ({state})\n"
        f"monitor: tensorboard --logdir {shlex.quote(str(runs))}"
    )


class ProgressBar(tqdm):
    """A progress bar from `done` to `images` images, with the time left for them and for `later`
    images of the same run. On a terminal, it is redrawn on one line; otherwise, it becomes one line
    a minute, so that a log shows progress."""

    def __init__(self, text, images, done=0, later=0, *, visible=True):
        terminal = sys.stderr.isatty()
        self.later = later
        left = "epoch {remaining}, run {run_left} left" if later else "{remaining} left"
        super().__init__(
            total=images,
            initial=done,
            desc=text,
            unit=" images",
            leave=False,
            disable=not visible,
            file=sys.stderr if terminal else _Lines(),
            mininterval=0.1 if terminal else MINUTE,
            maxinterval=10 if terminal else MINUTE,
            delay=0 if terminal else MINUTE,
            dynamic_ncols=terminal,
            bar_format=f"{{desc}}: {{percentage:.0f}} %, {{rate_fmt}}, {left}{{postfix}}"
            + " |{bar}|" * terminal,
        )

    @property
    def format_dict(self):
        """The values for `bar_format`."""
        values = dict(super().format_dict)
        rate = values["rate"] or (self.n - self.initial) / max(values["elapsed"], 1e-9)
        seconds = (self.total - self.n + self.later) / rate if rate else None
        return values | {"run_left": "?" if seconds is None else duration(seconds)}


class _Lines:
    """A file that writes each redrawn bar to standard error as a line."""

    def write(self, text):
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()
