"""Checkpoints that are whole or absent, verified when read, and never of a broken network.

A checkpoint is the two files `model.ckpt-STEP.data-...` and `model.ckpt-STEP.index` that
`tf.train.Saver` writes, with all variables of the graph. One of these states which variables the
network needs, so that no other program has to guess which of them are the optimizer's.
"""

import contextlib
import os
import re
import shutil
import sys

from senet.compat import tf, without_chatter
from senet.data.inputs import STATISTICS, json_to_numbers, numbers_to_json
from senet.errors import Failure, first_line, shortened

NEWEST_KEPT = 3
NETWORK = "network_variables"  # the variable with `variables_behind` the network's outputs, as JSON
UNREADABLE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)  # what a reader raises


class Checkpoints:
    """The checkpoints in `folder` of the variables in the default graph. `outputs` are the tensors
    of the network that a checkpoint has to be able to compute."""

    def __init__(self, folder, outputs):
        self.folder = folder
        network = json_to_numbers(variables_behind(outputs))
        restored = tf.global_variables()
        self.shapes = {v.op.name: v.shape.as_list() for v in restored}
        tf.get_variable(NETWORK, initializer=network, trainable=False)
        self.reader = tf.train.Saver(restored)
        self.writer = tf.train.Saver(max_to_keep=0)
        floats = [v for v in restored if v.dtype.is_floating]
        self.finite = tf.reduce_all([tf.reduce_all(tf.is_finite(v)) for v in floats])
        self.current = None  # the step of the checkpoint that equals the session's values
        self.damaged = []  # newer ones than it, as (files, reason)

    def restore(self, session):
        """Load the newest readable checkpoint into the session and return whether there is one.

        Raises Failure, with every file left as it is, if there are checkpoints but none can be
        read, or if the newest is of a different network."""
        path, damaged = newest_readable(self.folder)
        if path is None:
            # Without an index, files are what a killed first save left behind.
            if any(file.suffix == ".index" for files, _ in damaged for file in files):
                raise Failure(
                    f"{damaged[0][1]}, and neither can any other checkpoint in {self.folder}; "
                    f"move that folder away to start from scratch, or give another --run_dir"
                )
            return False
        if difference := self._difference(path):
            raise Failure(
                f"{path} is of a different network: {difference}; undo what changed the network "
                f"to resume, or give another --run_dir to start from scratch"
            )
        self._load(session, path)
        self.current, self.damaged = step_of(path), damaged
        return True

    def rename_damaged(self):
        """Rename the checkpoints that `restore` could not read to *.damaged, with a warning."""
        for files, message in self.damaged:
            used = self.folder / f"model.ckpt-{self.current}"
            print(f"warning: {message}; resuming from {used}", file=sys.stderr)
            for file in files:
                file.rename(file.with_name(file.name + ".damaged"))

    def _difference(self, path):
        """Return how the variables in a checkpoint differ from the graph's, "" if they do not."""
        shapes = tf.train.NewCheckpointReader(str(path)).get_variable_to_shape_map()
        shapes.pop(NETWORK, None)  # absent from checkpoints of earlier versions
        return describe_difference(shapes, self.shapes)

    def _load(self, session, path):
        try:
            with without_chatter():
                self.reader.restore(session, str(path))
        except (tf.errors.OpError, ValueError) as error:
            raise Failure(f"{path}: cannot be loaded: {first_line(error)}") from None

    def load_the_chiefs(self, session, step):
        """Load the checkpoint of `step`, unless this worker, the chief, has done so. Return a text
        that only this checkpoint has: its index, which has a checksum of each value. If it cannot
        be read here, the text says so."""
        path = self.folder / f"model.ckpt-{step}"
        if step != self.current:
            try:
                with without_chatter():
                    self.reader.restore(session, str(path))
            except (tf.errors.OpError, ValueError) as error:
                return f"cannot be read: {first_line(error)}"
        return path.with_name(path.name + ".index").read_bytes().hex()

    def save(self, session, step, best_step=None):
        """Write a checkpoint; keep the newest three and the one of `best_step`.

        Raises Failure, with the earlier checkpoints untouched, if it cannot be written or if a
        value is not finite."""
        if step != self.current:
            if not session.run(self.finite):
                raise Failure(
                    f"a variable is not finite after step {step}, so it was not saved; restart in "
                    f"another --run_dir with a lower --init_learning_rate"
                )
            try:
                with without_chatter():
                    self._write(session, step)
            # The Saver raises ValueError if the folder vanishes at this moment.
            except (tf.errors.OpError, OSError, ValueError) as error:
                raise Failure(
                    f"cannot write a checkpoint into {self.folder}: {first_line(error)}; fix that, "
                    f"then run the same command to resume from the last checkpoint"
                ) from None
            self.current = step
        files = checkpoint_files(self.folder)
        for old in list(files)[:-NEWEST_KEPT]:
            if old != best_step:
                for file in files[old]:
                    file.unlink()

    def _write(self, session, step):
        """Write a checkpoint aside, then move it into place, the index last."""
        aside = self.folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
        aside.mkdir()
        path = str(aside / "model.ckpt")
        self.writer.save(session, path, step, write_meta_graph=False, write_state=False)
        files = sorted(aside.iterdir())
        for file in files:
            _to_disk(file)
        for file in files:
            file.replace(self.folder / file.name)
        _to_disk(self.folder)
        aside.rmdir()
        # For tf.train.latest_checkpoint and other tools; this class does not read it.
        tf.train.update_checkpoint_state(str(self.folder), f"model.ckpt-{step}")


def variables_behind(tensors):
    """Return {name: shape} of the variables that a nest of tensors depends on."""
    names = [tensor.op.name for tensor in tf.nest.flatten(tensors)]
    graph = tf.get_default_graph().as_graph_def()
    nodes = {node.name for node in tf.graph_util.extract_sub_graph(graph, names).node}
    return {v.op.name: v.shape.as_list() for v in tf.global_variables() if v.op.name in nodes}


def network_in(reader):
    """Return `variables_behind` the network that a checkpoint is of; `reader` is TensorFlow's.

    Raises Failure for a checkpoint that does not state it."""
    if not reader.has_tensor(NETWORK):
        raise Failure(
            "the checkpoint is of an earlier version and does not state its network; resume "
            "training with a larger --total_epochs to write one that does"
        )
    return numbers_to_json(reader.get_tensor(NETWORK))


def is_network_alone(folder):
    """Return whether the newest checkpoint in `folder` has the variables of a network and not those
    of its training, so that no run can resume from it: `publish` writes such ones."""
    found = checkpoint_files(folder) if folder.is_dir() else {}
    if not found:
        return False
    try:
        reader = tf.train.NewCheckpointReader(str(folder / f"model.ckpt-{max(found)}"))
        network = network_in(reader)
    except (*UNREADABLE, Failure):
        return False  # whoever restores it says what is wrong
    saved = reader.get_variable_to_shape_map().keys()
    return saved <= network.keys() | STATISTICS | {NETWORK, tf.GraphKeys.GLOBAL_STEP}


def describe_difference(saved, wanted):
    """Return how the {name: shape} of a checkpoint differs from that of a graph, "" if not."""
    parts = []
    if missing := sorted(wanted.keys() - saved.keys()):
        parts.append(f"it lacks {shortened(missing)}")
    if extra := sorted(saved.keys() - wanted.keys()):
        parts.append(f"it has {shortened(extra)} besides")
    shared = sorted(wanted.keys() & saved.keys())
    if changed := [name for name in shared if saved[name] != wanted[name]]:
        parts.append(f"{changed[0]} has shape {saved[changed[0]]}, not {wanted[changed[0]]}")
    return ", ".join(parts)


def step_of(path):
    """Return the step in the name of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def checkpoint_files(folder):
    """Return {step: files}, whole or not, in the order of the steps. The index is the first file: a
    checkpoint without it does not exist."""
    found = {}
    for path in folder.iterdir():
        if name := re.fullmatch(r"model\.ckpt-(\d{1,18})\.(index|data-\d+-of-\d+)", path.name):
            found.setdefault(int(name.group(1)), []).append(path)
    return {step: sorted(found[step], reverse=True) for step in sorted(found)}


def newest_readable(folder):
    """Return the path of the newest readable checkpoint in `folder`, None without one, and the
    newer ones that cannot be read, as a list of (files, reason)."""
    damaged, found = [], checkpoint_files(folder)
    for step in reversed(found):
        path = folder / f"model.ckpt-{step}"
        try:
            reader = read_through(path)
            if (stored := reader.get_tensor(tf.GraphKeys.GLOBAL_STEP)) != step:
                raise ValueError(f"it is a copy of the checkpoint of step {stored}")
        except UNREADABLE as error:
            damaged.append((found[step], f"{path}: cannot be used ({first_line(error)})"))
        else:
            return path, damaged
    return None, damaged


def read_through(path):
    """Read every tensor of a checkpoint, which verifies its checksum, and return the reader. Raises
    one of several errors, as TensorFlow's reader does."""
    reader = tf.train.NewCheckpointReader(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)
    return reader


@contextlib.contextmanager
def readable(checkpoint, option):
    """Turn errors in reading a checkpoint into a Failure that advises another value of `option`."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{checkpoint}: {failure}") from None
    except UNREADABLE as error:
        raise Failure(
            f"{checkpoint}: cannot be read ({first_line(error)}); give another {option}"
        ) from None


def _to_disk(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
