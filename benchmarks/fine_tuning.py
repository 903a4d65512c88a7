"""Compare fine-tuning with training from scratch, on a few images of new classes.

    python benchmarks/fine_tuning.py FOLDER --data_dir=data

Write image folders into FOLDER/data: `eight`, which is CIFAR-10 without two classes, and small sets
of these two classes and of `shapes`, with 20 and 100 training images per class. Train a network on
`eight`, or use the one given by --start. Then train on each small set, from scratch and from the
weights of that network, with three seeds, and print a table of the test accuracy after the last
epoch.

Give the options of the training runs as one string: --tuned="--filter_learning_rate=0.01". Each
--tuned adds a column. To resume, run the same command again: complete data sets and finished runs
are reused. For a quick test of everything:

    python benchmarks/fine_tuning.py runs/try --max_images=4 --images 2 --seeds=1 --epochs=1 \\
        --network="--width=2 --reduction_ratio=2" \\
        --eight="--total_epochs=1"
"""

import argparse
import json
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

from cifar10 import CIFAR10, load_cifar  # noqa: E402
from senet.data.shapes import load_shapes  # noqa: E402
from senet.run.rows import read_rows  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=pathlib.Path, metavar="FOLDER")
    add("--data_dir", default="data", help="folder with CIFAR-10")
    add("--start", help="run or published network trained on `eight`; default: train one")
    add("--unseen", nargs=2, default=["cat", "dog"], help="the two classes missing from `eight`")
    add("--images", nargs="+", type=int, default=[20, 100], help="training images per class")
    add(
        "--max_images",
        type=int,
        help="images per class in `eight` and in every test set; default: all",
    )
    add("--seeds", type=int, default=3, help="number of seeds")
    add("--epochs", type=int, default=20, help="epochs on the small sets")
    add(
        "--network",
        default="",
        help="options of all runs",
    )
    add(
        "--eight",
        default="--total_epochs=5",
        help="options of the run on `eight`",
    )
    add(
        "--scratch",
        default="--batch_size=20",
        help="options of the runs from scratch",
    )
    add(
        "--tuned",
        action="append",
        help="options of the fine-tuning runs; default: those of --scratch",
    )
    arguments = parser.parse_args()

    check_options(arguments)
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
    # The outer loop is over the seeds, so that a table is printed after each.
    for seed in range(arguments.seeds):
        for name in small:
            for column, options in columns.items():
                options = [*network, epochs, *shlex.split(options), f"--seed={seed}"]
                if column != "scratch":
                    options.append(f"--initial_checkpoint={start}")
                run_dir = arguments.folder / "runs" / f"{name}_{column}_s{seed}"
                accuracy.setdefault((name, column), []).append(train(data / name, run_dir, options))
        print_table(small, columns, accuracy)


def check_options(arguments):
    """Exit if FOLDER was made with different options, except for --images and --seeds, which only
    add runs."""
    added = "folder", "data_dir", "images", "seeds"
    options = {name: value for name, value in vars(arguments).items() if name not in added}
    file = arguments.folder / "options.json"
    if file.exists() and json.loads(file.read_text()) != options:
        sys.exit(
            f"error: {arguments.folder} was made with {file.read_text()}, not with "
            f"{json.dumps(options)}; use the same options, or choose another FOLDER"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(options))


def write_data_sets(folder, arguments):
    """Write the image folders that do not exist yet; return the names of the small ones."""
    *splits, names = load_cifar(CIFAR10, arguments.data_dir)
    if unknown := set(arguments.unseen) - set(names):
        sys.exit(f"error: --unseen must be two of {', '.join(names)}, got {', '.join(unknown)}")
    seen = [name for name in names if name not in arguments.unseen]
    write_folder(folder / "eight", splits, names, seen, arguments.max_images, arguments.max_images)
    small = [f"{'_'.join(arguments.unseen)}_{count}" for count in arguments.images]
    for name, count in zip(small, arguments.images, strict=True):
        write_folder(folder / name, splits, names, arguments.unseen, count, arguments.max_images)
    *splits, names = load_shapes()  # 200 training images per class
    for count in arguments.images:
        small.append(f"shapes_{count}")
        write_folder(folder / small[-1], splits, names, names, count, arguments.max_images)
    return small


def write_folder(folder, splits, names, classes, train_count, test_count):
    """Write the first `train_count` and `test_count` images (None: all) of each of `classes` as PNG
    files, unless the folder exists."""
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    train_images, train_labels, test_images, test_labels = splits
    for split, images, labels, count in (
        ("train", train_images, train_labels, train_count),
        ("test", test_images, test_labels, test_count),
    ):
        for name in classes:
            class_folder = temporary / split / name
            class_folder.mkdir(parents=True, exist_ok=True)
            for number in np.flatnonzero(labels == names.index(name))[:count]:
                Image.fromarray(images[number]).save(class_folder / f"{number:05}.png")
    temporary.rename(folder)


def train(dataset, run_dir, options):
    """Train or resume to the last epoch; return the test accuracy."""
    options = [f"--dataset={dataset}", f"--run_dir={run_dir}", *options]
    print(f"$ python SE_ResNet.py {shlex.join(options)}", file=sys.stderr, flush=True)
    command = [sys.executable, ROOT / "SE_ResNet.py", *options]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"error: training failed in {run_dir}; see the error above")
    *_, last = read_rows(run_dir / "logs.txt").values()
    return last["test_acc"]


def print_table(data_sets, columns, accuracy):
    """Print the mean and the standard deviation of the test accuracy over the seeds, in %."""
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
