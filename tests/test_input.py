import numpy as np

from senet.augmentation import augment
from senet.compat import tf
from senet.data.datasets import Dataset, Split
from senet.data.inputs import picture_inputs


def test_pictures_are_normalised_by_the_training_set(graph, rng):
    train = Split(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
    test = Split(rng.integers(100, 120, (5, 4, 4, 3), np.uint8), np.ones(5, np.int32))
    inputs = picture_inputs(Dataset("noise", train, test, ["a", "b"]))
    expected = (test.images - train.images.mean((0, 1, 2))) / train.images.std((0, 1, 2))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        output = session.run(inputs.normalised, inputs.feed(test))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_variables_that_a_checkpoint_holds(graph, rng):
    split = Split(rng.integers(0, 256, (9, 4, 4, 3), np.uint8), np.zeros(9, np.int32))
    picture_inputs(Dataset("noise", split, split, ["a", "b"]))
    assert [v.op.name for v in tf.global_variables()] == [
        "input/mean",
        "input/std",
        "input/label_names",
    ]
    assert tf.trainable_variables() == []


class Augmentation:
    def __init__(self, images, seed=0):
        self.images = images
        self.step = tf.placeholder(tf.int64, [])
        self.output = augment(tf.constant(images, tf.float32), seed, self.step)
        self.session = tf.Session()

    def __call__(self, step):
        return self.session.run(self.output, {self.step: step})


def draws(images, output):
    """For each picture (shift down, shift right, flipped) that makes `images` into `output`, found
    by trying all of them; None where there is none."""
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    height, width = images.shape[1:3]
    found = [None] * len(images)
    for down in range(9):
        for right in range(9):
            crop = padded[:, down : down + height, right : right + width]
            for flipped, candidate in enumerate((crop, crop[:, :, ::-1])):
                for i in np.flatnonzero((candidate == output).all((1, 2, 3))):
                    found[i] = down - 4, right - 4, flipped
    return found


def test_each_picture_is_shifted_up_to_4_pixels_and_half_are_flipped(graph, rng):
    images = rng.normal(size=(2000, 32, 5, 1)).astype(np.float32)
    found = draws(images, Augmentation(images)(step=3))
    assert None not in found
    down, right, flipped = np.array(found).T
    # 2,000 draws over 9 shifts are 222 each, with a deviation of 14; 1,000 flips, of 22.
    for shifts in down, right:
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert counts.min() > 222 - 5 * 14
        assert counts.max() < 222 + 5 * 14
    assert abs(flipped.sum() - 1000) < 5 * 22
    assert abs(np.corrcoef([down, right, flipped]) - np.eye(3)).max() < 5 / np.sqrt(2000)


def test_augmentation_depends_on_seed_and_step_alone(graph, rng):
    images = rng.normal(size=(50, 32, 6, 3)).astype(np.float32)
    one, same, other_seed = (Augmentation(images, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one(7), same(7))
    np.testing.assert_array_equal(one(7), one(7))
    assert (one(7) != one(8)).any()
    assert (one(7) != other_seed(7)).any()


def test_augmentation_moves_in_zeros(graph):
    output = Augmentation(np.ones((200, 32, 6, 1), np.float32))(step=0)
    assert set(np.unique(output)) == {0, 1}
    assert output.sum((1, 2, 3)).min() == 56  # shifted by 4 both ways: 28x2 of 32x6 are left


def test_pictures_shift_in_proportion_to_their_size(graph):
    output = Augmentation(np.ones((500, 48, 48, 1), np.float32))(step=0)
    assert output.sum((1, 2, 3)).min() == 42 * 42  # by 6 of 48 both ways


def test_what_was_normalised_becomes_the_picture_again(graph, rng):
    train = Split(rng.integers(0, 256, (9, 8, 8, 3), np.uint8), np.zeros(9, np.int32))
    inputs = picture_inputs(Dataset("noise", train, train, ["a", "b"]))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        output = session.run(inputs.pictures(inputs.normalised), inputs.feed(train))
    np.testing.assert_array_equal(output, train.images)
