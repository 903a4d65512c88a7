import numpy as np
import numpy_layers as nl
import pytest
from conftest import load_values

import SE_ResNeXt
from SE_ResNet import Hyperparameters, SE_ResNet, build_graph, decayed_variables
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf

TINY = Hyperparameters(width=2, reduction_ratio=2, mixed_precision=False)


def draw_values(session, rng):
    """Give the variables random values; return {name: value}."""
    drawn = {}
    for variable in tf.global_variables():
        positive = variable.op.name.endswith("moving_variance")
        value = (
            rng.uniform(0.5, 1.5, variable.shape)
            if positive
            else rng.normal(0, 0.3, variable.shape)
        )
        drawn[variable] = value.astype(np.float32)
    load_values(session, drawn)
    return {variable.op.name: value for variable, value in drawn.items()}


def test_the_network_matches_numpy(graph, rng):
    """Two residual blocks per stage, written out: convolution, pooling, batch norm without a scale,
    then relu(x + SE(branch)), the maximum over each map, and a linear layer on an eighth of it."""
    hp = Hyperparameters(width=2, blocks=2, reduction_ratio=2, padding=1, mixed_precision=False)
    x = rng.normal(size=(3, 22, 22, 3)).astype(np.float32)
    network = SE_ResNet(tf.constant(x), False, hp, classes=5)
    with tf.Session() as session:
        values = draw_values(session, rng)
        logits = session.run(network.model)

    def conv_bn(x, name, pool=1):
        x = nl.max_pooling(nl.convolution(x, values[f"{name}/conv/weights"]), pool, pool)
        beta, mean, variance = (
            values[f"{name}/batch_norm/{part}"]
            for part in ("beta", "moving_mean", "moving_variance")
        )
        return nl.batch_norm(x, 1, beta, mean, variance)

    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    x = nl.relu(nl.convolution(x, values["stem/weights"], padding="VALID"))
    dense = [(n, kind) for n in (1, 2) for kind in ("weights", "bias")]
    for stage in "stage1", "stage2", "stage3":
        x = nl.relu(conv_bn(x, f"{stage}/downsampling", pool=2))
        for block in f"{stage}/block1", f"{stage}/block2":
            gates = (values[f"{block}/SE/fully_connected{n}/{kind}"] for n, kind in dense)
            x = nl.relu(x + nl.squeeze_excitation(conv_bn(x, f"{block}/conv"), *gates))
    assert x.shape == (3, 2, 2, 8)
    expected = x.max(axis=(1, 2)) / 8 @ values["classifier/weights"] + values["classifier/bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("image, maps", [(32, [15, 7, 3]), (64, [31, 15, 7])])
def test_each_stage_halves_the_maps(graph, image, maps):
    sizes = []

    class RecordingNetwork(SE_ResNet):
        def stage(self, x, *arguments, **fields):
            output = super().stage(x, *arguments, **fields)
            sizes.append(output.shape.as_list()[1:])
            return output

    RecordingNetwork(tf.placeholder(tf.float32, [None, image, image, 3]), False, Hyperparameters())
    assert sizes == [
        [side, side, filters] for side, filters in zip(maps, (64, 256, 256), strict=True)
    ]


def test_weight_decay_applies_to_the_classifier_and_to_batch_norm(graph):
    SE_ResNet(tf.zeros([1, 32, 32, 3]), False, TINY)
    layers = [
        f"stage{stage}/{layer}/batch_norm/beta"
        for stage in (1, 2, 3)
        for layer in ("downsampling", "block1/conv")
    ]
    names = [variable.op.name for variable in decayed_variables()]
    assert names == [*layers, "classifier/weights", "classifier/bias"]


@pytest.mark.parametrize("script", ["SE_ResNet", "SE_ResNeXt"])
@pytest.mark.parametrize("flip", [False, True])
def test_flip_decides_whether_images_are_mirrored(graph, rng, script, flip):
    images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
    split = Split(images, np.arange(20, dtype=np.int32) % 2)
    data = Dataset("noise", split, split, ["a", "b"])
    small = {"flip": flip, "max_shift": 0.0, "batch_size": 20, "mixed_precision": False}
    if script == "SE_ResNet":
        built = build_graph(data, Hyperparameters(width=2, reduction_ratio=2, **small))
    else:
        tiny = {"cardinality": 2, "depth": 2, "blocks": 1, "reduction_ratio": 2, "padding": 0}
        built = SE_ResNeXt.build_graph(data, SE_ResNeXt.Hyperparameters(**tiny, **small))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        augmented = session.run(built.epoch_end["images"], built.feed(split))
    mirrored = (augmented == images[:, :, ::-1]).all((1, 2, 3))
    assert ((augmented == images).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.any() == flip
