"""Write checkpoints atomically, and never save values that are not finite.

A checkpoint consists of two files in TensorFlow's format, `model.ckpt-STEP.data-...` and
`model.ckpt-STEP.index`, with all variables of the graph. The entry NETWORK lists those of the
network, so that other programs can distinguish them from the optimizer's; the entry FIELDS has the
hyperparameters that make it; the entry DATA has the checksums of the data set.
"""

import contextlib
import re
import shutil

from senet.averaging import SUFFIX
from senet.data.inputs import LABEL_NAMES, decode_json, encode_json
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
    tensors of the network; `fields` are those that make it, {name: value}. `checksums` are those of
    the Dataset; a published network has none."""

    def __init__(self, folder, outputs, fields, checksums=None):
        self.folder = folder
        self.fields = fields
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
        self.trained_on = None  # the checksums in the restored checkpoint

    def restore(self, session):
        """Load the newest checkpoint into the session. Return its index file in hexadecimal, which
        has a checksum of each value, or "" if there is no checkpoint.

        Raises Failure, without changing any file, if it cannot be read or does not match the
        network."""
        path = newest(self.folder)
        if path is None:
            return ""
        with unreadable_as_failure(path):
            reader = tf.train.NewCheckpointReader(str(path))
            shapes = reader.get_variable_to_shape_map()
            fields = network_fields(reader)
            # Checkpoints of earlier versions do not have all entries.
            if shapes.pop(DATA, None):
                self.trained_on = reader.get_tensor(DATA)
        for entry in NETWORK, FIELDS:
            shapes.pop(entry, None)
        difference = describe_difference(shapes, self.shapes)
        if difference and shapes.get(LABEL_NAMES, []) != self.shapes.get(LABEL_NAMES, []):
            raise different_classes(path, decode_json(reader.get_tensor(LABEL_NAMES)))
        if difference:
            raise Failure(
                f"{path} does not match the network: {difference}; undo the change to the network "
                f"to resume, or use another --run_dir to start from scratch"
            )
        check_fields(path, fields, self.fields)
        with unreadable_as_failure(path):
            values = {v: reader.get_tensor(name) for name, v in self.variables.items()}
        load_values(session, values)
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


def load_values(session, values):
    """Set variables, on all devices, to `values`, {variable: array}."""
    local = tf.distribute.get_strategy().experimental_local_results
    assigns = []
    feed = {}
    for variable, value in values.items():
        placeholder = tf.placeholder(value.dtype, value.shape)
        assigns += local(variable.assign(placeholder))
        feed[placeholder] = value
    session.run(assigns, feed)


def different_classes(path, label_names):
    """Return the Failure for a run or checkpoint that was trained on other classes."""
    return Failure(
        f"{path} was trained on different classes ({shortened(label_names)}); restore them to "
        f"resume, or use another --run_dir to start from scratch"
    )


def variables_used_by(tensors):
    """Return {name: shape} of the variables that a nest of tensors depends on. An average counts as
    the variable that it is the average of."""
    names = [tensor.op.name for tensor in tf.nest.flatten(tensors)]
    graph = tf.get_default_graph().as_graph_def()
    nodes = {node.name for node in tf.graph_util.extract_sub_graph(graph, names).node}
    used = [v for v in tf.global_variables() if v.op.name in nodes]
    return {v.op.name.removesuffix(SUFFIX): v.shape.as_list() for v in used}


def network_variables(reader):
    """Return {name: shape} of the network's variables in a checkpoint, from TensorFlow's `reader`.

    Raises Failure if the checkpoint does not list them."""
    if not reader.has_tensor(NETWORK):
        raise Failure(
            "the checkpoint was written by an earlier version and does not list the network's "
            "variables; resume training with a larger --total_epochs to write one that does"
        )
    return decode_json(reader.get_tensor(NETWORK))


def network_fields(reader):
    """Return the fields that make the network of a checkpoint, {name: value}; {} if it was written
    by an earlier version."""
    return decode_json(reader.get_tensor(FIELDS)) if reader.has_tensor(FIELDS) else {}


def check_fields(path, saved, wanted):
    """Raise Failure if the network of the checkpoint `path` was made by other fields. The names and
    shapes of variables do not show all differences."""
    if different := [n for n in saved if n in wanted and saved[n] != wanted[n]]:
        listed = ", ".join(f"{n} {saved[n]}, got {wanted[n]}" for n in different)
        raise Failure(f"{path} was trained with {listed}; use the values that it was trained with")


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


@contextlib.contextmanager
def unreadable_as_failure(checkpoint, remedy="delete its files to use the previous checkpoint"):
    """Convert errors in reading a checkpoint to a Failure. TensorFlow verifies the checksum of
    every value that it reads."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{checkpoint}: {failure}") from None
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise Failure(f"{checkpoint}: cannot be read ({first_line(error)}); {remedy}") from None
