"""Checkpoints that can be trusted: whole or not there, checked when read, never of a broken net.

A checkpoint is the two files `model.ckpt-STEP.data-...` and `model.ckpt-STEP.index`, as
`tf.train.Saver` writes them, of all variables of the graph.
"""

import os
import re
import shutil
import sys

from senet.compat import tf, without_chatter
from senet.errors import Failure, first_line

NEWEST_KEPT = 3


class Checkpoints:
    """The checkpoints in `folder`, for the variables that the default graph has now."""

    def __init__(self, folder):
        self.folder = folder
        self.saver = tf.train.Saver(max_to_keep=0)
        with tf.name_scope("save/"):
            values = [v for v in tf.global_variables() if v.dtype.is_floating]
            self.finite = tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in values])
        self.current = None  # the step of the checkpoint that holds the session's values

    def restore(self, session):
        """Give the variables the values of the newest checkpoint that can be read, and return
        whether there is one. Those that cannot are named in a warning and renamed *.damaged.

        Raises Failure, with everything left as it is, if there are some and none can be read, or
        if the newest is one of another network."""
        path, damaged = newest_readable(self.folder)
        if path is None:
            # Without an index there is only what a killed first save left.
            if any(file.suffix == ".index" for files, _ in damaged for file in files):
                raise Failure(
                    f"{damaged[0][1]}, and no other checkpoint in {self.folder} can: "
                    f"move that folder away to start afresh, or give another --run_dir"
                )
            return False
        for files, message in damaged:
            print(f"warning: {message}; {path} is used instead", file=sys.stderr)
            for file in files:
                file.rename(file.with_name(file.name + ".damaged"))
        try:
            with without_chatter():
                self.saver.restore(session, str(path))
        except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError):
            raise Failure(
                f"{path} is a checkpoint of another network: undo what changed the network to "
                f"go on with it, or give another --run_dir to start afresh"
            ) from None
        self.current = int(path.name.rpartition("-")[2])
        return True

    def same(self, session, step):
        """Give the variables the values of the checkpoint of `step`, which the chief has read
        already. Returns a text that only the same checkpoint has: its index, in which each value
        has a checksum. If it cannot be read here, the text says so."""
        path = self.folder / f"model.ckpt-{step}"
        if step != self.current:
            try:
                with without_chatter():
                    self.saver.restore(session, str(path))
            except (tf.errors.OpError, ValueError) as error:
                return f"cannot be read: {first_line(error)}"
        return path.with_name(path.name + ".index").read_bytes().hex()

    def save(self, session, step, best_step=None):
        """Write a checkpoint; keep it, the two before it and the one of `best_step`.

        Raises Failure, the earlier checkpoints untouched, if it cannot be written or if a value
        is not finite."""
        if step != self.current:
            if not session.run(self.finite):
                raise Failure(
                    f"a value of the network is not finite after step {step}: not saved; "
                    f"start again in another --run_dir with a lower --init_learning_rate"
                )
            try:
                with without_chatter():
                    self._write(session, step)
            # A folder that goes away at this moment is a ValueError to the Saver.
            except (tf.errors.OpError, OSError, ValueError) as error:
                raise Failure(
                    f"cannot write a checkpoint into {self.folder}: {first_line(error)}; "
                    f"once that is mended, the same command goes on from the last checkpoint"
                ) from None
            self.current = step
        files = checkpoint_files(self.folder)
        for old in list(files)[:-NEWEST_KEPT]:
            if old != best_step:
                for file in files[old]:
                    file.unlink()

    def _write(self, session, step):
        """Write a checkpoint aside, then put it in place, the index last."""
        aside = self.folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir()
        path = str(aside / "model.ckpt")
        self.saver.save(session, path, step, write_meta_graph=False, write_state=False)
        written = sorted(aside.iterdir())
        for file in written:
            _to_disk(file)
        for file in written:
            file.replace(self.folder / file.name)
        _to_disk(self.folder)
        aside.rmdir()
        # For tf.train.latest_checkpoint and other tools; this class does not read it.
        tf.train.update_checkpoint_state(str(self.folder), f"model.ckpt-{step}")


def checkpoint_files(folder):
    """{step: its files}, whole or not, in the order of the steps; of its files the index is first,
    since a checkpoint without it does not exist."""
    found = {}
    for path in folder.iterdir():
        if name := re.fullmatch(r"model\.ckpt-(\d+)\.(index|data-\d+-of-\d+)", path.name):
            found.setdefault(int(name.group(1)), []).append(path)
    return {step: sorted(found[step], reverse=True) for step in sorted(found)}


def newest_readable(folder):
    """The path of the newest checkpoint in `folder` that can be read, None if none can, and those
    newer than it: a list of (their files, why they cannot be read)."""
    damaged, found = [], checkpoint_files(folder)
    for step in reversed(found):
        path = folder / f"model.ckpt-{step}"
        try:
            read_through(path)
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            damaged.append((found[step], f"{path}: cannot be read ({first_line(error)})"))
        else:
            return path, damaged
    return None, damaged


def read_through(path):
    """Read every tensor of a checkpoint; each has a checksum. Raises one of several errors, as
    TensorFlow's reader does."""
    reader = tf.train.NewCheckpointReader(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _to_disk(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
