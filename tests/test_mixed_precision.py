"""Check the types in which a network computes, and when it uses bfloat16."""

import numpy as np
import pytest
from scripts import SCRIPTS

from senet.engine import devices
from senet.engine.compat import tf


def logits(script, images, mixed_precision):
    """Return the logits of a network for `images`, as a tensor and as an array."""
    hp = script.hyperparameters(mixed_precision=mixed_precision, **script.tiny)
    tf.set_random_seed(0)
    output = script.network(tf.constant(images), False, hp).model
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return output, session.run(output)


@pytest.mark.parametrize(
    "script",
    # One Inception is enough: both use the same layers.
    [SCRIPTS[1], pytest.param(SCRIPTS[3], marks=pytest.mark.slow)],
    ids=lambda script: script.name,
)
def test_maps_are_bfloat16_and_variables_are_float32(graph, rng, script, monkeypatch):
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
    "capability, supported", [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_a_gpu_computes_in_bfloat16_from_ampere_on(monkeypatch, capability, supported):
    details = {"compute_capability": capability}
    monkeypatch.setattr(devices, "chosen_gpus", lambda: ("GPU:0",))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
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
