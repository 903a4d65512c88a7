"""Compare the output and the gradients of convolutions with NumPy."""

import numpy as np
import numpy_layers as nl
import pytest

from senet.engine.compat import tf
from senet.engine.convolution import convolution

# Map size, kernel, stride, padding and groups: cases on both sides of each limit at which
# `convolution` changes its implementation.
CASES = {
    "1x1": (5, (1, 1), 1, "SAME", 1),
    "strided 1x1": (7, (1, 1), 2, "SAME", 1),
    "1x7 on a small map": (4, (1, 7), 1, "SAME", 1),
    "7x1 on a large map": (12, (7, 1), 1, "SAME", 1),
    "3x3 with only its centre inside the map": (1, (3, 3), 1, "SAME", 1),
    "1x7 with three columns inside the map": (2, (1, 7), 1, "SAME", 1),
    "4x4 with three rows inside the map": (2, (4, 4), 1, "SAME", 1),
    "2x6 with one position inside": (1, (2, 6), 1, "SAME", 1),
    "strided, small, even": (8, (3, 3), 2, "SAME", 1),
    "strided, small, odd": (9, (3, 3), 2, "VALID", 1),
    "strided, large": (24, (3, 3), 2, "SAME", 1),
    "in groups, small": (6, (3, 3), 1, "SAME", 2),
    "in groups, strided": (8, (3, 3), 2, "SAME", 2),
    "in groups, large": (12, (3, 3), 1, "SAME", 2),
}


@pytest.mark.parametrize("size, kernel, stride, padding, groups", CASES.values(), ids=CASES)
def test_every_implementation_matches_numpy(graph, rng, size, kernel, stride, padding, groups):
    compare_with_numpy(rng, size, kernel, stride, padding, groups)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("in groups")])
def test_groups_match_numpy_on_devices_without_grouped_convolution(graph, rng, monkeypatch, name):
    monkeypatch.setattr("senet.engine.convolution.has_grouped_convolution", lambda: False)
    compare_with_numpy(rng, *CASES[name])


def compare_with_numpy(rng, size, kernel, stride, padding, groups):
    x = rng.normal(size=(3, size, size, 4))
    weights = rng.normal(size=(*kernel, 4 // groups, 6))
    expected = nl.convolution(x, weights, stride, padding)
    upstream = rng.normal(size=expected.shape)
    x_input = tf.placeholder(tf.float32, [None, size, size, 4])
    weights_input = tf.constant(weights, tf.float32)
    y = convolution(x_input, weights_input, stride, padding, groups)
    gradients = tf.gradients(y, [x_input, weights_input], upstream.astype(np.float32))
    with tf.Session() as session:
        result, x_gradient, weights_gradient = session.run([y, *gradients], {x_input: x})
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    # A convolution is linear in each of its inputs, so correct gradients make these products equal.
    for _ in range(5):
        d_x, d_weights = rng.normal(size=x.shape), rng.normal(size=weights.shape)
        for gradient, direction, change in (
            (x_gradient, d_x, nl.convolution(d_x, weights, stride, padding)),
            (weights_gradient, d_weights, nl.convolution(x, d_weights, stride, padding)),
        ):
            np.testing.assert_allclose(
                np.vdot(gradient, direction), np.vdot(upstream, change), rtol=1e-4, atol=1e-3
            )
