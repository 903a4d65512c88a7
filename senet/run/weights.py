"""Start a run from the weights of another one: the hyperparameter `initial_checkpoint`."""

import pathlib

from senet.averaging import SUFFIX
from senet.data.inputs import STATISTICS
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.engine.text import shortened
from senet.layers import CLASSIFIER
from senet.run.checkpoints import (
    SavedCheckpoint,
    describe_difference,
    newest,
    variables_used_by,
)

OPTION = "--initial_checkpoint"


def load_weights(session, initial_checkpoint, outputs, label_names):
    """Load the variables of the network that computes `outputs` from a checkpoint, including batch
    norm's moving averages. The classifier keeps its initial values unless `label_names`, a list,
    equals that of the checkpoint.

    `initial_checkpoint` is the folder of a run, to load its newest checkpoint, or the path of a
    checkpoint. Return a line that says what was loaded and what was not, and the contents of the
    checkpoint's index file in hexadecimal, which include a checksum of each value. Raises Failure
    if the checkpoint cannot be read, or if another variable than the classifier's does not
    match."""
    path = _find(initial_checkpoint)
    saved = SavedCheckpoint(path, f"use another {OPTION}")
    same_classes = saved.label_names == label_names
    wanted = variables_used_by(outputs)
    for shapes in saved.network, wanted:
        for name in STATISTICS & shapes.keys():
            del shapes[name]
    saved_body, body = map(_without_classifier, (saved.network, wanted))
    classifier = wanted.keys() - body.keys()
    if not (same_classes or classifier):
        raise Failure(
            f"the classes of {path} differ from those of the data set, so the classifier must be "
            f"trained from scratch, but the network has no layer {CLASSIFIER!r}; give its last "
            f"layer that name"
        )
    if difference := describe_difference(saved_body, body):
        options = " ".join(f"--{name}={value}" for name, value in saved.fields.items())
        raise Failure(
            f"{path} does not match the network: {difference}; use an {OPTION} from the same "
            f"script, with {options or 'the options that it was trained with'}"
        )
    loaded = wanted.keys() if same_classes else body.keys()
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    names = {}
    for name in loaded:
        # An average starts with the value of its variable.
        both = {name, name + SUFFIX} & variables.keys()
        names |= {variables[v]: saved.source(name) for v in both}
    saved.load(session, names)
    line = f"weights: {len(loaded):,} of {len(wanted):,} variables from {path}"
    if not same_classes:
        line += f"; not loaded (classes differ): {shortened(sorted(classifier))}"
    return line, pathlib.Path(f"{path}.index").read_bytes().hex()


def _without_classifier(shapes):
    """Return the items of `shapes`, {name of a variable: shape}, before the classifier."""
    return {name: s for name, s in shapes.items() if not name.startswith(f"{CLASSIFIER}/")}


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
