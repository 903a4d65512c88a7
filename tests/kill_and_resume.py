"""Stop training processes at random moments, resume, and compare with an uninterrupted run.

    python tests/kill_and_resume.py FOLDER --kills=100

The processes receive SIGKILL, SIGTERM and SIGHUP in turn; every second signal is sent during a
save. Once a run finishes, the rows of its logs.txt and the bits of all its variables must be those
of the uninterrupted run; then the next run starts. Each step uses micro-batches.
"""

import argparse
import collections
import pathlib
import random
import signal
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from forked import run_script, start_script
from tiny_run import STEPS, command

from senet.engine.compat import tf

EPOCHS = 2
# Save after every step, so that any moment is close to a save.
OPTIONS = (
    *(f"--total_epochs={EPOCHS}", "--micro_batch_size=8", "--save_minutes=1e-9"),
    *("--ema=0.9", "--cutout=0.25", "--clip_norm=1"),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def finish(folder, name):
    """Train the run `name` to its last epoch."""
    status, _, errors = run_script(*command(folder, name, *OPTIONS))
    assert status == 0, errors


def result(run_dir):
    """Return the rows of a finished run, and its variables as {name: bytes}."""
    checkpoint = tf.train.load_checkpoint(str(run_dir / "model" / f"model.ckpt-{EPOCHS * STEPS}"))
    names = checkpoint.get_variable_to_shape_map()
    values = {name: np.asarray(checkpoint.get_tensor(name)).tobytes() for name in names}
    return (run_dir / "logs.txt").read_text(), values


def modified(path):
    """Return the time of the last change of `path` in nanoseconds, or None if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def start_and_stop(folder, name, rng, number, during_save):
    """Start the run `name` and send it the signal `number` at a random moment or, if `during_save`,
    during the first save after that moment. Return whether the signal stopped the run, and whether
    the run was saving."""
    process = start_script(*command(folder, name, *OPTIONS))
    if not any(line.startswith("run: ") for line in process.stdout):
        raise AssertionError(process.communicate())
    aside = folder / name / "model" / "aside"
    left = modified(aside)  # from a killed process; the next save replaces it

    def saving():
        return modified(aside) not in (None, left)

    time.sleep(rng.uniform(0, 1.5))
    while during_save and process.poll() is None and not saving():
        time.sleep(0.0005)
    process.send_signal(number)
    was_saving = saving()
    output, errors = process.communicate()
    status = process.returncode
    expected = {0, -number if number == signal.SIGKILL else 128 + number}
    if "done: " in output:
        expected.add(-number)  # the signal arrived between the end of the run and of the process
    assert status in expected, (number, status, errors)
    if status == 128 + number:
        assert f"stopped by {number.name} and saved after step " in errors
    return status != 0, was_saving


def kill_and_resume(folder, kills, seed=0, report=print):
    """Stop `kills` processes; return how many each signal stopped, {name: count}, and how many of
    them were saving. Raise AssertionError at the first difference."""
    finish(folder, "uninterrupted")
    expected = result(folder / "uninterrupted")
    rng = random.Random(seed)
    stopped, while_saving, runs = collections.Counter(), 0, 0
    while stopped.total() < kills:
        runs += 1
        name, starts, finished = f"run{runs}", 0, False
        while not finished and stopped.total() < kills:
            number = SIGNALS[stopped.total() % len(SIGNALS)]
            was_stopped, was_saving = start_and_stop(
                folder, name, rng, number, during_save=stopped.total() % 2 == 0
            )
            starts += 1
            stopped[number.name] += was_stopped
            while_saving += was_stopped and was_saving
            finished = not was_stopped
        if not finished:
            finish(folder, name)
        assert result(folder / name) == expected, name
        counts = f"{dict(stopped)}, {while_saving} during a save"
        report(f"{name}: identical after {starts} starts; {counts}")
    return stopped, while_saving


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    kill_and_resume(options.folder, options.kills)
