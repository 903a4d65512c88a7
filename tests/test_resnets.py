"""Compare SE_ResNet and a block of SE_ResNeXt with NumPy versions, written out."""

import numpy as np
import numpy_layers as nl
import pytest
from conftest import load_values
from scripts import SCRIPTS, TINY

import SE_ResNet
import SE_ResNeXt
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf


def draw_values(session, rng):
    """Give the variables random values; return {name: value}."""
    drawn = {}
    for variable in tf.global_variables():
        positive = variable.op.name.endswith(("moving_variance", "gamma"))
        draw, limits = (rng.uniform, (0.5, 1.5)) if positive else (rng.normal, (0, 0.3))
        drawn[variable] = draw(*limits, variable.shape).astype(np.float32)
    load_values(session, drawn)
    return {variable.op.name: value for variable, value in drawn.items()}


def squeeze_excitation(x, values, block):
    dense = [(n, kind) for n in (1, 2) for kind in ("weights", "bias")]
    weights = (values[f"{block}/SE/fully_connected{n}/{kind}"] for n, kind in dense)
    return nl.squeeze_excitation(x, *weights)


def test_se_resnet_matches_numpy(graph, rng):
    """Two residual blocks per stage: convolution, pooling, batch norm without a scale, then
    relu(x + 2 SE(branch)), the maximum over each map, and a linear layer on an eighth of it."""
    sizes = {"width": 2, "blocks": 2, "reduction_ratio": 2, "padding": 1}
    hp = SE_ResNet.Hyperparameters(**sizes, mixed_precision=False)
    x = rng.normal(size=(3, 22, 22, 3)).astype(np.float32)
    network = SE_ResNet.SE_ResNet(tf.constant(x), False, hp, classes=5)
    with tf.Session() as session:
        values = draw_values(session, rng)
        logits = session.run(network.model)

    def conv_bn(x, name, pool=1):
        x = nl.max_pooling(nl.convolution(x, values[f"{name}/conv/weights"]), pool, pool)
        parts = "beta", "moving_mean", "moving_variance"
        return nl.batch_norm(x, 1, *(values[f"{name}/batch_norm/{part}"] for part in parts))

    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    x = nl.relu(nl.convolution(x, values["stem/weights"], padding="VALID"))
    for stage in "stage1", "stage2", "stage3":
        x = nl.relu(conv_bn(x, f"{stage}/downsampling", pool=2))
        for block in f"{stage}/block1", f"{stage}/block2":
            branch = squeeze_excitation(conv_bn(x, f"{block}/conv"), values, block)
            x = nl.relu(x + 2 * branch)
    assert x.shape == (3, 2, 2, 8)
    expected = x.max(axis=(1, 2)) / 8 @ values["classifier/weights"] + values["classifier/bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("same_channels, stride", [(True, 1), (True, 2), (False, 1)])
def test_a_block_of_se_resnext_matches_numpy(graph, rng, same_channels, stride):
    """Check relu(shortcut + SE(branch)): figure 3 of ResNeXt with figure 3 of SENet. Two paths of
    two channels have 4 x 2 output channels."""
    hp = SE_ResNeXt.Hyperparameters(**TINY)
    network = SE_ResNeXt.SE_ResNeXt(tf.zeros([1, 4, 4, 3]), False, hp)
    x = rng.normal(size=(2, 6, 6, 8 if same_channels else 5)).astype(np.float32)
    output = network.block(tf.constant(x), depth=2, stride=stride, layer_name="alone")
    with tf.Session() as session:
        values = draw_values(session, rng)
        output = session.run(output)

    def conv_bn(x, name, stride=1):
        x = nl.convolution(x, values[f"alone/{name}/conv/weights"], stride)
        parts = "gamma", "beta", "moving_mean", "moving_variance"
        return nl.batch_norm(x, *(values[f"alone/{name}/batch_norm/{part}"] for part in parts))

    branch = nl.relu(conv_bn(x, "reduce"))
    branch = conv_bn(nl.relu(conv_bn(branch, "paths", stride)), "merge")
    branch = squeeze_excitation(branch, values, "alone")
    changes = not same_channels or stride != 1
    expected = nl.relu((conv_bn(x, "shortcut", stride) if changes else x) + branch)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_weight_decay_of_se_resnet_applies_to_the_classifier_and_to_batch_norm(graph):
    hp = SE_ResNet.Hyperparameters(width=2, reduction_ratio=2)
    SE_ResNet.SE_ResNet(tf.zeros([1, 32, 32, 3]), False, hp)
    layers = [
        f"stage{stage}/{layer}/batch_norm/beta"
        for stage in (1, 2, 3)
        for layer in ("downsampling", "block1/conv")
    ]
    names = [variable.op.name for variable in SE_ResNet.decayed_variables()]
    assert names == [*layers, "classifier/weights", "classifier/bias"]


@pytest.mark.parametrize("script", SCRIPTS[:2], ids=lambda script: script.name)
@pytest.mark.parametrize("flip", [False, True])
def test_flip_decides_whether_images_are_mirrored(graph, rng, script, flip):
    images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    split = Split(images, np.arange(20, dtype=np.int32) % 2)
    fields = {"flip": flip, "max_shift": 0.0, "batch_size": 20, "mixed_precision": False}
    hp = script.hyperparameters(**script.tiny, **fields)
    built = script.module.build_graph(Dataset("noise", split, split, ["a", "b"]), hp)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        augmented = session.run(built.epoch_end["images"], built.feed(split))
    mirrored = (augmented == images[:, :, ::-1]).all((1, 2, 3))
    assert ((augmented == images).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.any() == flip
