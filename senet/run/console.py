"""The console output of a run."""

import shlex
import time

from tqdm import tqdm

from senet.compat import discard_output, tf
from senet.devices import chosen_gpus, describe_devices, describe_precision


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
    return (
        f"network: {network.__name__}, {parameters:,} trainable parameters\n"
        f"data: {data.name}, {len(data.train.labels):,} training and "
        f"{len(data.test.labels):,} test images in {len(data.label_names)} classes\n"
        f"device: {describe_devices(strategy)}, "
        f"{describe_precision(hyperparameters.mixed_precision)}\n"
        f"run: {hyperparameters.run_dir} ({state})\n"
        f"monitor: tensorboard --logdir {shlex.quote(hyperparameters.run_dir)}"
    )


def long_run_note(test, batch, images, shorter, strategy):
    """Return a note if training on `images` images would take more than a day without a GPU, ""
    otherwise. `test` is a function that evaluates `batch`; `shorter` is the command of a shorter
    run."""
    if chosen_gpus() or strategy.num_replicas_in_sync > 1:
        return ""
    test(batch)  # includes set-up
    started = time.perf_counter()
    test(batch)
    # The backward pass takes twice as long as the forward pass.
    seconds_per_image = 3 * (time.perf_counter() - started) / len(batch.labels)
    days = seconds_per_image * images / (24 * 60 * 60)
    if days <= 1:
        return ""
    duration = f"about {float(f'{days:.1g}'):,.0f} days" if days > 2 else "over a day"
    return f"note: without a GPU, this run takes {duration}; start with a shorter one:\n  {shorter}"


def progress_bar(text, images, done, visible):
    """Return a progress bar from `done` to `images` images, shown only on a terminal."""
    return tqdm(
        total=images,
        initial=done,
        desc=text,
        unit=" images",
        leave=False,
        disable=None if visible else True,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}",
    )
