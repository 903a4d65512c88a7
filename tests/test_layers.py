import numpy as np
import numpy_layers as nl
import pytest
from conftest import load_values, run_python

from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.hyperparameters import RunHyperparameters as Hyperparameters
from senet.layers import (
    Batch_Normalization,
    Dropout,
    Squeeze_excitation_layer,
    conv_layer,
    moving_averages,
    padded,
)


def run(fetches, feed_dict=None, values=None):
    """Run `fetches` in a new session, with the variables named in `values` set to those values."""
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        variables = {v.op.name: v for v in tf.global_variables()}
        load_values(session, {variables[name]: v for name, v in (values or {}).items()})
        return session.run(fetches, feed_dict)


def test_squeeze_excitation_matches_numpy(graph, rng):
    x = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    weights = {
        "SE/fully_connected1/weights": rng.normal(size=(8, 2)),
        "SE/fully_connected1/bias": rng.normal(size=2),
        "SE/fully_connected2/weights": rng.normal(size=(2, 8)),
        "SE/fully_connected2/bias": rng.normal(size=8),
    }
    expected = nl.squeeze_excitation(x, *weights.values())
    output = Squeeze_excitation_layer(tf.constant(x), out_dim=8, ratio=4, layer_name="SE")
    np.testing.assert_allclose(run(output, values=weights), expected, rtol=1e-5, atol=1e-6)


def test_squeeze_excitation_starts_with_all_gates_at_one_half(graph, rng):
    x = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    output = Squeeze_excitation_layer(tf.constant(x), out_dim=8, ratio=4, layer_name="SE")
    np.testing.assert_array_equal(run(output), x / 2)


def test_squeeze_excitation_with_ratio_0_returns_its_input(graph):
    x = tf.ones([1, 2, 2, 8])
    assert Squeeze_excitation_layer(x, out_dim=8, ratio=0, layer_name="SE") is x
    assert tf.global_variables() == []


def test_squeeze_excitation_rejects_a_ratio_greater_than_the_number_of_channels(graph):
    message = "--reduction_ratio must be at most 8, the number of channels of stage1, got 9"
    with tf.variable_scope("stage1"), pytest.raises(HyperparameterError, match=message):
        Squeeze_excitation_layer(tf.ones([1, 2, 2, 8]), out_dim=8, ratio=9, layer_name="SE")


def test_images_are_padded_and_converted(graph, rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    output = padded(tf.constant(x), Hyperparameters(padding=3, mixed_precision=False))
    expected = np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)])
    np.testing.assert_array_equal(run(output), expected)


@pytest.mark.parametrize("groups, filters", [(3, 12), (4, 10)])
def test_groups_that_do_not_divide_the_channels_are_rejected(graph, groups, filters):
    with pytest.raises(ValueError, match=f"paths: groups must divide .*, got {groups}"):
        conv_layer(tf.ones([1, 4, 4, 8]), filters, 3, groups=groups, layer_name="paths")


STRIDED_GRADIENT = """
from senet.engine.compat import tf
from senet.layers import conv_layer
with tf.Graph().as_default():
    x = tf.random.stateless_normal([7, 32, 32, 8], [0, 0])
    y = conv_layer(x, 16, 1, stride=2)
    gradient = tf.gradients(y * y, tf.trainable_variables())
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(20):
            session.run(gradient)
"""


@pytest.mark.slow
def test_gradient_of_a_strided_1x1_convolution_does_not_corrupt_memory():
    # glibc checks the heap only if its debugging library is loaded.
    check = {"MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}
    status, _, errors = run_python("-c", STRIDED_GRADIENT, **check)
    assert status == 0, errors


def test_convolution_starts_with_he_weights(graph):
    conv_layer(tf.ones([1, 8, 8, 64]), 256, 3)
    weights = run(tf.trainable_variables()[0])
    assert weights.shape == (3, 3, 64, 256)
    # 147,456 draws: the standard deviation of the sample is within 1 % of sqrt(2 / fan_in).
    assert np.std(weights) == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.01)
    assert np.mean(weights) == pytest.approx(0, abs=1e-3)


def test_initial_weights_depend_only_on_seed_and_name():
    def weights(seed, name, layers_before):
        with tf.Graph().as_default():
            tf.set_random_seed(seed)
            x = tf.ones([1, 4, 4, 3])
            for number in range(layers_before):
                conv_layer(x, 2, 1, layer_name=f"before{number}")
            conv_layer(x, 2, 1, layer_name=name)
            return run(tf.trainable_variables()[-1]).tolist()

    assert weights(1, "a", 0) == weights(1, "a", 2)
    assert weights(1, "a", 0) != weights(2, "a", 0)
    assert weights(1, "a", 0) != weights(1, "b", 0)


class TestBatchNormalization:
    def test_training_normalises_by_the_batch(self, graph, rng):
        x = rng.normal(3, 2, size=(4, 5, 5, 2)).astype(np.float32)
        gamma, beta = np.float32([2, 3]), np.float32([-1, 1])
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        expected = gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta
        output = Batch_Normalization(tf.constant(x), training=True, scope="bn")
        values = {"bn/gamma": gamma, "bn/beta": beta}
        np.testing.assert_allclose(run(output, values=values), expected, rtol=1e-4, atol=1e-5)

    def test_moving_averages_follow_the_formula_over_several_steps(self, graph, rng):
        x = tf.placeholder(tf.float32, [None, 3, 3, 2])
        Batch_Normalization(x, training=True, scope="bn", momentum=0.9)
        pairs = zip(tf.moving_average_variables(), moving_averages(), strict=True)
        updates = [moving.assign(value) for moving, value in pairs]
        mean, variance = np.zeros(2), np.ones(2)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for step in range(5):
                batch = rng.normal(step, 1 + step, size=(4, 3, 3, 2))
                mean = 0.9 * mean + 0.1 * batch.mean(axis=(0, 1, 2))
                variance = 0.9 * variance + 0.1 * batch.var(axis=(0, 1, 2), ddof=1)
                session.run(updates, {x: batch})
            moving = session.run({v.op.name: v for v in tf.global_variables()})
        np.testing.assert_allclose(moving["bn/moving_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(moving["bn/moving_variance"], variance, rtol=1e-5)


class TestDropout:
    def test_the_given_share_becomes_zero_and_the_rest_is_scaled(self, graph):
        x = np.full((100, 1000), 2, np.float32)
        output = run(Dropout(tf.constant(x), rate=0.2, training=True))
        np.testing.assert_allclose(np.unique(output), [0, 2 / 0.8], rtol=1e-6)
        # 20,000 of 100,000 values, with a standard deviation of 126.
        assert abs((output == 0).sum() - 20_000) < 5 * 126
        assert Dropout(x, rate=0.2, training=False) is x

    def test_a_layer_used_twice_drops_other_values(self, graph):
        first, second = run([Dropout(tf.ones([10, 20]), 0.5, training=True) for _ in range(2)])
        assert (first != second).any()

    def test_dropout_depends_only_on_seed_and_step(self):
        def dropped(seed, step, layers_before=0):
            with tf.Graph().as_default():
                tf.set_random_seed(seed)
                for number in range(layers_before):
                    Dropout(tf.ones([4, 4]), 0.5, training=True, layer_name=f"before{number}")
                output = Dropout(tf.ones([10, 20]), rate=0.5, training=True)
                return run(output, values={"global_step": step}).tolist()

        assert dropped(1, 5) == dropped(1, 5, layers_before=2)
        assert dropped(1, 5) != dropped(1, 6)
        assert dropped(1, 5) != dropped(2, 5)
