"""A network restored from a checkpoint."""

import contextlib
import dataclasses
import functools
import pathlib
import sys

import numpy as np

from senet.data.datasets import load_dataset, steps_per_epoch
from senet.data.inputs import inputs_with
from senet.engine.compat import tf
from senet.engine.devices import session_config, use_devices
from senet.engine.errors import Failure
from senet.evaluation import evaluation_outputs
from senet.layers import CLASSIFIER
from senet.run.checkpoints import (
    SavedCheckpoint,
    describe_difference,
    newest,
    variables_used_by,
)
from senet.run.folder import RunFolder
from senet.run.rows import best_epoch, read_rows

BATCH = 64  # images at once, unless micro_batch_size says otherwise


def load(network, run_dir, checkpoint=""):
    """Return the TrainedNetwork of a run or of a published network, on all devices. `network` is
    the class in the script that trained it."""
    Hyperparameters = sys.modules[network.__module__].Hyperparameters
    fields = Hyperparameters.load(pathlib.Path(run_dir) / "hyperparameters.json")
    here = {"run_dir": str(run_dir), "devices": "all"}  # those in the file are of its machine
    return TrainedNetwork(network, Hyperparameters(**fields | here), checkpoint)


class TrainedNetwork(contextlib.AbstractContextManager):
    """A network restored from a checkpoint, in a `graph` and a `session` of its own, which `close`
    or a `with` statement closes. It writes nothing, and training may continue at the same time.

    `network` is the class of the network. `checkpoint` is a path, a name in the run's folder such
    as model.ckpt-189, "best" for that of the epoch with the best test accuracy, or "" for the
    newest. The attribute `label_names` lists the classes that the network was trained on; `step` is
    the number of training steps. Raises Failure if there is no such checkpoint, or if it does not
    match the network."""

    def __init__(self, network, hyperparameters, checkpoint=""):
        self.network = network
        self.hyperparameters = hp = hyperparameters
        self.checkpoint = _find(checkpoint, hp)
        saved = SavedCheckpoint(self.checkpoint, "use another --checkpoint")
        saved.check_fields(hp.network())
        self.statistics = saved.statistics
        self.label_names = saved.label_names
        self.step = int(saved.get_tensor(tf.GraphKeys.GLOBAL_STEP))
        self.checksums = saved.checksums  # those of a published network are not known
        classes = len(self.label_names)
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device(use_devices(hp.devices)[0]):
            self.inputs = inputs_with(hp.image_size, self.statistics)
            build = functools.partial(network, hyperparameters=hp, classes=classes)
            # The averages, if there are any, are loaded into the variables themselves.
            self.outputs = evaluation_outputs(build, self.inputs, dataclasses.replace(hp, ema=0.0))
            if difference := describe_difference(saved.network, variables_used_by(self.outputs)):
                raise Failure(
                    f"{self.checkpoint} does not match {network.__name__} with these "
                    f"hyperparameters: {difference}; use the --run_dir and the hyperparameters "
                    f"that it was trained with"
                )
            self.session = tf.Session(config=session_config(hp))
            saved.load(self.session, {v: saved.source(v.op.name) for v in tf.global_variables()})

    def close(self):
        """Free the memory of the variables."""
        self.session.close()

    def __exit__(self, *_):
        self.close()

    def probabilities(self, images):
        """Return the probability of each class, float32 [batch, classes], for `images`, uint8
        [batch, side, side, 3]."""
        return self._run(self.outputs["probabilities"], images)

    def features(self, images):
        """Return the classifier's input, float32 [batch, features], for such `images`."""
        product = self.graph.get_operation_by_name(f"test/{CLASSIFIER}/MatMul")
        return self._run(product.inputs[0], images)

    def _run(self, tensor, images):
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise TypeError(f"images must be uint8, pixel values of 0 to 255, got {images.dtype}")
        size = self.hyperparameters.micro_batch_size or BATCH
        parts = [images[first : first + size] for first in range(0, len(images), size)]
        # With test-time augmentation, the features of variants follow those of the images.
        run = functools.partial(self.session.run, tensor)
        return np.concatenate([run({self.inputs.images: part})[: len(part)] for part in parts])


def _find(checkpoint, hyperparameters):
    """Return the path of a checkpoint, without a suffix."""
    run = RunFolder(hyperparameters)
    name = _best(run) if checkpoint == "best" else checkpoint.removesuffix(".index")
    path = pathlib.Path(name) if "/" in name else run.model / name
    if not checkpoint and not (path := newest(run.model)):
        raise Failure(f"{run.model} has no checkpoint; use the --run_dir of another run")
    if not pathlib.Path(f"{path}.index").exists():
        raise Failure(
            f"--checkpoint={checkpoint}: {path}.index does not exist; pass the path of a "
            f"checkpoint, or the name of one in {run.model}"
        )
    return path


def _best(run):
    """Return the name of the checkpoint of a RunFolder's best epoch. The data set that it was
    trained on tells how many steps an epoch has."""
    best = best_epoch(read_rows(run.row_file)) or 0
    hp = run.hyperparameters
    dataset = hp.load(run.settings)["dataset"]
    train = load_dataset(dataset, hp.data_dir, hp.image_size, hp.validation).train
    return f"model.ckpt-{best * steps_per_epoch(train, hp.batch_size)}"
