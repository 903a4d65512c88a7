"""What can be told about GPUs without one: TensorFlow knows which operations have a GPU kernel."""

import numpy as np
import pytest
from tensorflow.python.framework import kernels
from test_scripts import by_name

from senet import convolution, devices
from senet.compat import tf
from senet.datasets import Dataset, Split


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Build graphs as on a machine with an Ampere GPU."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    for module in devices, convolution:
        monkeypatch.setattr(module, "visible_gpus", lambda: ("GPU:0",))
        monkeypatch.setattr(module, "has_grouped_convolution", lambda: True)


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
@by_name
def test_every_operation_of_a_step_has_a_gpu_kernel(graph, script, mixed_precision, pretend_gpu):
    if not tf.test.is_built_with_cuda():
        pytest.skip("this TensorFlow was built without GPU kernels")
    split = Split(np.zeros([2, 32, 32, 3], np.uint8), np.zeros(2, np.int32))
    hp = script.Hyperparameters(mixed_precision=mixed_precision, micro_batch_size=4)
    _, train_step, epoch_end, test_sums = script.build_graph(
        Dataset("noise", split, split, ["a", "b"]), 1, hp
    )
    operations = ancestors([*train_step.values(), *epoch_end.values(), test_sums])
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
