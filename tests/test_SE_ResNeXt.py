import numpy as np
import numpy_layers as nl
import pytest
from conftest import load_values
from scripts import TINY

from SE_ResNeXt import Hyperparameters, SE_ResNeXt
from senet.engine.compat import tf


def stage_shapes(**fields):
    """Return the (input, output) shapes of each stage, without the batch dimension."""
    sizes = []

    class RecordingNetwork(SE_ResNeXt):
        def stage(self, x, *arguments, **fields):
            output = super().stage(x, *arguments, **fields)
            sizes.append((x.shape.as_list()[1:], output.shape.as_list()[1:]))
            return output

    RecordingNetwork(
        tf.placeholder(tf.float32, [None, 32, 32, 3]), False, Hyperparameters(**fields)
    )
    return sizes


def test_each_stage_after_the_first_halves_the_maps_and_doubles_the_channels(graph):
    assert stage_shapes() == [
        ([96, 96, 64], [96, 96, 256]),
        ([96, 96, 256], [48, 48, 512]),
        ([48, 48, 512], [24, 24, 1024]),
    ]


@pytest.mark.parametrize("same_channels, stride", [(True, 1), (True, 2), (False, 1)])
def test_a_block_matches_numpy(graph, rng, same_channels, stride):
    """Check relu(shortcut + SE(branch)): figure 3 of ResNeXt with figure 3 of SENet. Two paths of
    two channels have 4 x 2 output channels."""
    channels = 8 if same_channels else 5
    network = SE_ResNeXt(tf.zeros([1, 4, 4, 3]), False, Hyperparameters(**TINY))
    x = rng.normal(size=(2, 6, 6, channels)).astype(np.float32)
    output = network.block(tf.constant(x), depth=2, stride=stride, layer_name="alone")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        drawn = {
            variable: rng.uniform(0.1, 1.5, variable.shape).astype(np.float32)
            for variable in tf.global_variables("alone/")
        }
        # With large weights, all gates would be 1.
        drawn |= {
            variable: rng.normal(0, 0.05, variable.shape).astype(np.float32)
            for variable in tf.global_variables("alone/SE/")
        }
        load_values(session, drawn)
        output = session.run(output)
    values = {variable.op.name: value for variable, value in drawn.items()}

    def conv_bn(x, name, stride=1):
        x = nl.convolution(x, values[f"alone/{name}/conv/weights"], stride)
        norm = ("gamma", "beta", "moving_mean", "moving_variance")
        return nl.batch_norm(x, *(values[f"alone/{name}/batch_norm/{part}"] for part in norm))

    branch = nl.relu(conv_bn(x, "reduce"))
    branch = conv_bn(nl.relu(conv_bn(branch, "paths", stride)), "merge")
    dense = [(n, kind) for n in (1, 2) for kind in ("weights", "bias")]
    branch = nl.squeeze_excitation(
        branch, *(values[f"alone/SE/fully_connected{n}/{kind}"] for n, kind in dense)
    )
    changes = not same_channels or stride != 1
    expected = nl.relu((conv_bn(x, "shortcut", stride) if changes else x) + branch)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_a_block_with_closed_gates_returns_its_shortcut(graph, rng):
    network = SE_ResNeXt(tf.zeros([1, 4, 4, 3]), True, Hyperparameters(**TINY))
    x = np.abs(rng.normal(size=(2, 4, 4, 8))).astype(np.float32)
    output = network.block(tf.constant(x), depth=2, stride=1, layer_name="closed")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert np.abs(session.run(output) - x).max() > 0.1
        for variable in tf.global_variables("closed/SE/fully_connected2/bias"):
            variable.load(np.full(8, -1e4), session)
        np.testing.assert_array_equal(session.run(output), x)
