"""The arithmetic of a training step, compared with NumPy."""

import contextlib
import functools

import numpy as np
import pytest
from scripts import TINY

import SE_ResNeXt as script
from SE_ResNeXt import Hyperparameters, build_graph
from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.losses import cross_entropy


@pytest.fixture(autouse=True)
def one_stage(monkeypatch):
    """Leave out the second and the third stage, which only take time."""
    stage = script.SE_ResNeXt.stage

    def first(network, x, *arguments, layer_name, **fields):
        if layer_name != "stage1":
            return x
        return stage(network, x, *arguments, layer_name=layer_name, **fields)

    monkeypatch.setattr(script.SE_ResNeXt, "stage", first)


@pytest.fixture
def logits(monkeypatch):
    """Return a list of the logits of each micro-batch, filled while the graph is built."""
    found = []
    loss = script.loss

    def recording_loss(*arguments):
        losses, logits = loss(*arguments)
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


@contextlib.contextmanager
def built(data, **fields):
    """Yield the Graph of the smallest network, and a session with its initial values."""
    with tf.Graph().as_default(), tf.Session() as session:
        graph = build_graph(data, Hyperparameters(**TINY | fields))
        session.run(tf.global_variables_initializer())
        yield graph, session


def variables(ending):
    return [v for v in tf.global_variables() if v.op.name.endswith(ending)]


def softmax(logits):
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_a_step_is_nesterov_momentum_on_cross_entropy_and_l2(data, logits):
    """Check two steps of the classifier's bias, whose gradient follows from the logits: the mean of
    softmax - one-hot, plus weight_decay times the bias."""
    value = np.zeros(3)
    momentum = np.zeros(3)
    batch = Split(data.train.images[:4], data.train.labels[:4])
    with built(data, weight_decay=0.1, total_epochs=1, batch_size=4) as (graph, session):
        (bias,) = variables("classifier/bias")
        for _ in range(2):
            output, result = session.run([logits[0], graph.train_step], graph.feed(batch))
            gradient = (softmax(output) - np.eye(3)[batch.labels]).mean(axis=0) + 0.1 * value
            momentum = 0.9 * momentum + gradient
            value = value - result["learning_rate"] * (gradient + 0.9 * momentum)
            np.testing.assert_allclose(session.run(bias), value, rtol=1e-4, atol=1e-6)
        assert session.run(tf.train.get_global_step()) == 2


@pytest.mark.slow
def test_a_training_step_updates_every_moving_average(data):
    with built(data) as (graph, session):
        moving = [v for v in tf.global_variables() if "moving_" in v.op.name]
        # A mean and a variance for the stem, and for four convolutions in the block.
        assert len(moving) == 2 * (1 + 4)
        before = session.run(moving)
        session.run(graph.test_outputs, graph.feed(data.test))
        for a, b in zip(before, session.run(moving), strict=True):
            np.testing.assert_array_equal(a, b)
        session.run(graph.train_step, graph.feed(data.train))
        assert all((a != b).any() for a, b in zip(before, session.run(moving), strict=True))


@pytest.mark.slow
def test_means_are_reset_in_each_epoch(data, logits):
    """Check three steps, two per epoch: the means are over the first two, then over the third."""
    parts = [Split(data.train.images[i : i + 7], data.train.labels[i : i + 7]) for i in (0, 7, 10)]
    losses, correct, means = [], [], []
    with built(data, batch_size=10) as (graph, session):
        for batch in parts:
            output, result = session.run([logits[0], graph.train_step], graph.feed(batch))
            losses.append(-np.log(softmax(output)[np.arange(7), batch.labels]))
            correct.append(output.argmax(axis=1) == batch.labels)
            means.append((result["loss"], result["acc"]))
            values = session.run(graph.epoch_end, graph.feed(batch))
            assert (values["train_loss"], values["train_acc"]) == means[-1]
    for step, epoch in enumerate([slice(0, 1), slice(0, 2), slice(2, 3)]):
        expected = np.mean(losses[epoch]), np.mean(correct[epoch])
        np.testing.assert_allclose(means[step], expected, rtol=1e-5)


def test_label_smoothing_spreads_the_target(graph, rng):
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 1])
    target = 0.7 * np.eye(4)[labels] + 0.3 / 4
    with tf.Session() as session:
        loss = session.run(cross_entropy(tf.constant(logits), labels, label_smoothing=0.3))
    np.testing.assert_allclose(loss, -(target * np.log(softmax(logits))).sum(axis=1), rtol=1e-5)


@pytest.mark.slow
def test_label_smoothing_changes_the_gradient_but_not_the_reported_loss(data):
    results = []
    for smoothing in (0.0, 0.2):
        with built(data, label_smoothing=smoothing, batch_size=20) as (graph, session):
            loss = session.run(graph.train_step, graph.feed(data.train))["loss"]
            results.append((loss, session.run(variables("classifier/bias")[0])))
    (plain, plain_bias), (smooth, smooth_bias) = results
    assert smooth == pytest.approx(plain, rel=1e-5)
    assert np.abs(smooth_bias - plain_bias).max() > 1e-4


def first_gradient(data, **fields):
    """Return the gradient that the optimizer gets in the first step, which is the momentum after
    it, as one array, and the reported norm."""
    with built(data, batch_size=20, **fields) as (graph, session):
        norm = session.run(graph.epoch_end["gradient_norm"], graph.feed(data.train))
        session.run(graph.train_step, graph.feed(data.train))
        momenta = session.run(variables("/Momentum"))
        return np.concatenate([value.ravel() for value in momenta]), norm


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"micro_batch_size": 5}, {"weight_decay": 0.1}])
def test_clipping_scales_the_gradient_of_the_whole_batch_but_not_the_decay(data, fields):
    """The biases of the SE layers start at 0, so they do not decay."""
    whole, norm = first_gradient(data, **{"weight_decay": 0.0} | fields)
    clipped, reported = first_gradient(data, clip_norm=norm / 4, **{"weight_decay": 0.0} | fields)
    assert reported == pytest.approx(norm, rel=1e-5)
    if not fields.get("weight_decay"):
        assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        np.testing.assert_allclose(clipped, whole / 4, rtol=1e-4, atol=1e-7)
    else:
        decay = np.float32(0.1) * np.concatenate(initial_values(data))
        np.testing.assert_allclose(clipped - decay, (whole - decay) / 4, rtol=1e-3, atol=1e-5)


def initial_values(data):
    with built(data) as (_, session):
        return [session.run(v).ravel() for v in tf.trainable_variables()]


@pytest.mark.slow
def test_weight_decay_can_be_limited_to_some_variables(data, monkeypatch):
    def weights():
        return iter([v for v in tf.trainable_variables() if v.op.name.endswith("weights")])

    monkeypatch.setattr(script, "decayed_variables", weights)
    values = {}
    for decay in (0.0, 0.5):
        with built(data, weight_decay=decay, batch_size=20) as (graph, session):
            trained = {v.op.name: v for v in tf.trainable_variables()}
            before, l2_loss = session.run([trained, graph.epoch_end["l2_loss"]])
            squares = {v.op.name: np.square(before[v.op.name]).sum() for v in weights()}
            assert l2_loss == pytest.approx(decay * sum(squares.values()) / 2, rel=1e-5)
            session.run(graph.train_step, graph.feed(data.train))
            values[decay] = session.run(trained)
    changed = {n for n, value in values[0.0].items() if (value != values[0.5][n]).any()}
    # The weights of the layer before the gates are initially zero, so decay does not change them.
    assert changed == {name for name, square in squares.items() if square > 0}


@pytest.mark.slow
def test_the_averaged_weights_follow_the_weights_and_are_tested(data):
    """After step t, counted from 0, the decay is the smaller of `ema` and (1 + t) / (10 + t)."""
    with built(data, ema=0.25, batch_size=20, micro_batch_size=7) as (graph, session):
        (weight,) = variables("classifier/bias")
        (average,) = variables("classifier/bias/ema")
        moving = variables("stem/batch_norm/moving_mean/ema")
        expected, *_ = session.run([average, *moving])
        for step in range(4):
            session.run(graph.train_step, graph.feed(data.train))
            decay = min(0.25, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * session.run(weight)
        np.testing.assert_allclose(session.run(average), expected, rtol=1e-5)
        assert len(variables("/ema")) == len(tf.trainable_variables()) + 2 * (1 + 4)
        before = session.run(graph.test_outputs, graph.feed(data.test))["probabilities"]
        weight.load(np.array([9, 0, 0], np.float32), session)
        after = session.run(graph.test_outputs, graph.feed(data.test))["probabilities"]
        np.testing.assert_array_equal(after, before)
        average.load(np.array([99, 0, 0], np.float32), session)
        after = session.run(graph.test_outputs, graph.feed(data.test))["probabilities"]
        np.testing.assert_allclose(after[:, 0], 1)


def replaced_loss(monkeypatch, result):
    """Let the script's loss return `result(losses, logits)`."""
    loss = script.loss
    monkeypatch.setattr(script, "loss", lambda *arguments: result(*loss(*arguments)))


@pytest.mark.slow
def test_a_loss_may_replace_what_is_reported(data, monkeypatch):
    replaced_loss(monkeypatch, lambda losses, logits: (losses, logits, {"acc": 0 * losses + 0.5}))
    with built(data, batch_size=20) as (graph, session):
        assert session.run(graph.train_step, graph.feed(data.train))["acc"] == 0.5


def with_variable(losses, logits):
    with tf.variable_scope("temperature", reuse=tf.AUTO_REUSE):
        return losses * tf.get_variable("t", [], initializer=tf.ones_initializer()), logits


def with_update_op(losses, logits):
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.no_op())
    return losses, logits


def loss_of_the_network_for_evaluation(batch, network, hyperparameters):
    logits = network(batch["images"], training=False).model
    return cross_entropy(logits, batch["labels"]), logits


def overriding(method):
    own = type("Own", (tf.train.GradientDescentOptimizer,), {method: None})
    return lambda rate, hyperparameters: own(rate)


SHAPE = r"^loss\(\) must return one loss per image, \[batch\], got"
RANDOM = "draws random numbers that differ when a run is resumed; use"
MISTAKES_IN_LOSS = {
    "a loss per class and image": (lambda _, logits: (tf.nn.relu(logits), logits), SHAPE),
    "a loss per batch": (lambda _, logits: (tf.reduce_mean(logits), logits), SHAPE),
    "a loss per class": (lambda _, logits: (tf.reduce_mean(logits, axis=0), logits), SHAPE),
    "a variable": (with_variable, r"^loss\(\) created temperature/t, which would not be trained"),
    "an update operation": (with_update_op, "^UPDATE_OPS are not run; remove them"),
    "a mean": (
        lambda losses, logits: (losses, logits, {"acc": tf.reduce_mean(losses)}),
        r"^acc must have one value per image, \[batch\], got \(\)",
    ),
    "another name": (
        lambda losses, logits: (losses, logits, {"top3": losses}),
        "may replace only loss and acc, got top3",
    ),
    "dropout": (lambda losses, logits: (tf.nn.dropout(losses, rate=0.5), logits), RANDOM),
    "Python": (lambda x, y: (x * tf.reshape(tf.py_func(abs, [1.0], tf.float32), []), y), RANDOM),
}


@pytest.mark.parametrize("mistake", MISTAKES_IN_LOSS)
def test_a_loss_that_would_train_something_else_is_reported(data, monkeypatch, mistake):
    result, message = MISTAKES_IN_LOSS[mistake]
    replaced_loss(monkeypatch, result)
    with pytest.raises(Failure, match=message), built(data):
        pass


@pytest.mark.parametrize(
    "function, replacement, message",
    [
        ("flip", lambda x, *_: tf.image.random_flip_left_right(x), f"random_flip.*{RANDOM}"),
        (
            *("decayed_variables", tf.moving_average_variables),
            "only trainable variables can decay, got stage1/block1/merge/batch_norm/moving_mean",
        ),
        (
            *("loss", loss_of_the_network_for_evaluation),
            "does not update .*moving_mean.*training=True",
        ),
        (
            *("mixup", lambda batch, *_: {**batch, "class_weights": tf.ones([3])}),
            r"^batch\['class_weights'\] must have one row per image, got \(3,\)",
        ),
        (
            *("mixup", lambda batch, *_: {**batch, "mine": tf.identity(batch["labels"])}),
            r"^loss\(\) does not use batch\['mine'\]; use it, or remove it",
        ),
        ("optimizer", overriding("apply_gradients"), "^Own overrides apply_gradients, which "),
        ("optimizer", overriding("minimize"), "^Own overrides minimize, which "),
    ],
    ids=[
        *("stateful augmentation", "decay of a moving average", "network for evaluation"),
        *("row per class", "unused row", "gradients changed on each device", "minimize"),
    ],
)
def test_a_function_of_a_script_that_would_train_something_else_is_reported(
    data, monkeypatch, function, replacement, message
):
    monkeypatch.setattr(script, function, replacement)
    with pytest.raises(Failure, match=message), built(data):
        pass


def test_a_regularizer_of_a_variable_is_reported(data, monkeypatch):
    create = tf.get_variable

    def create_with_regularizer(name, *arguments, **fields):
        fields |= {"regularizer": tf.nn.l2_loss} if name == "weights" else {}
        return create(name, *arguments, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(tf, "get_variable", create_with_regularizer)
        message = "^regularizers of variables are not supported; remove"
        with pytest.raises(Failure, match=message), built(data):
            pass


def test_a_variable_that_the_loss_does_not_use_is_reported(graph, data):
    tf.get_variable("forgotten", [3])
    with pytest.raises(Failure, match="the loss does not depend on forgotten; use"):
        build_graph(data, Hyperparameters(**TINY))


def two_steps(data, replicas, **fields):
    """Return the variables after two steps on `replicas` CPU devices, and the last gradient norm.
    Each device or micro-batch has 5 images, so that batch norm computes the same."""
    devices = [f"/cpu:{number}" for number in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices)
    config = tf.ConfigProto(device_count={"CPU": replicas})
    with tf.Graph().as_default(), strategy.scope(), tf.Session(config=config) as session:
        hp = Hyperparameters(**TINY | {"batch_size": 20, "micro_batch_size": 5} | fields)
        graph = build_graph(data, hp)
        session.run(tf.global_variables_initializer())
        for _ in range(2):
            session.run(graph.train_step, graph.feed(data.train))
        norm = session.run(graph.epoch_end["gradient_norm"], graph.feed(data.train))
        return session.run({v.op.name: v for v in tf.global_variables()}), norm


class AdamW(tf.train.AdamOptimizer):
    """The recipe of docs/contributing.md."""

    def __init__(self, learning_rate, decay, decayed):
        super().__init__(learning_rate)
        self.decay = decay
        self.names = {variable.op.name for variable in decayed}

    def _resource_apply_dense(self, grad, var):
        name = var.op.name.partition("/replica_")[0]  # on another device
        decay = self.decay * self._lr_t * var if name in self.names else 0.0 * var
        with tf.control_dependencies([var.assign_sub(decay)]):
            return super()._resource_apply_dense(grad, var)


@pytest.mark.slow
def test_two_devices_compute_what_one_does(data, monkeypatch):
    """With clipping, averaged weights, mixup, and AdamW, whose decay is not in the gradient.
    test_cluster.py has a whole run with the default optimizer."""
    fields = {"clip_norm": 0.5, "ema": 0.5, "mixup": 0.4, "weight_decay": 0.0}
    adamw = functools.partial(AdamW, decay=20.0)
    decayed = script.decayed_variables
    monkeypatch.setattr(script, "optimizer", lambda rate, hp: adamw(rate / 100, decayed=decayed()))
    one, norm = two_steps(data, 1, **fields)
    two, norm_of_two = two_steps(data, 2, **fields)
    assert norm_of_two == pytest.approx(norm, rel=1e-3)
    assert one.keys() <= two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_adamw_decays_the_weights_apart_from_the_gradient(graph):
    value = tf.get_variable("v", initializer=[2.0, -4.0])
    update = AdamW(0.1, 0.05, [value]).apply_gradients([(tf.constant([1.0, 0.0]), value)])
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(update)
        # A step of Adam of 0.1 where there is a gradient, and 0.5 % of decay everywhere.
        np.testing.assert_allclose(session.run(value), [1.99 - 0.1, -3.98], rtol=1e-5)
