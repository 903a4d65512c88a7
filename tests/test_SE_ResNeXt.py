import numpy as np
import numpy_layers as nl
import pytest

from SE_ResNeXt import Hyperparameters, SE_ResNeXt, build_graph, learning_rate_schedule
from senet.compat import tf
from senet.data.datasets import Dataset, Split

TINY = {
    "cardinality": 2,
    "depth": 2,
    "blocks": 1,
    "reduction_ratio": 2,
    "padding": 0,
    "micro_batch_size": 0,
    "mixed_precision": False,
}


@pytest.mark.parametrize("ratio, parameters", [(0, 34_426_698), (16, 34_948_506)])
def test_parameters_of_the_published_network(graph, ratio, parameters):
    x = tf.placeholder(tf.float32, [None, 32, 32, 3])
    network = SE_ResNeXt(x, True, Hyperparameters(reduction_ratio=ratio))
    assert network.model.shape.as_list() == [None, 10]
    assert network.model.dtype == tf.float32
    assert sum(v.shape.num_elements() for v in tf.trainable_variables()) == parameters


def test_sizes_of_the_maps(graph):
    SE_ResNeXt(tf.placeholder(tf.float32, [None, 32, 32, 3]), False, Hyperparameters())
    sizes = [
        graph.get_tensor_by_name(f"{place}:0").shape.as_list()[1:]
        for place in (
            "Relu",
            "stage1/block3/Relu_2",
            "stage2/block3/Relu_2",
            "stage3/block3/Relu_2",
        )
    ]
    assert sizes == [[96, 96, 64], [96, 96, 256], [48, 48, 512], [24, 24, 1024]]


def test_second_tower_shares_all_variables(graph):
    x = tf.placeholder(tf.float32, [None, 32, 32, 3])
    SE_ResNeXt(x, True, Hyperparameters(**TINY))
    before = tf.global_variables()
    with tf.variable_scope(tf.get_variable_scope(), reuse=True):
        SE_ResNeXt(x, False, Hyperparameters(**TINY))
    assert tf.global_variables() == before


@pytest.mark.parametrize("channels, stride", [(8, 1), (8, 2), (5, 1)])
def test_a_block_is_what_numpy_gives(graph, rng, channels, stride):
    """relu(shortcut + SE(branch)): figure 3 of ResNeXt with figure 3 of SENet."""
    network = SE_ResNeXt(tf.zeros([1, 4, 4, 3]), False, Hyperparameters(**TINY))
    x = rng.normal(size=(2, 6, 6, channels)).astype(np.float32)
    output = network.block(tf.constant(x), depth=2, stride=stride, layer_name="alone")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        values = {}
        for variable in tf.global_variables("alone/"):
            values[variable.op.name] = rng.uniform(0.1, 1.5, variable.shape).astype(np.float32)
            variable.load(values[variable.op.name], session)
        output = session.run(output)

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
    changes = channels != 8 or stride != 1
    expected = nl.relu((conv_bn(x, "shortcut", stride) if changes else x) + branch)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_with_its_gate_shut_a_block_returns_its_shortcut(graph, rng):
    network = SE_ResNeXt(tf.zeros([1, 4, 4, 3]), True, Hyperparameters(**TINY))
    x = np.abs(rng.normal(size=(2, 4, 4, 8))).astype(np.float32)
    output = network.block(tf.constant(x), depth=2, stride=1, layer_name="shut")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert np.abs(session.run(output) - x).max() > 0.1
        for variable in tf.global_variables("shut/SE/fully_connected2/bias"):
            variable.load(np.full(8, -1e4), session)
        np.testing.assert_array_equal(session.run(output), x)


def test_learning_rate(graph):
    """10 epochs of 40 steps: 5 % of 400 steps is 20 of warm-up; drops at 120, 240 and 360."""
    hp = Hyperparameters(total_epochs=10, init_learning_rate=0.4)
    step = tf.placeholder(tf.int64, [])
    rate = learning_rate_schedule(step, 40, hp)
    expected = {
        0: 0.4 / 20, 9: 0.2, 19: 0.4, 20: 0.4, 119: 0.4,
        120: 0.04, 239: 0.04, 240: 0.004, 359: 0.004, 360: 0.0004, 399: 0.0004,
    }  # fmt: skip
    with tf.Session() as session:
        rates = {number: session.run(rate, {step: number}) for number in expected}
    assert rates == pytest.approx(expected, rel=1e-6)


def test_warm_up_is_one_epoch_at_most(graph):
    step = tf.placeholder(tf.int64, [])
    rate = learning_rate_schedule(step, 10, Hyperparameters(total_epochs=100))
    with tf.Session() as session:
        assert session.run(rate, {step: 4}) == pytest.approx(0.05)
        assert session.run(rate, {step: 9}) == pytest.approx(0.1)


@pytest.fixture
def data(rng):
    def split(count):
        return Split(
            rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
            rng.integers(0, 3, count).astype(np.int32),
        )

    return Dataset("noise", split(20), split(7), ["a", "b", "c"])


def test_a_step_is_nesterov_momentum_on_cross_entropy_and_l2(graph, data):
    """Two steps on the classifier's bias, whose gradient follows from the logits: the mean of
    softmax - one-hot, plus weight_decay times the bias itself."""
    hp = Hyperparameters(**TINY, weight_decay=0.1, total_epochs=1, batch_size=4)
    inputs, train_step, _, _ = build_graph(data, 5, hp)
    logits = graph.get_tensor_by_name("train/classifier/add:0")
    (bias,) = (v for v in tf.trainable_variables() if v.op.name == "classifier/bias")
    value, momentum = np.zeros(3), np.zeros(3)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for step in range(2):
            batch = Split(data.train.images[:4], data.train.labels[:4])
            output, result = session.run([logits, train_step], inputs.feed(batch, step))
            probabilities = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
            gradient = (probabilities - np.eye(3)[batch.labels]).mean(axis=0) + 0.1 * value
            momentum = 0.9 * momentum + gradient
            value = value - result["learning_rate"] * (gradient + 0.9 * momentum)
            np.testing.assert_allclose(session.run(bias), value, rtol=1e-4, atol=1e-6)
        assert session.run(tf.train.get_global_step()) == 2


def test_l2_is_over_all_trainable_variables(graph, data):
    _, _, epoch_end, _ = build_graph(data, 5, Hyperparameters(**TINY, weight_decay=0.1))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        squares = [np.square(session.run(v)).sum() for v in tf.trainable_variables()]
        l2_loss = session.run(epoch_end["l2_loss"])
    assert l2_loss == pytest.approx(0.1 * sum(squares) / 2, rel=1e-5)


def test_a_training_step_moves_every_moving_average(graph, data):
    inputs, train_step, _, test_batch = build_graph(data, 5, Hyperparameters(**TINY))
    moving = [v for v in tf.global_variables() if "moving_" in v.op.name]
    assert len(moving) == 2 * (1 + 3 * 4)  # the stem; three and a shortcut in each of three blocks
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        before = session.run(moving)
        session.run(test_batch, inputs.feed(data.test))
        for a, b in zip(before, session.run(moving), strict=True):
            np.testing.assert_array_equal(a, b)
        session.run(train_step, inputs.feed(data.train))
        assert all((a != b).any() for a, b in zip(before, session.run(moving), strict=True))


def test_means_of_an_epoch_start_anew_with_each_epoch(graph, data):
    """Three steps, two steps an epoch: the means are those of the first two, then of the third."""
    hp = Hyperparameters(**TINY, batch_size=10)
    inputs, train_step, epoch_end, _ = build_graph(data, 2, hp)
    logits = graph.get_tensor_by_name("train/classifier/add:0")
    parts = [Split(data.train.images[i : i + 7], data.train.labels[i : i + 7]) for i in (0, 7, 10)]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        losses, correct, means = [], [], []
        for step, batch in enumerate(parts):
            output, result = session.run([logits, train_step], inputs.feed(batch, step))
            shares = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
            losses.append(-np.log(shares[np.arange(7), batch.labels]))
            correct.append(output.argmax(axis=1) == batch.labels)
            means.append((result["loss"], result["accuracy"]))
            kept = session.run(epoch_end, inputs.feed(batch, step))
            assert (kept["train_loss"], kept["train_accuracy"]) == means[-1]
    for step, epoch in enumerate([slice(0, 1), slice(0, 2), slice(2, 3)]):
        expected = np.mean(losses[epoch]), np.mean(correct[epoch])
        np.testing.assert_allclose(means[step], expected, rtol=1e-5)
