"""Check without a GPU that all operations have GPU kernels and that training fits into memory."""

import dataclasses
import functools
import math

import pytest
from scripts import SCRIPTS, noise
from tensorflow.python.framework import kernels

from senet.engine import convolution, devices
from senet.engine.compat import tf


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Build graphs as on a machine with an Ampere GPU."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    for module in devices, convolution:
        monkeypatch.setattr(module, "chosen_gpus", lambda: ("GPU:0",))
        monkeypatch.setattr(module, "has_grouped_convolution", lambda: True)


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


def check_kernels(graph_parts, mixed_precision):
    """Check the types of the convolutions in a graph that `build_graph` returned, and that each of
    its operations has a GPU kernel."""
    _, *fetches = graph_parts
    operations = ancestors(tf.nest.flatten(fetches))
    convolutions = [op for op in operations if op.type == "Conv2D"]
    dtype = tf.bfloat16 if mixed_precision else tf.float32
    assert {op.get_attr("T") for op in convolutions} == {dtype}
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow was built without GPU kernels")
    # The only string is the message of a learning-rate check that never fails.
    without = {op for op in operations if not has_gpu_kernel(op)}
    assert [op for op in without if op.outputs[0].dtype != tf.string] == []


@pytest.mark.parametrize("mixed_precision", [True, False])
@pytest.mark.slow
def test_a_step_in_micro_batches_has_gpu_kernels(graph, mixed_precision, pretend_gpu):
    script = SCRIPTS[0]
    sizes = script.tiny | {"micro_batch_size": 4}
    hp = script.hyperparameters(**sizes, mixed_precision=mixed_precision)
    check_kernels(script.module.build_graph(noise(2), hp), mixed_precision)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, mixed_precision",
    # float32 needs more memory. Mixed precision is checked once, because all scripts share the
    # layers.
    [*((script, False) for script in SCRIPTS), (SCRIPTS[0], True)],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_default_command_needs_less_than_8_gigabytes_and_has_gpu_kernels(
    graph, script, mixed_precision, pretend_gpu
):
    default = script.hyperparameters()
    images = default.micro_batch_size or default.batch_size
    # One micro-batch, without the loop.
    whole = dataclasses.replace(default, micro_batch_size=0, mixed_precision=mixed_precision)
    graph_parts = script.module.build_graph(noise(2), whole)
    _, train_step, _, _ = graph_parts
    peak = live_tensor_peak(ancestors(train_step.values()), images)
    variables = tf.global_variables() + tf.trainable_variables()  # and their gradients' sums
    variable_bytes = 4 * sum(v.shape.num_elements() for v in variables)
    assert peak + variable_bytes < 8e9  # not counted: cuDNN, fragmentation
    check_kernels(graph_parts, mixed_precision)
