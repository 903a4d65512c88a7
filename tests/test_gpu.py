"""What can be told about GPUs without one: TensorFlow knows which operations have a GPU kernel."""

import dataclasses
import math

import numpy as np
import pytest
from scripts import by_script
from tensorflow.python.framework import kernels

from senet import convolution, devices
from senet.compat import tf
from senet.data.datasets import Dataset, Split


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Build graphs as on a machine with an Ampere GPU."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    for module in devices, convolution:
        monkeypatch.setattr(module, "chosen_gpus", lambda: ("GPU:0",))
        monkeypatch.setattr(module, "has_grouped_convolution", lambda: True)


def noise():
    """A Dataset that only lends its shapes."""
    split = Split(np.zeros([2, 32, 32, 3], np.uint8), np.zeros(2, np.int32))
    return Dataset("noise", split, split, ["a", "b"])


def ancestors(fetches):
    """The operations that a session runs for `fetches`."""
    found, todo = set(), [getattr(fetch, "op", fetch) for fetch in fetches]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return found


def has_gpu_kernel(op):
    """Whether TensorFlow can run `op`, with its types, on a GPU."""
    return any(
        kernel.device_type in ("GPU", "DEFAULT")
        and all(
            op.get_attr(limit.name) in map(tf.as_dtype, limit.allowed_values.list.type)
            for limit in kernel.constraint
            if limit.allowed_values.list.type
        )
        for kernel in kernels.get_registered_kernels_for_op(op.type).kernel
    )


@pytest.mark.parametrize("mixed_precision", [True, False])
@by_script
def test_every_operation_of_a_step_has_a_gpu_kernel(graph, script, mixed_precision, pretend_gpu):
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow was built without GPU kernels")
    hp = script.hyperparameters(mixed_precision=mixed_precision, micro_batch_size=4)
    _, train_step, epoch_end, test_batch = script.module.build_graph(noise(), hp)
    operations = ancestors(tf.nest.flatten([train_step, epoch_end, test_batch]))
    convolutions = [op for op in operations if op.type == "Conv2D"]
    assert {op.get_attr("T") for op in convolutions} == {
        tf.bfloat16 if mixed_precision else tf.float32
    }
    # The one text is the message of the learning rate's own check, which never fails.
    assert {
        op.type + str(op.outputs)
        for op in operations
        if not has_gpu_kernel(op) and op.outputs[0].dtype != tf.string
    } == set()


def test_an_operation_without_a_gpu_kernel_is_found(graph):
    assert not has_gpu_kernel(tf.io.decode_png(tf.constant(b"")).op)
    assert has_gpu_kernel(tf.nn.relu(tf.ones([1])).op)


ALIASES = {"Reshape", "Identity", "ReadVariableOp", "VarHandleOp"}  # they show another's memory


def live_tensor_peak(operations, pictures):
    """The most bytes that the outputs of `operations`, run in the order in which they were made,
    take at once, if each is given back after its last use. An unknown length is the `pictures`; the
    one output of unknown rank, what batch norm reserves for cuDNN, does not count."""
    order = sorted(operations, key=lambda op: op._id)
    owner, last_use = {}, {}
    for op in order:
        sources = [owner.get(tensor.op, tensor.op) for tensor in op.inputs]
        owner[op] = sources[0] if op.type in ALIASES and sources else op
        last_use |= dict.fromkeys(sources, op)
    sizes = {
        op: sum(
            math.prod(length or pictures for length in tensor.shape.as_list()) * tensor.dtype.size
            for tensor in op.outputs
            if tensor.dtype != tf.resource and tensor.shape.rank is not None
        )
        for op in last_use
    }
    live = peak = 0
    for op in order:
        live += sizes.get(op, 0)
        peak = max(peak, live)
        live -= sum(
            sizes[source]
            for source in {owner.get(t.op, t.op) for t in op.inputs}
            if last_use[source] is op
        )
    return peak


def test_live_tensor_peak_by_hand(graph):
    x = tf.placeholder(tf.float32, [None, 10])  # 80 bytes for two pictures
    y = tf.nn.relu(tf.reshape(x, [-1, 5, 2])) + 1.0  # relu, then a sum: 80 each, and a constant
    z = tf.reduce_sum(y)
    # At the sum: relu's output, the constant of 4 bytes and its own; x and the shape are gone.
    assert live_tensor_peak(ancestors([z]), pictures=2) == 80 + 4 + 80


@pytest.mark.parametrize("mixed_precision", [True, False])
@by_script
def test_the_default_command_fits_16_gigabytes(graph, script, mixed_precision, pretend_gpu):
    default = script.hyperparameters()
    pictures = default.micro_batch_size or default.batch_size
    whole = dataclasses.replace(default, micro_batch_size=0, mixed_precision=mixed_precision)
    _, train_step, _, _ = script.module.build_graph(noise(), whole)
    peak = live_tensor_peak(ancestors(train_step.values()), pictures)
    variables, sums = (
        4 * sum(v.shape.num_elements() for v in group)
        for group in (tf.global_variables(), tf.trainable_variables())
    )
    assert peak + variables + sums < 8e9  # the rest is for cuDNN and fragmentation
