"""Kill training processes at random moments, resume, and compare with an undisturbed run.

    python tests/kill_and_resume.py FOLDER --kills=100

Every second kill waits for a save to be under way. A run that comes to its end has to have the
same rows in logs.txt and the same bits in every variable; then the next run starts.
"""

import argparse
import pathlib
import random
import signal
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from conftest import run_python, start_python
from tiny_run import STEPS, command

from senet.compat import tf

EPOCHS = 3
# Save after every step: any moment is close to a save.
OPTIONS = (f"--total_epochs={EPOCHS}", "--save_minutes=1e-9")


def result(run_dir):
    """The rows of a finished run, and its variables as {name: bytes}."""
    checkpoint = tf.train.load_checkpoint(str(run_dir / "model" / f"model.ckpt-{EPOCHS * STEPS}"))
    names = checkpoint.get_variable_to_shape_map()
    values = {name: np.asarray(checkpoint.get_tensor(name)).tobytes() for name in names}
    return (run_dir / "logs.txt").read_text(), values


def start_and_kill(folder, name, randomness, inside_save):
    """Start the run `name`, and kill it. Returns whether it was killed before its end, and
    whether that was inside a save."""
    process = start_python(*command(folder, name, *OPTIONS))
    while not process.stdout.readline().startswith("run: "):
        assert process.poll() is None, process.communicate()
    time.sleep(randomness.uniform(0, 3))
    aside = folder / name / "model" / "aside"
    while inside_save and process.poll() is None and not aside.exists():
        pass
    process.send_signal(signal.SIGKILL)
    saving = aside.exists()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0, saving


def kill_and_resume(folder, kills, seed=0, report=print):
    """Kill `kills` processes in all. Raises AssertionError at the first difference."""
    status, _, errors = run_python(*command(folder, "undisturbed", *OPTIONS))
    assert (status, errors) == (0, "")
    expected = result(folder / "undisturbed")
    randomness = random.Random(seed)
    killed = inside = runs = 0
    while killed < kills:
        runs += 1
        name, starts, finished = f"disturbed{runs}", 0, False
        while not finished and killed < kills:
            was_killed, saving = start_and_kill(folder, name, randomness, killed % 2 == 0)
            starts += 1
            killed += was_killed
            inside += was_killed and saving
            finished = not was_killed
        if not finished:
            status, _, errors = run_python(*command(folder, name, *OPTIONS))
            assert status == 0, errors
        assert result(folder / name) == expected, name
        report(f"{name}: the same after {starts} starts; {killed} kills, {inside} inside a save")
    return killed, inside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=100)
    arguments = parser.parse_args()
    kill_and_resume(arguments.folder, arguments.kills)
