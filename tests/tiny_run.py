"""A training run of a few seconds: a network of 2,625 parameters on artificial images."""

import os
import signal

from fake_cifar10 import make_files, write_folder

from senet.run.run import Run

IMAGES = 40  # in each of the five training files, and in the test file
STEPS = 10  # per epoch: 200 images in batches of 20
TINY_OPTIONS = ["--width=2", "--reduction_ratio=2", "--batch_size=20"]


def command(folder, name, *options):
    """Return the command line of the run `folder`/`name`, script first. All runs use the images in
    `folder`/data."""
    return ["SE_ResNet.py", *arguments(folder, name, *options)]


def arguments(folder, name, *options):
    """Return `command` without the script; write the images if they are missing."""
    data_dir = folder / "data"
    if not data_dir.exists():
        write_folder(data_dir, make_files(count=IMAGES))
    return [*TINY_OPTIONS, f"--data_dir={data_dir}", f"--run_dir={folder / name}", *options]


def signal_after_epoch(last, number=signal.SIGKILL):
    """Let this process send itself the signal `number` at the end of epoch `last`."""
    end_epoch = Run.end_epoch

    def end_epoch_and_signal(run, epoch):
        end_epoch(run, epoch)
        if epoch == last:
            os.kill(os.getpid(), number)

    Run.end_epoch = end_epoch_and_signal
