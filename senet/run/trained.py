"""A network as a checkpoint has it."""

import contextlib
import pathlib
import sys

import numpy as np

from senet.compat import tf, without_chatter
from senet.data.inputs import inputs_of, names_from_numbers
from senet.devices import session_config
from senet.errors import Failure, first_line
from senet.evaluation import evaluation_outputs
from senet.run.checkpoints import newest_readable, read_through
from senet.run.cluster import device_names


class TrainedNetwork:
    """A network, the class `network`, with the values of a checkpoint, in a graph and a session of
    its own; use it in a `with` statement. It writes nothing, and a run may go on beside it.

    `checkpoint` is a path, or a name like model.ckpt-189 in the run's folder; "" is the newest of
    `run_dir`. `label_names` are those it was trained on, whatever the data set is now. Raises
    Failure if there is no such checkpoint, or one of another network."""

    def __init__(self, network, hyperparameters, checkpoint=""):
        self.network, self.hyperparameters = network, hyperparameters
        model_folder = pathlib.Path(hyperparameters.run_dir) / "model"
        self.checkpoint = _named(checkpoint, model_folder) if checkpoint else _newest(model_folder)
        with _readable(self.checkpoint):
            read_through(self.checkpoint)
            reader = tf.train.NewCheckpointReader(str(self.checkpoint))
            self.mean, self.std, label_names = (
                reader.get_tensor(f"input/{name}") for name in ("mean", "std", "label_names")
            )
        self.label_names = names_from_numbers(label_names)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            hp = self.hyperparameters
            stack.enter_context(tf.Graph().as_default())
            stack.enter_context(tf.device(device_names(hp.devices)[0]))
            self.inputs = inputs_of(hp.image_size, self.mean, self.std, self.label_names)
            # The scope in which training has it too.
            with tf.name_scope("test"):
                network = self.network(self.inputs.normalised, False, hp, len(self.label_names))
                self.outputs = evaluation_outputs(network.model, self.inputs.labels)
            self.answer = tf.nn.softmax(network.model, name="answer")
            self.session = stack.enter_context(tf.Session(config=session_config(hp)))
            # Training, going on beside this, may have replaced it by newer ones meanwhile.
            with _readable(self.checkpoint):
                self._restore()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._open.close()

    def _restore(self):
        kept = tf.train.NewCheckpointReader(str(self.checkpoint)).get_variable_to_shape_map()
        here = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
        others = [name for name in kept if f"{name}/Momentum" in kept and name not in here]
        if others or any(kept.get(name) != shape for name, shape in here.items()):
            raise Failure(
                f"{self.checkpoint} is a checkpoint of another network than "
                f"{self.network.__name__} with these hyperparameters: give the --run_dir, and the "
                f"hyperparameters, that it was trained with"
            )
        with without_chatter():
            tf.train.Saver().restore(self.session, str(self.checkpoint))

    def probabilities(self, images):
        """float32 [batch, classes] for pictures, uint8 [batch, side, side, 3]."""
        hp = self.hyperparameters
        pieces = np.array_split(images, -(-len(images) // (hp.micro_batch_size or len(images))))
        answers = [self.session.run(self.answer, {self.inputs.images: piece}) for piece in pieces]
        return np.concatenate(answers)


@contextlib.contextmanager
def _readable(checkpoint):
    try:
        yield
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise Failure(
            f"{checkpoint}: cannot be read ({first_line(error)}); name another --checkpoint"
        ) from None


def _named(checkpoint, model_folder):
    name = checkpoint.removesuffix(".index")
    path = pathlib.Path(name) if "/" in name else model_folder / name
    if not pathlib.Path(f"{path}.index").exists():
        raise Failure(f"checkpoint={checkpoint}: there is no {path}.index")
    return path


def _newest(model_folder):
    path, damaged = newest_readable(model_folder) if model_folder.exists() else (None, [])
    for _, message in damaged:
        print(f"warning: {message}", file=sys.stderr)
    if not path:
        raise Failure(
            f"no checkpoint in {model_folder}: train first, or give the --run_dir of a run"
        )
    return path
