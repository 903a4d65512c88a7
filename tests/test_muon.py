import numpy as np
import pytest
from conftest import load_values

from senet.engine.compat import tf
from senet.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (12, 12)])
def test_singular_values_become_about_1_and_vectors_stay(graph, rng, shape):
    left, _ = np.linalg.qr(rng.normal(size=(shape[0], 12)))
    right, _ = np.linalg.qr(rng.normal(size=(shape[1], 12)))
    matrix = (left * np.geomspace(3, 30, 12)) @ right.T
    with tf.Session() as session:
        result = session.run(orthogonalised(tf.constant(matrix, tf.float32), tf.float32, 5))
    values = left.T @ result @ right
    np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-4)
    assert np.diag(values).min() > 0.6
    assert np.diag(values).max() < 1.3


def test_steps_match_numpy(graph, rng):
    """Two steps of a filter of rank 4 and of a bias, with the formulas written out."""
    start = {"filters": rng.normal(size=(2, 2, 3, 5)), "bias": rng.normal(size=5)}
    gradients = [
        {name: rng.normal(size=value.shape) for name, value in start.items()} for _ in range(2)
    ]
    variables = {
        name: tf.get_variable(name, value.shape, initializer=tf.zeros_initializer())
        for name, value in start.items()
    }
    fed = {name: tf.placeholder(tf.float32, value.shape) for name, value in start.items()}
    optimizer = Muon(0.1, 0.9, ratio=2.0, filter_momentum=0.6, dtype=tf.float32)
    update = optimizer.apply_gradients([(fed[name], variables[name]) for name in start])
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_values(session, {variables[name]: start[name].astype(np.float32) for name in start})
        for gradient in gradients:
            session.run(update, {fed[name]: gradient[name] for name in start})
        result = session.run(variables)

    filters, sums = start["filters"], 0
    for gradient in gradients:
        sums = 0.6 * sums + gradient["filters"]
        x = (gradient["filters"] + 0.6 * sums).reshape(12, 5)
        x /= np.linalg.norm(x)
        for _ in range(3):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
        scaled = filters * np.sqrt(5) / np.linalg.norm(filters)
        filters = scaled - 0.2 * x.reshape(filters.shape)
    np.testing.assert_allclose(result["filters"], filters, rtol=1e-4, atol=1e-5)

    bias, sums = start["bias"], 0
    for gradient in gradients:
        sums = 0.9 * sums + gradient["bias"]
        bias = bias - 0.1 * (gradient["bias"] + 0.9 * sums)
    np.testing.assert_allclose(result["bias"], bias, rtol=1e-4, atol=1e-5)
