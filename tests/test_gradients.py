import numpy as np
import pytest

from senet.compat import tf
from senet.gradients import clip_gradients


def clipped(gradient, value, threshold):
    variable = tf.get_variable("v", initializer=np.float32(value))
    pairs = clip_gradients([(tf.constant(gradient, tf.float32), variable)], threshold)
    assert pairs[0][1] is variable
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return session.run(pairs[0][0])


@pytest.mark.parametrize(
    "gradient, value, expected",
    [
        # Weights of size 2 may have gradients of size 0.5 * 2 = 1.
        ([[0.6, -0.8]], [[2, 2]], [[0.6, -0.8]]),
        ([[6, -8]], [[2, 2]], [[6 / 50**0.5, -8 / 50**0.5]]),
        # Weights of size 0 count as of size 0.001.
        ([[3, 3]], [[0, 0]], [[0.0005, 0.0005]]),
        # Gains and offsets count as of size 1 at least.
        ([3, 3], [0, 0], [0.5, 0.5]),
        ([3, 3], [4, 4], [2, 2]),
        ([0, 0], [1, 1], [0, 0]),
    ],
)
def test_size_of_a_gradient_stays_in_proportion(graph, gradient, value, expected):
    np.testing.assert_allclose(clipped(gradient, value, threshold=0.5), expected, rtol=1e-6)


def test_threshold_zero_clips_nothing(graph):
    np.testing.assert_array_equal(clipped([[1e6, 0]], [[1, 1]], threshold=0.0), [[1e6, 0]])
