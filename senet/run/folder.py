"""The folder of a run.

run_dir/hyperparameters.json     the hyperparameters with which it was last started
run_dir/model/                   checkpoints
run_dir/logs.txt                 one row per epoch
run_dir/events.out.tfevents.*    event files for TensorBoard, also in run_dir/test/
run_dir/lock                     lock file, held by the training process
"""

import contextlib
import json
import pathlib
import shlex

import filelock

from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.engine.files import lock, replacing
from senet.engine.text import first_line
from senet.run.rows import format_row, parse_row, parse_rows, read_lines, read_rows

HASHES = "SHA256SUMS"  # the file that `publish` adds


class RunFolder:
    """The files of a run, except for the contents of its checkpoints. Use it in a `with` statement,
    which locks the run.

    Raises Failure if another process is training the run, if its checkpoints were made with
    incompatible hyperparameters, or if it has no checkpoint, but a logs.txt with rows of several
    epochs or with other lines."""

    def __init__(self, hyperparameters):
        self.hyperparameters = hyperparameters
        self.path = pathlib.Path(hyperparameters.run_dir)
        self.model = self.path / "model"
        self.row_file, self.lock_file = self.path / "logs.txt", self.path / "lock"
        self.settings = self.path / "hyperparameters.json"
        self.rows = {}  # {epoch: {name: number}}
        self.published = (self.path / HASHES).exists()  # without the optimizer's state

    def __enter__(self):
        with writing(self.model):
            self.model.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.rows = read_rows(self.row_file)
        if any(self.model.glob("model.ckpt-*.index")):
            self._compare_hyperparameters()
        # A process that was killed during its first save leaves at most the row of epoch 1.
        elif max(self.rows, default=0) > 1:
            raise Failure(
                f"{self.row_file} has rows up to epoch {max(self.rows):,}, but {self.model} has no "
                f"checkpoint; restore one to resume, or use another --run_dir to start from scratch"
            )
        elif any(line and not parse_row(line) for line in read_lines(self.row_file)):
            raise Failure(
                f"{self.row_file} has lines that no run wrote; move it, or use another --run_dir"
            )
        return self

    def __exit__(self, *_):
        self.lock.release()

    def check_training_state(self):
        """Raise Failure if the run is a published network: training cannot resume from it."""
        if self.published:
            raise Failure(
                f"{self.path} is a published network and has no optimizer state to resume from; "
                f"use --initial_checkpoint={shlex.quote(str(self.path))} and another --run_dir to "
                f"start from its weights"
            )

    def _take_lock(self):
        try:
            self.lock = lock(self.lock_file)
            self.locked = self.lock_file.stat().st_ino
        except filelock.Timeout:
            raise Failure(
                f"another process is training in {self.path}; wait for it to end, or use another "
                f"--run_dir"
            ) from None

    def keep_lock(self):
        """Lock the run again if the lock file was deleted. Raises Failure if another process has
        locked it, or if the folder no longer exists."""
        with contextlib.suppress(FileNotFoundError):
            if self.lock_file.stat().st_ino == self.locked:
                return
        if not self.path.is_dir():  # the lock would create it again, empty
            raise Failure(
                f"{self.path} was moved or deleted; move it back, then run the same command to "
                f"resume from the last checkpoint"
            )
        self._take_lock()

    def _compare_hyperparameters(self):
        """Raise Failure if the checkpoints were made with incompatible hyperparameters."""
        before = self.hyperparameters.load(self.settings)
        if changes := self.hyperparameters.changes_since(before):
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in changes)
            raise Failure(
                f"{self.path} was trained with different hyperparameters ({listed}); use the "
                f"earlier values to resume, or another --run_dir to start from scratch"
            )

    def write_hyperparameters(self):
        """Write the current hyperparameters to hyperparameters.json."""
        text = json.dumps(self.hyperparameters.as_dict(), indent=2)
        _replace_text(self.settings, text + "\n")

    def keep_rows(self, epochs):
        """Remove the rows after epoch `epochs`."""
        self.rows = {epoch: row for epoch, row in self.rows.items() if epoch <= epochs}
        self._write_rows()

    def add_row(self, epoch, values):
        """Write the row of an epoch, {name: number}, and return its line. Raises Failure if another
        process has locked the run."""
        self.keep_lock()
        total_epochs = self.hyperparameters.total_epochs
        line = format_row({"epoch": epoch, "total_epochs": total_epochs, **values})
        # With the digits that a resumed run reads.
        self.rows |= parse_rows([line])
        self._write_rows()
        return line

    def _write_rows(self):
        # Write all rows, in case the file was deleted in the meantime.
        _replace_text(self.row_file, "".join(f"{format_row(row)}\n" for row in self.rows.values()))


@contextlib.contextmanager
def writing(path):
    """Convert errors in writing the file `path` of a run to a Failure."""
    try:
        yield
    except (tf.errors.OpError, OSError, RuntimeError, IndexError) as error:
        raise Failure(
            f"cannot write {path}: {first_line(error)}; fix the cause, then run the same command "
            f"to resume from the last checkpoint"
        ) from None


def _replace_text(path, text):
    """Replace a text file atomically."""
    with writing(path), replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
