"""Measure what fine-tuning gains over training from scratch, on few images of new classes.

    python benchmarks/fine_tuning.py FOLDER --data_dir=data

Train `SE_ResNet.py` on CIFAR-10 without cats and dogs, with its defaults. Then train on small sets
of 30 and 100 images per class: cats and dogs, the angle by which an image is rotated, and `shapes`.
Each run starts from scratch or from the weights of the first network, with the batch size and the
epochs that fine-tuning chooses (rotations: with --flip=False). Print the test accuracies.

Other options are those of `SE_ResNet.py`, for all runs; those that this script sets itself, such as
--total_epochs, have no effect. To resume, run the same command again: finished runs and existing
sets are kept, so use a new FOLDER for other values of --first_images or --test_images. For a quick
test of everything:

    python benchmarks/fine_tuning.py runs/try --epochs=1 --images 4 --test_images=4 --seeds=1 \\
        --first_images=40 --width=2 --reduction_ratio=2
"""

import argparse
import itertools
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cifar10 import CIFAR10, load_cifar  # noqa: E402 (needs sys.path)
from SE_ResNet import Hyperparameters  # noqa: E402
from senet.data.shapes import load_shapes  # noqa: E402
from senet.run.rows import read_rows  # noqa: E402

NEW = ["cat", "dog"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed is an option of SE_ResNet.py, not short for --seeds
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path, metavar="FOLDER")
    add("--data_dir", default="data", help="folder with CIFAR-10")
    add("--images", nargs="+", type=int, default=[30, 100], help="training images per class")
    add("--test_images", type=int, default=1000, help="at most this many per class")
    add("--first_images", type=int, help="training images per class of the first network")
    epochs = Hyperparameters.total_epochs
    add("--epochs", type=int, default=epochs, help="epochs of the first network")
    add("--seeds", type=int, default=3, help="number of seeds")
    arguments, options = parser.parse_known_args()
    folder = arguments.folder

    *splits, names = load_cifar(CIFAR10, arguments.data_dir)
    seen = [name for name in names if name not in NEW]
    counts = arguments.first_images, arguments.test_images
    first = write_folder(folder / "data" / "eight", splits, names, seen, counts)
    start = folder / "runs" / "eight"
    train(first, start, [*options, f"--total_epochs={arguments.epochs}"])

    angles = ["0", "90", "180", "270"]
    *shapes, outlines = load_shapes()
    kinds = {
        "cats and dogs": (splits, names, NEW),
        "rotations": (rotated(splits), angles, angles),
        "shapes": (shapes, outlines, outlines),
    }
    accuracy = {}  # {(set, column): accuracies}
    for count, (kind, (images, labels, classes)) in itertools.product(
        arguments.images, kinds.items()
    ):
        path = folder / "data" / f"{kind.replace(' ', '_')}_{count}"
        dataset = write_folder(path, images, labels, classes, (count, arguments.test_images))
        tuned = Hyperparameters().for_fine_tuning(count * len(classes))
        same = [f"--batch_size={tuned.batch_size}", f"--total_epochs={tuned.total_epochs}"]
        same += ["--flip=False"] * (kind == "rotations")
        for column, own in (
            ("from scratch", []),
            ("fine-tuned", [f"--initial_checkpoint={start}"]),
        ):
            for seed in range(arguments.seeds):
                run_dir = folder / "runs" / f"{path.name}_{column.replace(' ', '_')}_s{seed}"
                value = train(dataset, run_dir, [*options, *same, *own, f"--seed={seed}"])
                accuracy.setdefault((f"{count} {kind}", column), []).append(value)
    print_table(accuracy)


def rotated(splits):
    """Return the training and test images, each rotated by an angle, and the angles' labels."""
    found = []
    for images in splits[0], splits[2]:
        turns = np.arange(len(images)) % 4
        pairs = zip(images, turns, strict=True)
        found += [np.stack([np.rot90(image, turn) for image, turn in pairs]), turns]
    return found


def write_folder(folder, splits, names, classes, counts):
    """Write the first images of each of `classes` as PNG files, unless the folder exists, and
    return it. `counts` are the numbers of training and of test images per class (None: all)."""
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    halves = ("train", splits[:2], counts[0]), ("test", splits[2:], counts[1])
    for half, (images, labels), count in halves:
        for name in classes:
            class_folder = temporary / half / name
            class_folder.mkdir(parents=True)
            for number in np.flatnonzero(labels == names.index(name))[:count]:
                Image.fromarray(images[number]).save(class_folder / f"{number:05}.png")
    temporary.rename(folder)
    return folder


def train(dataset, run_dir, options):
    """Train or resume to the last epoch; return the test accuracy in percent."""
    cache = f"--data_dir={run_dir.parent.parent}"
    options = [f"--dataset={dataset}", f"--run_dir={run_dir}", cache, "--test_every=9999", *options]
    print(f"$ python SE_ResNet.py {shlex.join(options)}", file=sys.stderr, flush=True)
    command = [sys.executable, ROOT / "SE_ResNet.py", *options]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"error: training failed in {run_dir}; see the error above")
    *_, last = read_rows(run_dir / "logs.txt").values()
    return 100 * last["test_acc"]


def print_table(accuracy):
    """Print the mean and the standard deviation of the accuracies over the seeds."""
    columns = list(dict.fromkeys(column for _, column in accuracy))
    print(f"\n| training images per class | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in dict.fromkeys(name for name, _ in accuracy):
        cells = []
        for column in columns:
            values = accuracy[name, column]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
