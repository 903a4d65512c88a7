"""Write checkpoints atomically, and never save values that are not finite.

A checkpoint consists of two files in TensorFlow's format, `model.ckpt-STEP.data-...` and
`model.ckpt-STEP.index`, with all variables of the graph. The entry NETWORK lists those of the
network, so that other programs can distinguish them from the optimizer's; the entry FIELDS has the
hyperparameters that make it; the entry DATA has the checksums of the data set.
"""

import contextlib
import re
import shutil

import numpy as np

from senet.averaging import SUFFIX
from senet.data.inputs import decode_json, encode_json, read_statistics
from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.files import flush, replacing
from senet.engine.text import first_line, shortened

KEEP_NEWEST = 3
NETWORK = "network_variables"  # the entry that lists the network's variables, as JSON
FIELDS = "network_fields"  # the entry with the fields marked Network, as JSON
DATA = "data_checksums"  # the entry with the checksums of the images and labels


class Checkpoints:
    """The checkpoints, in `folder`, of the variables of the default graph. `outputs` are the output
    tensors of the network; `fields` are those that make it, {name: value}. `checksums` and
    `label_names` are those of the Dataset; a published network has no checksums."""

    def __init__(self, folder, outputs, fields, checksums=(), label_names=()):
        self.folder = folder
        self.fields = fields
        self.checksums = checksums
        self.label_names = label_names
        variables = tf.global_variables()
        self.variables = {v.op.name: v for v in variables}
        self.shapes = {v.op.name: v.shape.as_list() for v in variables}
        values = {v.op.name: tf.convert_to_tensor(v) for v in variables}
        floats = [value for value in values.values() if value.dtype.is_floating]
        self.finite = tf.reduce_all([tf.reduce_all(tf.is_finite(value)) for value in floats])
        values[NETWORK] = tf.constant(encode_json(variables_used_by(outputs)))
        values[FIELDS] = tf.constant(encode_json(fields))
        if checksums:
            values[DATA] = tf.constant(checksums, tf.int64)
        # Not a Saver, which would add several operations per variable.
        self.path = tf.placeholder(tf.string, [])
        self.writer = tf.raw_ops.SaveV2(
            prefix=self.path,
            tensor_names=list(values),
            shape_and_slices=[""] * len(values),
            tensors=list(values.values()),
        )
        self.current = None  # step of the checkpoint that has the session's values

    def restore(self, session):
        """Load the newest checkpoint into the session. Return its index file in hexadecimal, which
        has a checksum of each value, or "" if there is no checkpoint.

        Raises Failure, without changing any file, if it cannot be read or does not match the
        network."""
        path = newest(self.folder)
        if path is None:
            return ""
        saved = SavedCheckpoint(path, "delete its files to use the previous checkpoint")
        run_dir = self.folder.parent
        if self.label_names and saved.label_names != self.label_names:
            raise Failure(
                f"{run_dir} was trained on different classes ({shortened(saved.label_names)}); "
                f"restore them to resume, or use another --run_dir to start from scratch"
            )
        if difference := describe_difference(saved.shapes, self.shapes):
            raise Failure(
                f"{path} does not match the network: {difference}; undo the change to the network "
                f"to resume, or use another --run_dir to start from scratch"
            )
        saved.check_fields(self.fields)
        if saved.checksums is not None and not np.array_equal(saved.checksums, self.checksums):
            raise Failure(
                f"the images or their labels differ from those that {run_dir} was trained and "
                f"tested on; restore them to resume, or use another --run_dir to start from scratch"
            )
        saved.load(session, {variable: name for name, variable in self.variables.items()})
        self.current = int(path.name.rpartition("-")[2])  # the step
        return path.with_name(path.name + ".index").read_bytes().hex()

    def save(self, session, step, best_step=None):
        """Write a checkpoint; keep the newest three and the one of `best_step`.

        Raises Failure, with the earlier checkpoints untouched, if it cannot be written or if a
        value is not finite."""
        index = self.folder / f"model.ckpt-{step}.index"
        saved = step == self.current and index.exists()
        if not saved and not session.run(self.finite):
            raise Failure(
                f"a variable is not finite after step {step}; the step was not saved; restart "
                f"in another --run_dir with a lower learning rate"
            )
        try:
            if not saved:
                with without_chatter():
                    self.write(session, step)
                self.current = step
            files = checkpoint_files(self.folder)
            for old in files.keys() - {*list(files)[-KEEP_NEWEST:], best_step}:
                for file in files[old]:
                    file.unlink(missing_ok=True)
        except (tf.errors.OpError, OSError) as error:
            raise Failure(
                f"cannot write a checkpoint into {self.folder}: {first_line(error)}; fix the "
                f"cause, then run the same command to resume from the last checkpoint"
            ) from None

    def write(self, session, step):
        """Write a checkpoint into a temporary folder, then move it into place, the index last.

        Raises OSError or tf.errors.OpError if it cannot be written."""
        aside = self.folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
        self.folder.mkdir(exist_ok=True)  # if it was deleted
        aside.mkdir()
        session.run(self.writer, {self.path: str(aside / f"model.ckpt-{step}")})
        files = sorted(aside.iterdir())
        for file in files:
            flush(file)
        for file in files:
            file.replace(self.folder / file.name)
        aside.rmdir()
        # The file `checkpoint` is for tf.train.latest_checkpoint; this class ignores it.
        with replacing(self.folder / "checkpoint") as temporary:
            temporary.write_text(f'model_checkpoint_path: "model.ckpt-{step}"\n')


class SavedCheckpoint:
    """A checkpoint on disk, whose `path` has no suffix. The error for one that cannot be read ends
    with `remedy`.

    The attributes are the `shapes` of all variables, {name: shape}, those of the `network`, the
    `fields` that make it, and the `checksums` of the data set, or None. Raises Failure if the
    checkpoint cannot be read; TensorFlow verifies the checksum of every value that it reads."""

    def __init__(self, path, remedy):
        self.path = path
        self.remedy = remedy
        with self._reading():
            self.reader = tf.train.NewCheckpointReader(str(path))
        self.shapes = self.reader.get_variable_to_shape_map()
        # Checkpoints of earlier versions do not have all entries.
        self.network, self.fields = (
            decode_json(self.get_tensor(entry)) if self.shapes.pop(entry, None) else {}
            for entry in (NETWORK, FIELDS)
        )
        self.checksums = self.get_tensor(DATA) if self.shapes.pop(DATA, None) else None

    @contextlib.contextmanager
    def _reading(self):
        try:
            yield
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            text = f"{self.path}: cannot be read ({first_line(error)}); {self.remedy}"
            raise Failure(text) from None

    def get_tensor(self, name):
        """Return the value of a variable, an array."""
        with self._reading():
            return self.reader.get_tensor(name)

    @property
    def statistics(self):
        """The Statistics of the training set, as arrays."""
        return read_statistics(self)

    @property
    def label_names(self):
        """The classes that the network was trained on, a list."""
        return decode_json(self.statistics.label_names)

    def source(self, name):
        """Return the name of the variable with which the variable `name` of the network is tested:
        that of its average, if there is one."""
        return name + SUFFIX * (name + SUFFIX in self.shapes)

    def check_fields(self, wanted):
        """Raise Failure if the network was made by fields other than `wanted`. The names and shapes
        of variables do not show all differences."""
        saved = self.fields
        if different := [n for n in saved if n in wanted and saved[n] != wanted[n]]:
            listed = ", ".join(f"{n} {saved[n]}, got {wanted[n]}" for n in different)
            raise Failure(
                f"{self.path} was trained with {listed}; use the values that it was trained with"
            )

    def load(self, session, names):
        """Set variables, on all devices. `names` are those of the values, {variable: name}."""
        local = tf.distribute.get_strategy().experimental_local_results
        assigns = []
        feed = {}
        for variable, name in names.items():
            value = self.get_tensor(name)
            placeholder = tf.placeholder(value.dtype, value.shape)
            assigns += local(variable.assign(placeholder))
            feed[placeholder] = value
        session.run(assigns, feed)


def variables_used_by(tensors):
    """Return {name: shape} of the variables that a nest of tensors depends on. An average counts as
    the variable that it is the average of."""
    names = [tensor.op.name for tensor in tf.nest.flatten(tensors)]
    graph = tf.get_default_graph().as_graph_def()
    nodes = {node.name for node in tf.graph_util.extract_sub_graph(graph, names).node}
    used = [v for v in tf.global_variables() if v.op.name in nodes]
    return {v.op.name.removesuffix(SUFFIX): v.shape.as_list() for v in used}


def describe_difference(saved, wanted):
    """Return how the variables of a checkpoint differ from those of a network, both {name: shape},
    as a str; "" if they do not."""
    parts = []
    if missing := sorted(wanted.keys() - saved.keys()):
        parts.append(f"missing from the checkpoint: {shortened(missing)}")
    if extra := sorted(saved.keys() - wanted.keys()):
        parts.append(f"not in the network: {shortened(extra)}")
    shared = sorted(wanted.keys() & saved.keys())
    if changed := [name for name in shared if saved[name] != wanted[name]]:
        parts.append(
            f"{changed[0]} has shape {saved[changed[0]]}, but {wanted[changed[0]]} in the network"
        )
    return ", ".join(parts)


def checkpoint_files(folder):
    """Return {step: files} of complete and incomplete checkpoints, sorted by step. The index is the
    first of the files; a checkpoint without it is incomplete."""
    found = {}
    for path in folder.iterdir():
        if name := re.fullmatch(r"model\.ckpt-(\d{1,18})\.(index|data-\d+-of-\d+)", path.name):
            found.setdefault(int(name.group(1)), []).append(path)
    return {step: sorted(found[step], reverse=True) for step in sorted(found)}


def newest(folder):
    """Return the path of the newest checkpoint in `folder`, without a suffix, or None."""
    files = checkpoint_files(folder) if folder.is_dir() else {}
    steps = [step for step, paths in files.items() if paths[0].suffix == ".index"]
    return folder / f"model.ckpt-{max(steps)}" if steps else None
