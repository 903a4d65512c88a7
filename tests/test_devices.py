"""How the devices of a process and the types in which they compute are chosen and described."""

import os

import numpy as np
import pytest
from conftest import run_python
from scripts import SCRIPTS

import SE_ResNet
from senet.engine import devices
from senet.engine.compat import tf


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretend that the machine has two GPUs, of which only the second supports bfloat16."""
    details = {
        "GPU:0": {"device_name": "Tesla T4", "compute_capability": (7, 5)},
        "GPU:1": {"device_name": "NVIDIA A100", "compute_capability": (8, 0)},
    }
    monkeypatch.setattr(devices, "visible_gpus", lambda: tuple(details))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    monkeypatch.setattr(devices, "_chosen", "all")


@pytest.mark.parametrize(
    "choice, status, message",
    [
        ("gpu1", 2, "--devices must be all, "),
        ("cpu:0,cpu:2", 2, "--devices must be all, "),
        ("cpu:0,cpu:1,cpu:2", 2, "--batch_size must be a multiple of 3, the number of devices,"),
        ("0,2", 1, "--devices=0,2 names a GPU that TensorFlow does not see (it sees 0, 1)"),
    ],
)
def test_invalid_devices_are_rejected_before_data_is_read(
    two_gpus, tmp_path, capsys, choice, status, message
):
    folders = [f"--data_dir={tmp_path / 'nowhere'}", f"--run_dir={tmp_path / 'run'}"]
    assert SE_ResNet.main([f"--devices={choice}", *folders]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice, count", [("cpu:0", 1), ("cpu:1,cpu:0", 2)])
def test_a_session_has_the_requested_cpu_devices(monkeypatch, choice, count):
    monkeypatch.setattr(devices, "_chosen", "all")
    devices.use_devices(choice)
    config = devices.session_config(SE_ResNet.Hyperparameters(devices=choice))
    with tf.Session(config=config) as session:
        names = {device.name.rpartition("/device:")[2] for device in session.list_devices()}
    assert names == {f"CPU:{number}" for number in range(count)}
    # XLA is off; test_run.py turns it on.
    xla = config.graph_options.optimizer_options.global_jit_level
    assert xla == tf.OptimizerOptions.DEFAULT


def test_features_of_gpus_are_not_assumed_on_the_cpu(two_gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "no flags")
    monkeypatch.setattr(devices, "_cpu_has_grouped_convolution", lambda: False)
    for choice, bfloat16, grouped in [
        ("all", False, True),
        ("0", False, True),
        ("1", True, True),
        ("0,1", False, True),
        ("cpu:0", False, False),
    ]:
        devices.use_devices(choice)
        assert devices.has_bfloat16() is bfloat16, choice
        assert devices.has_grouped_convolution() is grouped, choice


@pytest.mark.slow
def test_a_cpu_without_onednn_has_no_grouped_convolution():
    code = "from senet.engine import devices; print(devices.has_grouped_convolution())"
    assert run_python("-c", code, TF_ENABLE_ONEDNN_OPTS="0") == (0, "False\n", "")


def test_the_cpu_can_be_used_instead_of_gpus(two_gpus):
    assert devices.use_devices("cpu:0") == ["/cpu:0"]
    config = devices.session_config(SE_ResNet.Hyperparameters(devices="cpu:0"))
    assert (config.device_count["CPU"], config.device_count["GPU"]) == (1, 0)
    assert "no GPU" not in devices.describe_devices(tf.distribute.get_strategy())


@pytest.mark.parametrize(
    "choice, names, words",
    [
        ("1", ["/gpu:1"], "GPU NVIDIA A100"),
        ("all", ["/gpu:0", "/gpu:1"], "2 GPUs (Tesla T4, NVIDIA A100)"),
    ],
)
def test_the_gpus_in_use_are_reported(two_gpus, choice, names, words):
    class Strategy:
        num_replicas_in_sync = len(names)

    assert devices.use_devices(choice) == names
    assert devices.describe_devices(Strategy()) == words


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_only_the_cores_that_the_process_may_use_are_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "none")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        described = devices.describe_devices(tf.distribute.get_strategy())
    finally:
        os.sched_setaffinity(0, before)
    assert described == "1 CPU core (TensorFlow sees no GPU)"


def logits(script, images, mixed_precision):
    """Return the logits of a network for `images`, as a tensor and as an array."""
    hp = script.hyperparameters(mixed_precision=mixed_precision, **script.tiny)
    tf.set_random_seed(0)
    output = script.network(tf.constant(images), False, hp).model
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return output, session.run(output)


@pytest.mark.slow
def test_maps_are_bfloat16_and_variables_are_float32(graph, rng, monkeypatch):
    script = SCRIPTS[1]
    monkeypatch.setattr(devices, "has_bfloat16", lambda: True)
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    output, values = logits(script, images, mixed_precision=True)
    assert output.dtype == tf.float32
    floating = {v.dtype.base_dtype for v in tf.global_variables() if v.dtype.is_floating}
    assert floating == {tf.float32}
    operations = graph.get_operations()
    assert {op.get_attr("T") for op in operations if op.type == "Conv2D"} == {tf.bfloat16}
    norms = [op for op in operations if op.type == "FusedBatchNormV3"]
    assert {op.get_attr("U") for op in norms} == {tf.float32}
    gates = [op for op in operations if op.type == "Sigmoid"]
    assert gates
    assert {op.get_attr("T") for op in gates} == {tf.float32}

    with tf.Graph().as_default():
        _, in_float32 = logits(script, images, mixed_precision=False)
    # bfloat16 has 8 significant bits.
    assert np.corrcoef(values.ravel(), in_float32.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    "flags, supported",
    [
        ("flags : fpu avx512f avx512_bf16 avx512_fp16", True),
        ("flags : fpu avx512f amx_bf16 amx_tile", True),
        ("flags : fpu avx2 avx512f", False),
        (None, False),  # not Linux
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(
    tmp_path, monkeypatch, flags, supported
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(devices, "CPU_FLAGS", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices, "chosen_gpus", lambda: ())
    assert devices.has_bfloat16() is supported


@pytest.mark.parametrize(
    "requested, supported, dtype, words",
    [
        (True, True, tf.bfloat16, "mixed precision (bfloat16)"),
        (True, False, tf.float32, "float32 (no bfloat16 support)"),
        (False, True, tf.float32, "float32"),
    ],
)
def test_the_precision_in_use_is_described(monkeypatch, requested, supported, dtype, words):
    monkeypatch.setattr(devices, "has_bfloat16", lambda: supported)
    assert devices.compute_dtype(requested) == dtype
    assert devices.describe_precision(requested) == words
