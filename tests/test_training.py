"""The arithmetic of a training step, compared with NumPy."""

import numpy as np
import pytest
from scripts import TINY

import SE_ResNeXt as script
from SE_ResNeXt import Hyperparameters, build_graph
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.losses import cross_entropy


@pytest.fixture
def logits(monkeypatch):
    """Return a list of the logits of each micro-batch, filled while the graph is built."""
    found, loss = [], script.loss

    def recording_loss(*arguments, **fields):
        losses, logits = loss(*arguments, **fields)
        found.append(logits)
        return losses, logits

    monkeypatch.setattr(script, "loss", recording_loss)
    return found


@pytest.fixture
def data(rng):
    def split(count):
        return Split(
            rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
            rng.integers(0, 3, count).astype(np.int32),
        )

    return Dataset("noise", split(20), split(7), ["a", "b", "c"])


def test_a_step_is_nesterov_momentum_on_cross_entropy_and_l2(graph, data, logits):
    """Check two steps of the classifier's bias, whose gradient follows from the logits: the mean of
    softmax - one-hot, plus weight_decay times the bias."""
    hp = Hyperparameters(**TINY, weight_decay=0.1, total_epochs=1, batch_size=4)
    inputs, train_step, _, _ = build_graph(data, hp)
    (bias,) = (v for v in tf.trainable_variables() if v.op.name == "classifier/bias")
    value, momentum = np.zeros(3), np.zeros(3)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(2):
            batch = Split(data.train.images[:4], data.train.labels[:4])
            output, result = session.run([logits[0], train_step], inputs.feed(batch))
            probabilities = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
            gradient = (probabilities - np.eye(3)[batch.labels]).mean(axis=0) + 0.1 * value
            momentum = 0.9 * momentum + gradient
            value = value - result["learning_rate"] * (gradient + 0.9 * momentum)
            np.testing.assert_allclose(session.run(bias), value, rtol=1e-4, atol=1e-6)
        assert session.run(tf.train.get_global_step()) == 2


@pytest.mark.slow
def test_l2_loss_covers_all_trainable_variables(graph, data):
    _, _, epoch_end, _ = build_graph(data, Hyperparameters(**TINY, weight_decay=0.1))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        squares = [np.square(value).sum() for value in session.run(tf.trainable_variables())]
        l2_loss = session.run(epoch_end["l2_loss"])
    assert l2_loss == pytest.approx(0.1 * sum(squares) / 2, rel=1e-5)


@pytest.mark.slow
def test_a_training_step_updates_every_moving_average(graph, data):
    inputs, train_step, _, test_outputs = build_graph(data, Hyperparameters(**TINY))
    moving = [v for v in tf.global_variables() if "moving_" in v.op.name]
    # A mean and a variance for the stem, and for four convolutions in each of three blocks.
    assert len(moving) == 2 * (1 + 3 * 4)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        before = session.run(moving)
        session.run(test_outputs, inputs.feed(data.test))
        for a, b in zip(before, session.run(moving), strict=True):
            np.testing.assert_array_equal(a, b)
        session.run(train_step, inputs.feed(data.train))
        assert all((a != b).any() for a, b in zip(before, session.run(moving), strict=True))


@pytest.mark.slow
def test_means_are_reset_in_each_epoch(graph, data, logits):
    """Check three steps, two per epoch: the means are over the first two, then over the third."""
    hp = Hyperparameters(**TINY, batch_size=10)
    inputs, train_step, epoch_end, _ = build_graph(data, hp)
    parts = [Split(data.train.images[i : i + 7], data.train.labels[i : i + 7]) for i in (0, 7, 10)]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        losses, correct, means = [], [], []
        for batch in parts:
            output, result = session.run([logits[0], train_step], inputs.feed(batch))
            probabilities = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
            losses.append(-np.log(probabilities[np.arange(7), batch.labels]))
            correct.append(output.argmax(axis=1) == batch.labels)
            means.append((result["loss"], result["accuracy"]))
            values = session.run(epoch_end, inputs.feed(batch))
            assert (values["train_loss"], values["train_accuracy"]) == means[-1]
    for step, epoch in enumerate([slice(0, 1), slice(0, 2), slice(2, 3)]):
        expected = np.mean(losses[epoch]), np.mean(correct[epoch])
        np.testing.assert_allclose(means[step], expected, rtol=1e-5)


def softmax(logits):
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_label_smoothing_spreads_the_target(graph, rng):
    logits, labels = rng.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 3, 1])
    target = 0.7 * np.eye(4)[labels] + 0.3 / 4
    with tf.Session() as session:
        loss = session.run(cross_entropy(tf.constant(logits), labels, label_smoothing=0.3))
    np.testing.assert_allclose(loss, -(target * np.log(softmax(logits))).sum(axis=1), rtol=1e-5)


@pytest.mark.slow
def test_label_smoothing_changes_the_gradient_but_not_the_reported_loss(graph, data):
    results = []
    for smoothing in (0.0, 0.2):
        with tf.Graph().as_default(), tf.Session() as session:
            hp = Hyperparameters(**TINY, label_smoothing=smoothing, batch_size=20)
            inputs, train_step, _, _ = build_graph(data, hp)
            session.run(tf.global_variables_initializer())
            losses = [session.run(train_step, inputs.feed(data.train))["loss"] for _ in range(2)]
            (bias,) = (v for v in tf.trainable_variables() if v.op.name == "classifier/bias")
            results.append((losses[0], session.run(bias)))
    (plain, plain_bias), (smooth, smooth_bias) = results
    assert smooth == pytest.approx(plain, rel=1e-5)
    assert np.abs(smooth_bias - plain_bias).max() > 1e-4


@pytest.mark.slow
def test_gradient_norm_is_that_of_the_whole_objective(graph, data):
    """Compare with the norm of the momentum after the first step, which is the gradient."""
    hp = Hyperparameters(**TINY, weight_decay=0.1, batch_size=20)
    inputs, train_step, epoch_end, _ = build_graph(data, hp)
    momenta = [v for v in tf.global_variables() if v.op.name.endswith("/Momentum")]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        norm = session.run(epoch_end["gradient_norm"], inputs.feed(data.train))
        session.run(train_step, inputs.feed(data.train))
        gradient = np.concatenate([value.ravel() for value in session.run(momenta)])
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_the_gradient_norm_works_with_adam(graph, data, monkeypatch):
    monkeypatch.setattr(script, "optimizer", lambda rate, hp: tf.train.AdamOptimizer(rate))
    inputs, _, epoch_end, _ = build_graph(data, Hyperparameters(**TINY, batch_size=20))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(epoch_end["gradient_norm"], inputs.feed(data.train)) > 0.1


@pytest.mark.slow
def test_weight_decay_can_be_limited_to_some_variables(graph, data, monkeypatch):
    def weights():
        return [v for v in tf.trainable_variables() if v.op.name.endswith("weights")]

    monkeypatch.setattr(script, "decayed_variables", weights)
    values = {}
    for decay in (0.0, 0.5):
        with tf.Graph().as_default(), tf.Session() as session:
            hp = Hyperparameters(**TINY, weight_decay=decay, batch_size=20)
            inputs, train_step, epoch_end, _ = build_graph(data, hp)
            session.run(tf.global_variables_initializer())
            trained = {v.op.name: v for v in tf.trainable_variables()}
            before, l2_loss = session.run([trained, epoch_end["l2_loss"]])
            squares = {v.op.name: np.square(before[v.op.name]).sum() for v in weights()}
            assert l2_loss == pytest.approx(decay * sum(squares.values()) / 2, rel=1e-5)
            session.run(train_step, inputs.feed(data.train))
            values[decay] = session.run(trained)
    changed = {n for n, value in values[0.0].items() if (value != values[0.5][n]).any()}
    # The weights of the layer before the gates are initially zero, so decay does not change them.
    assert changed == {name for name, square in squares.items() if square > 0}


@pytest.mark.parametrize(
    "losses",
    [
        lambda logits: tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(logits), logits),
        lambda logits: tf.reduce_mean(logits),
        lambda logits: tf.reduce_mean(logits, axis=0),
        lambda logits: tf.reshape(tf.reduce_mean(logits), [1]),
    ],
    ids=["per image and class", "per batch", "per class", "one per batch"],
)
def test_a_loss_that_is_not_per_image_is_reported(graph, data, monkeypatch, losses):
    loss = script.loss

    def other_loss(*arguments, **fields):
        _, logits = loss(*arguments, **fields)
        return losses(logits), logits

    monkeypatch.setattr(script, "loss", other_loss)
    with pytest.raises(Failure, match=r"^loss\(\) must return one loss per image, \[batch\], got"):
        build_graph(data, Hyperparameters(**TINY))


def test_a_variable_created_in_the_loss_is_reported(graph, data, monkeypatch):
    loss = script.loss

    def loss_with_temperature(*arguments, **fields):
        losses, logits = loss(*arguments, **fields)
        with tf.variable_scope("temperature", reuse=tf.AUTO_REUSE):
            return losses * tf.get_variable("t", [], initializer=tf.ones_initializer()), logits

    monkeypatch.setattr(script, "loss", loss_with_temperature)
    with pytest.raises(
        Failure, match=r"^loss\(\) created temperature/t, which would not be trained"
    ):
        build_graph(data, Hyperparameters(**TINY))


def test_an_update_that_would_not_run_is_reported(graph, data, monkeypatch):
    loss = script.loss

    def loss_with_update(*arguments, **fields):
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.no_op())
        return loss(*arguments, **fields)

    monkeypatch.setattr(script, "loss", loss_with_update)
    with pytest.raises(Failure, match="^UPDATE_OPS are not run; remove them"):
        build_graph(data, Hyperparameters(**TINY))


def test_a_regularizer_of_a_variable_is_reported(graph, data, monkeypatch):
    create = tf.get_variable

    def create_with_regularizer(name, *arguments, **fields):
        fields |= {"regularizer": tf.nn.l2_loss} if name == "weights" else {}
        return create(name, *arguments, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(tf, "get_variable", create_with_regularizer)
        with pytest.raises(Failure, match="^regularizers of variables are not supported; remove"):
            build_graph(data, Hyperparameters(**TINY))


def test_the_decayed_variables_may_be_an_iterator(graph, data, monkeypatch):
    monkeypatch.setattr(script, "decayed_variables", lambda: iter(tf.trainable_variables()))
    _, _, epoch_end, _ = build_graph(data, Hyperparameters(**TINY))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(epoch_end["l2_loss"]) > 0


def test_a_decayed_variable_that_is_not_trainable_is_reported(graph, data, monkeypatch):
    monkeypatch.setattr(script, "decayed_variables", tf.moving_average_variables)
    with pytest.raises(Failure, match="only trainable variables, got stem/batch_norm"):
        build_graph(data, Hyperparameters(**TINY))


def test_a_variable_that_the_loss_does_not_use_is_reported(graph, data):
    tf.get_variable("forgotten", [3])
    with pytest.raises(Failure, match="the loss does not depend on forgotten; use"):
        build_graph(data, Hyperparameters(**TINY))


def test_a_loss_that_builds_the_network_for_evaluation_is_an_error(graph, data, monkeypatch):
    def loss(images, labels, network, hyperparameters):
        logits = network(images, training=False).model
        return cross_entropy(logits, labels), logits

    monkeypatch.setattr(script, "loss", loss)
    with pytest.raises(Failure, match="does not update .*moving_mean.*training=True"):
        build_graph(data, Hyperparameters(**TINY))
