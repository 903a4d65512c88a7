"""Fine-tuning against training from scratch, on few images of classes that a network never saw.

    python benchmarks/fine_tuning.py FOLDER --data_dir=data

Writes image folders into FOLDER/data: `eight`, CIFAR-10 without two classes; these two with 20 and
100 training images of each; `shapes` with as many. Trains a network on `eight`, or takes one that
was (--start). Then trains on each small set, from scratch and from the weights of that network,
with three seeds, and prints a table of the test accuracy after the last epoch.

Options for the trainings are strings: --tuned="--init_learning_rate=0.01 --total_epochs=20".
--tuned may be given several times, for a column each. The same command resumes: data sets and runs
that are complete are kept. A quick try of everything:

    python benchmarks/fine_tuning.py runs/try --most=4 --images 2 --seeds=1 --epochs=1 \\
        --network="--padding=0 --cardinality=2 --depth=2 --blocks=1 --reduction_ratio=2" \\
        --eight="--total_epochs=1"
"""

import argparse
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cifar10 import CIFAR10, load_cifar  # noqa: E402
from senet.data.shapes import load_shapes  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path, metavar="FOLDER")
    add("--data_dir", default="data", help="with CIFAR-10")
    add("--start", help="a run or published network of the eight classes; default: train it")
    add("--unseen", nargs=2, default=["cat", "dog"], help="the two classes that it never saw")
    add("--images", nargs="+", type=int, default=[20, 100], help="training images of a class")
    add("--most", type=int, help="images of a class in all other sets; default: all there are")
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=50, help="on the small sets")
    add(
        "--network",
        default="--padding=0 --depth=8 --cardinality=2 --blocks=1 --micro_batch_size=0",
        help="options of every training",
    )
    add("--eight", default="--total_epochs=15", help="options of the training on `eight`")
    add("--scratch", default="--batch_size=20", help="options of the trainings from scratch")
    add("--tuned", action="append", help="options of the fine-tuned trainings; default: --scratch")
    arguments = parser.parse_args()

    data = arguments.folder / "data"
    small = write_data_sets(data, arguments)
    network = shlex.split(arguments.network)
    start = arguments.start
    if not start:
        start = arguments.folder / "runs" / "eight"
        train(data / "eight", start, [*network, *shlex.split(arguments.eight)])

    tuned = arguments.tuned or [arguments.scratch]
    columns = {"scratch": arguments.scratch}
    columns |= {f"tuned{number}": options for number, options in enumerate(tuned)}
    epochs = f"--total_epochs={arguments.epochs}"
    accuracy = {}
    for seed in range(arguments.seeds):  # so that there is a table of one seed early
        for name in small:
            for column, options in columns.items():
                options = [*network, epochs, *shlex.split(options), f"--seed={seed}"]
                if column != "scratch":
                    options.append(f"--initial_checkpoint={start}")
                run_dir = arguments.folder / "runs" / f"{name}_{column}_s{seed}"
                accuracy.setdefault((name, column), []).append(train(data / name, run_dir, options))
        print_table(small, columns, accuracy)


def write_data_sets(folder, arguments):
    """Write the image folders that are not there yet; return the names of the small ones."""
    *splits, names = load_cifar(CIFAR10, arguments.data_dir)
    if unknown := set(arguments.unseen) - set(names):
        sys.exit(f"error: --unseen must be two of {', '.join(names)}, got {', '.join(unknown)}")
    seen = [name for name in names if name not in arguments.unseen]
    write_folder(folder / "eight", splits, names, seen, arguments.most, arguments.most)
    small = [f"{'_'.join(arguments.unseen)}_{count}" for count in arguments.images]
    for name, count in zip(small, arguments.images, strict=True):
        write_folder(folder / name, splits, names, arguments.unseen, count, arguments.most)
    *splits, names = load_shapes()  # with 200 training images of each class
    for count in arguments.images:
        small.append(f"shapes_{count}")
        write_folder(folder / small[-1], splits, names, names, count, arguments.most)
    return small


def write_folder(folder, splits, names, classes, train_count, test_count):
    """Write the first images of each of `classes` in both splits as PNG files; None is all."""
    if folder.exists():
        return
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
    train_images, train_labels, test_images, test_labels = splits
    for split, images, labels, count in (
        ("train", train_images, train_labels, train_count),
        ("test", test_images, test_labels, test_count),
    ):
        for name in classes:
            place = aside / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in np.flatnonzero(labels == names.index(name))[:count]:
                Image.fromarray(images[number]).save(place / f"{number:05}.png")
    aside.rename(folder)


def train(dataset, run_dir, options):
    """Train to the last epoch, from scratch or from where it was, and return the test accuracy."""
    options = [f"--dataset={dataset}", f"--run_dir={run_dir}", *options]
    print(f"$ python SE_ResNeXt.py {shlex.join(options)}", file=sys.stderr, flush=True)
    command = [sys.executable, ROOT / "SE_ResNeXt.py", *options]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"error: the training in {run_dir} failed")
    return float(re.findall(r"test_acc: (\S+)", (run_dir / "logs.txt").read_text())[-1])


def print_table(data_sets, columns, accuracy):
    """Print mean and standard deviation of the seeds, in %."""
    heads = [f"{column}: `{options}`" for column, options in columns.items()]
    print("\n| data set | " + " | ".join(heads) + " |\n|" + "---|" * (1 + len(heads)))
    for name in data_sets:
        cells = []
        for column in columns:
            values = [100 * value for value in accuracy[name, column]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
