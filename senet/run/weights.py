"""Start a run from the weights of another one: the hyperparameter `initial_checkpoint`."""

import pathlib

from senet.data.inputs import STATISTICS, decode_json, read_statistics
from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure
from senet.engine.text import shortened
from senet.layers import CLASSIFIER
from senet.run.checkpoints import (
    network_variables,
    newest,
    unreadable_as_failure,
    variables_used_by,
)

OPTION = "--initial_checkpoint"


def load_weights(session, initial_checkpoint, outputs, label_names):
    """Load the variables of a checkpoint whose names and shapes match those of the network that
    computes `outputs`, including batch norm's moving averages. The classifier keeps its initial
    values unless all its variables match and `label_names`, a list, equals that of the checkpoint.

    `initial_checkpoint` is the folder of a run, to load its newest checkpoint, or the path of a
    checkpoint. Return a line that says what was loaded and what was not, and the contents of the
    checkpoint's index file in hexadecimal, which include a checksum of each value. Raises Failure
    if the checkpoint cannot be read, or if no trainable variable before the classifier matches."""
    path = _find(initial_checkpoint)
    remedy = f"use another {OPTION}"
    with unreadable_as_failure(path, remedy):
        reader = tf.train.NewCheckpointReader(str(path))
        saved = network_variables(reader)
        same_classes = decode_json(read_statistics(reader).label_names) == label_names
    wanted = variables_used_by(outputs)
    for shapes in saved, wanted:
        for name in STATISTICS & shapes.keys():
            del shapes[name]
    classifier = {name for name in wanted if name.startswith(f"{CLASSIFIER}/")}
    if not (same_classes or classifier):
        raise Failure(
            f"the classes of {path} differ from those of the data set, so the classifier must be "
            f"trained from scratch, but the network has no layer {CLASSIFIER!r}; give its last "
            f"layer that name"
        )
    matching = {name for name, shape in wanted.items() if saved.get(name) == shape}
    if not (same_classes and classifier <= matching):
        matching -= classifier
    # The frozen filters of a whitening stem match even in a different network. They count only if
    # all variables before the classifier are frozen.
    body = wanted.keys() - classifier
    trained = body & {variable.op.name for variable in tf.trainable_variables()}
    if not matching & (trained or body):
        raise Failure(
            f"{path} does not match the network: it has {shortened(sorted(saved))}, but the "
            f"network has {shortened(sorted(wanted))}; use an {OPTION} from the same script with "
            f"the same architecture hyperparameters"
        )
    variables = [variable for variable in tf.global_variables() if variable.op.name in matching]
    with unreadable_as_failure(path, remedy), without_chatter():
        tf.train.Saver(variables).restore(session, str(path))
    fresh = wanted.keys() - matching
    new_classes = set() if same_classes else classifier
    parts = {
        "not loaded (classes differ)": new_classes,
        "not loaded (a shape in the layer differs)": (fresh & saved.keys()) - new_classes,
        "not loaded (missing from the checkpoint)": (fresh - saved.keys()) - new_classes,
        "not used (not in the network)": saved.keys() - wanted.keys(),
    }
    notes = [f"{what}: {shortened(sorted(names), 3)}" for what, names in parts.items() if names]
    loaded = f"weights: {len(matching):,} of {len(wanted):,} variables from {path}"
    return "; ".join([loaded, *notes]), pathlib.Path(f"{path}.index").read_bytes().hex()


def _find(initial_checkpoint):
    """Return the path of the checkpoint that `initial_checkpoint` names, without a suffix."""
    folder = pathlib.Path(initial_checkpoint)
    if (folder / "model").is_dir():
        path = newest(folder / "model")
    else:
        path = pathlib.Path(initial_checkpoint.removesuffix(".index"))
        path = path if pathlib.Path(f"{path}.index").is_file() else None
    if not path:
        raise Failure(
            f"{OPTION}={initial_checkpoint} is neither a run with a checkpoint nor a checkpoint; "
            f"pass the folder of a run, or a path such as runs/mine/model/model.ckpt-189"
        )
    return path
