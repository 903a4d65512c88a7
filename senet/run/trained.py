"""A network restored from a checkpoint."""

import contextlib
import dataclasses
import functools
import pathlib

import numpy as np

from senet.averaging import names_in
from senet.data.inputs import decode_json, inputs_with, read_statistics
from senet.engine.compat import tf, without_chatter
from senet.engine.devices import session_config, use_devices
from senet.engine.errors import Failure
from senet.engine.memory import check_test_memory
from senet.evaluation import evaluation_outputs
from senet.hyperparameters import check_path
from senet.run.checkpoints import (
    check_fields,
    describe_difference,
    network_fields,
    network_variables,
    newest,
    unreadable_as_failure,
    variables_used_by,
)

REMEDY = "use another --checkpoint"


class TrainedNetwork:
    """A network restored from a checkpoint, in its own graph and session; use it in a `with`
    statement. It writes nothing, and training may continue at the same time.

    `network` is the class of the network. `checkpoint` is a path, or a name in the run's folder
    such as model.ckpt-189; "" means the newest checkpoint. The attribute `label_names` lists the
    classes that the network was trained on; `step` is the number of training steps. Raises Failure
    if there is no such checkpoint, or if it does not match the network."""

    def __init__(self, network, hyperparameters, checkpoint=""):
        self.network, self.hyperparameters = network, hyperparameters
        model_folder = pathlib.Path(hyperparameters.run_dir) / "model"
        self.checkpoint = _named(checkpoint, model_folder) if checkpoint else _newest(model_folder)
        with unreadable_as_failure(self.checkpoint, REMEDY):
            self.reader = reader = tf.train.NewCheckpointReader(str(self.checkpoint))
            self.statistics = read_statistics(reader)
            self.variables = network_variables(reader)
            self.step = int(reader.get_tensor(tf.GraphKeys.GLOBAL_STEP))
        check_fields(self.checkpoint, network_fields(reader), hyperparameters.network())
        self.label_names = decode_json(self.statistics.label_names)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            hp = self.hyperparameters
            stack.enter_context(tf.Graph().as_default())
            stack.enter_context(tf.device(use_devices(hp.devices)[0]))
            self.inputs = inputs_with(hp.image_size, self.statistics)
            classes = self.inputs.classes
            network = functools.partial(self.network, hyperparameters=hp, classes=classes)
            # The averages, if there are any, are loaded into the variables themselves.
            self.outputs = evaluation_outputs(network, self.inputs, dataclasses.replace(hp, ema=0))
            self.predictions = self.outputs["probabilities"]
            check_test_memory()
            self.session = stack.enter_context(tf.Session(config=session_config(hp)))
            self._restore()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._open.close()

    def _restore(self):
        if difference := describe_difference(self.variables, variables_used_by(self.outputs)):
            raise Failure(
                f"{self.checkpoint} does not match {self.network.__name__} with these "
                f"hyperparameters: {difference}; use the --run_dir and the hyperparameters that it "
                f"was trained with"
            )
        # A training process may have replaced or deleted it in the meantime.
        with unreadable_as_failure(self.checkpoint, REMEDY), without_chatter():
            variables = {variable.op.name: variable for variable in tf.global_variables()}
            saved = names_in(self.reader, variables)
            saver = tf.train.Saver({saved[name]: v for name, v in variables.items()})
            saver.restore(self.session, str(self.checkpoint))

    def probabilities(self, images):
        """Return the probability of each class, float32 [batch, classes], for `images`, uint8
        [batch, side, side, 3]."""
        size = self.hyperparameters.micro_batch_size or len(images)
        parts = np.array_split(images, -(-len(images) // size))
        run, placeholder = self.session.run, self.inputs.images
        return np.concatenate([run(self.predictions, {placeholder: part}) for part in parts])


def _named(checkpoint, model_folder):
    check_path("--checkpoint", checkpoint)
    name = checkpoint.removesuffix(".index")
    path = pathlib.Path(name) if "/" in name else model_folder / name
    if not pathlib.Path(f"{path}.index").exists():
        raise Failure(
            f"--checkpoint={checkpoint}: {path}.index does not exist; pass the path of a "
            f"checkpoint, or the name of one in {model_folder}"
        )
    return path


def _newest(model_folder):
    if not (path := newest(model_folder)):
        raise Failure(
            f"{model_folder} has no checkpoint; train first, or use the --run_dir of an existing "
            f"run"
        )
    return path
