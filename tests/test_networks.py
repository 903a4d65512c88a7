"""Each network at its default size: what it consists of, whether its operations have GPU kernels,
and how much memory they need. (No GPU is needed.) The Inceptions, which cannot be made smaller,
also train for a step."""

import contextlib
import functools
import io
import math

import numpy as np
import pytest
from fake_cifar10 import make_files, write_folder
from scripts import SCRIPTS, assert_readable_graph, noise
from tensorflow.python.framework import kernels

from senet.engine import convolution, devices
from senet.engine.compat import tf
from senet.layers import GATES, Dropout
from senet.run.checkpoints import newest

pytestmark = pytest.mark.slow

# (method, number of calls, [height, width, channels] of the output), in the network's order, for
# images of 32x32 that the default padding enlarges to 96x96; SE_ResNet does not pad.
MODULES = {
    "SE_ResNet": [("stage", 1, [15, 15, 64]), ("stage", 1, [7, 7, 256]), ("stage", 1, [3, 3, 256])],
    "SE_ResNeXt": [
        ("stage", 1, [96, 96, 256]),
        ("stage", 1, [48, 48, 512]),
        ("stage", 1, [24, 24, 1024]),
    ],
    "SE_Inception_v4": [
        ("Stem", 1, [9, 9, 384]),
        ("Inception_A", 4, [9, 9, 384]),
        ("Reduction_A", 1, [4, 4, 1024]),
        ("Inception_B", 7, [4, 4, 1024]),
        ("Reduction_B", 1, [1, 1, 1536]),
        ("Inception_C", 3, [1, 1, 1536]),
    ],
    "SE_Inception_resnet_v2": [
        ("Stem", 1, [9, 9, 384]),
        ("Inception_resnet_A", 5, [9, 9, 384]),
        ("Reduction_A", 1, [4, 4, 1152]),
        ("Inception_resnet_B", 10, [4, 4, 1152]),
        ("Reduction_B", 1, [1, 1, 2144]),
        ("Inception_resnet_C", 5, [1, 1, 2144]),
    ],
}


class Built:
    """The Graph that a script built for a GPU, in float32, without micro-batches. `folder` is that
    of the run if it also trained, on the CPU."""

    def __init__(self, script, folder):
        self.script, self.folder = script, folder
        self.modules = []  # (method, [height, width, channels] of its output), evaluation first
        self.dropped = []  # (rate, training) of dropout
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(convolution, "chosen_gpus", lambda: ("GPU:0",))
            monkeypatch.setattr(convolution, "has_grouped_convolution", lambda: True)
            self._record(monkeypatch)
            if "Inception" in script.name:
                self._train(monkeypatch)
            else:
                hp = script.hyperparameters(mixed_precision=False, micro_batch_size=0)
                with tf.Graph().as_default():
                    self.parts = script.module.build_graph(noise(2, "0123456789"), hp)
        self.graph = self.parts.inputs.images.graph
        with self.graph.as_default():
            self.trainable = {v.op.name: v.shape.num_elements() for v in tf.trainable_variables()}
            self.variables = tf.global_variables()

    def _train(self, monkeypatch):
        """Train for one epoch, which is one step, at a rate at which the weights do not change."""
        build_graph = self.script.module.build_graph

        def keep(*arguments):
            self.parts = build_graph(*arguments)
            return self.parts

        monkeypatch.setattr(self.script.module, "build_graph", keep)
        write_folder(self.folder / "data", make_files(count=2))
        options = "--batch_size=10 --micro_batch_size=0 --total_epochs=1 --mixed_precision=False"
        rate = "--init_learning_rate=1e-12"
        places = f"--data_dir={self.folder / 'data'}", f"--run_dir={self.folder / 'run'}"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert self.script.module.main([*options.split(), rate, *places]) == 0
        self.output = output.getvalue().splitlines()

    def _record(self, monkeypatch):
        """Make the networks append to the lists `modules` and `dropped`."""

        def recording(kind, module):
            def method(network, x, *arguments, **fields):
                output = module(network, x, *arguments, **fields)
                self.modules.append((kind, output.shape.as_list()[1:]))
                return output

            return method

        def recording_dropout(x, rate, training):
            self.dropped.append((rate, training))
            return Dropout(x, rate, training)

        for kind in {kind for kind, *_ in MODULES[self.script.name]}:
            module = recording(kind, getattr(self.script.network, kind))
            monkeypatch.setattr(self.script.network, kind, module)
        monkeypatch.setattr(self.script.module, "Dropout", recording_dropout, raising=False)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function that builds the network of a Script, once."""
    return functools.cache(
        lambda name: Built(by_name[name], tmp_path_factory.mktemp(name))  # takes seconds
    )


by_name = {script.name: script for script in SCRIPTS}


@pytest.fixture(params=by_name)
def built(request, build):
    return build(request.param)


@pytest.fixture(params=[name for name in by_name if "Inception" in name])
def inception(request, build):
    return build(request.param)


def test_the_network_has_the_expected_parameters_and_se_blocks(built):
    of_se = sum(size for name, size in built.trainable.items() if "/SE/" in name)
    parameters = sum(built.trainable.values())
    assert {16: parameters, 0: parameters - of_se} == built.script.parameters
    gates = built.graph.get_collection(GATES)
    assert len(gates) == 2 * built.script.se_blocks  # for evaluation and for training


def test_the_network_has_the_expected_multiply_adds(built):
    products = 0
    for op in built.graph.get_operations():
        if op.name.startswith("test/") and op.type in ("Conv2D", "MatMul"):
            *inner, _ = op.inputs[1].shape.as_list()
            # A 1x1 convolution is a product whose rows are all pixels of the batch; the operation
            # after it has the shape of one image.
            last = op if op.type == "Conv2D" else op.outputs[0].consumers()[0]
            products += math.prod(inner) * math.prod(last.outputs[0].shape.as_list()[1:])
    assert round(products / 1e9, 2) == built.script.multiply_adds


def test_the_network_has_the_expected_modules_and_map_sizes(built):
    modules = [[(kind, size)] * count for kind, count, size in MODULES[built.script.name]]
    assert built.modules == 2 * sum(modules, [])


def ancestors(fetches):
    """Return the operations that a session runs for `fetches`."""
    found, queue = set(), [getattr(fetch, "op", fetch) for fetch in fetches]
    while queue:
        op = queue.pop()
        if op not in found:
            found.add(op)
            queue += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return found


@functools.cache
def gpu_kernels(op_type):
    """Return TensorFlow's GPU kernels for a type of operation."""
    registered = kernels.get_registered_kernels_for_op(op_type).kernel
    return [kernel for kernel in registered if kernel.device_type in ("GPU", "DEFAULT")]


def has_gpu_kernel(op):
    """Return whether TensorFlow can run `op`, with its types, on a GPU."""
    return any(
        all(
            op.get_attr(limit.name) in map(tf.as_dtype, limit.allowed_values.list.type)
            for limit in kernel.constraint
            if limit.allowed_values.list.type
        )
        for kernel in gpu_kernels(op.type)
    )


def check_kernels(graph_parts, dtype):
    """Check the type of the convolutions in a graph that `build_graph` returned, and that each of
    its operations has a GPU kernel."""
    _, *fetches = graph_parts
    operations = ancestors(tf.nest.flatten(fetches))
    assert {op.get_attr("T") for op in operations if op.type == "Conv2D"} == {dtype}
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow was built without GPU kernels")
    # The only string is the message of a learning-rate check that never fails.
    without = {op for op in operations if not has_gpu_kernel(op)}
    assert [op for op in without if op.outputs[0].dtype != tf.string] == []


def test_every_operation_has_a_gpu_kernel(built):
    check_kernels(built.parts, tf.float32)


def test_a_step_in_mixed_precision_and_micro_batches_has_gpu_kernels(graph, monkeypatch):
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    monkeypatch.setattr(convolution, "chosen_gpus", lambda: ("GPU:0",))
    script = SCRIPTS[0]
    hp = script.hyperparameters(**script.tiny, micro_batch_size=4)
    check_kernels(script.module.build_graph(noise(2), hp), tf.bfloat16)


# Operations whose output shares the memory of their input.
ALIASES = {"Reshape", "Identity", "ReadVariableOp", "VarHandleOp"}


def live_tensor_peak(operations, images):
    """Return the peak memory of the outputs of `operations`, in bytes, if the operations run in the
    order of their creation and each output is freed after its last use. Count unknown dimensions as
    `images`. Ignore the only output of unknown rank, which batch norm reserves for cuDNN."""
    order = sorted(operations, key=lambda op: op._id)
    owner, last_use = {}, {}
    for op in order:
        sources = [owner.get(tensor.op, tensor.op) for tensor in op.inputs]
        owner[op] = sources[0] if op.type in ALIASES and sources else op
        last_use |= dict.fromkeys(sources, op)
    sizes = {}
    for op in order:
        shapes = [t.shape.as_list() for t in op.outputs if t.shape.rank is not None]
        if any(shape.count(None) > 1 for shape in shapes):  # a sum over no axes: as its input
            sizes[op] = sizes.get(owner.get(op.inputs[0].op, op.inputs[0].op), 0)
            continue
        sizes[op] = sum(
            math.prod(length or images for length in tensor.shape.as_list()) * tensor.dtype.size
            for tensor in op.outputs
            if tensor.dtype != tf.resource and tensor.shape.rank is not None
        )
    live = peak = 0
    for op in order:
        live += sizes[op] if op in last_use else 0
        peak = max(peak, live)
        sources = {owner.get(tensor.op, tensor.op) for tensor in op.inputs}
        live -= sum(sizes[source] for source in sources if last_use[source] is op)
    return peak


def test_the_default_command_needs_less_than_8_gigabytes(built):
    """In float32, which needs more than mixed precision."""
    default = built.script.hyperparameters()
    images = default.micro_batch_size or default.batch_size
    peak = live_tensor_peak(ancestors(built.parts.train_step.values()), images)
    variables = sum(v.shape.num_elements() for v in built.variables)
    gradients = sum(built.trainable.values())
    assert peak + 4 * (variables + gradients) < 8e9  # not counted: cuDNN, fragmentation


def test_an_inception_trains(inception):
    row, done, after = inception.output[-3:]
    run_dir = inception.folder / "run"
    assert row.startswith("epoch: 1/1, train_loss: ")
    assert row.startswith((run_dir / "logs.txt").read_text().strip())
    assert done == f"done: checkpoints in {run_dir}/model"
    assert after == f"next: python {inception.script.name}.py evaluate --run_dir={run_dir}"
    assert_readable_graph(run_dir)


def test_the_gradient_of_the_first_layer_is_small(inception):
    """After the first step, the momentum is the gradient."""
    reader = tf.train.load_checkpoint(str(newest(inception.folder / "run" / "model")))
    name = "Stem/branch/conv1/conv/weights"
    weights, gradient = (reader.get_tensor(n) for n in (name, f"{name}/Momentum"))
    # About 2. If batch norm started with offsets of 0, it would be about 100.
    assert 0.1 < np.linalg.norm(gradient) / np.linalg.norm(weights) < 4


def test_training_drops_a_fifth_of_the_features(inception):
    assert inception.dropped == [(0.2, False), (0.2, True)]
