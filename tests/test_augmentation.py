import numpy as np
import pytest

from senet.augmentation import (
    alternating_flip,
    cutout,
    flip,
    mixup,
    random_key,
    shift,
    whole_pixels,
)
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.losses import batch_loss, cross_entropy


class Augmentation:
    def __init__(self, images, seed=0, augment=shift, **options):
        self.images = images
        self.step = tf.placeholder(tf.int64, [])
        self.output = augment(tf.constant(images, tf.float32), seed, self.step, **options)
        self.session = tf.Session()

    def __call__(self, step):
        return self.session.run(self.output, {self.step: step})


def find_shifts(images, output, mode="constant"):
    """Try all shifts of each image; return the (shift down, shift right) that gives its output, or
    None where there is none. `mode` is the mode of `np.pad`."""
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode)
    height, width = images.shape[1:3]
    found = [None] * len(images)
    for down in range(9):
        for right in range(9):
            crop = padded[:, down : down + height, right : right + width]
            for i in np.flatnonzero((crop == output).all((1, 2, 3))):
                found[i] = down - 4, right - 4
    return found


def test_each_image_is_shifted_up_to_4_pixels(graph, rng):
    images = rng.normal(size=(2000, 32, 5, 1)).astype(np.float32)
    found = find_shifts(images, Augmentation(images)(step=3))
    assert None not in found
    # Of 2,000 images, 222 are expected to have each of the 9 shifts, with a standard deviation of
    # 14.
    for shifts in np.array(found).T:
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert counts.min() > 222 - 5 * 14
        assert counts.max() < 222 + 5 * 14
    assert abs(np.corrcoef(np.array(found).T)[0, 1]) < 5 / np.sqrt(2000)


def flipped(images, output):
    """Return whether each image was flipped, bool [N], after checking that it was or was not."""
    mirrored = (output == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored ^ (output == images).all((1, 2, 3))).all()
    return mirrored


def test_half_of_the_images_are_flipped(graph, rng):
    images = rng.normal(size=(2000, 8, 5, 3)).astype(np.float32)
    augment = Augmentation(images, augment=flip)
    first, second = (flipped(images, augment(step)) for step in (3, 4))
    # Of 2,000 images, 1,000 are expected, with a standard deviation of 22.
    assert abs(first.sum() - 1000) < 5 * 22
    assert abs((first ^ second).sum() - 1000) < 5 * 22


def test_alternating_flips_show_both_sides_in_two_epochs(graph, rng):
    images = rng.normal(size=(2000, 8, 5, 3)).astype(np.float32)
    augment = Augmentation(images, augment=alternating_flip, epoch_steps=10)
    first = flipped(images, augment(0))
    assert abs(first.sum() - 1000) < 5 * 22
    for step, expected in (9, first), (10, ~first), (19, ~first), (20, first):
        np.testing.assert_array_equal(flipped(images, augment(step)), expected)
    # Neither the other images of the batch nor their order matters.
    shuffled = rng.permutation(2000)[:500]
    part = Augmentation(images[shuffled], augment=alternating_flip, epoch_steps=10)(0)
    np.testing.assert_array_equal(flipped(images[shuffled], part), first[shuffled])
    other_seed = flipped(images, Augmentation(images, 1, alternating_flip, epoch_steps=10)(0))
    assert abs((first ^ other_seed).sum() - 1000) < 5 * 22


@pytest.mark.parametrize(
    "fraction, side, pixels",
    [(1 / 8, 32, 4), (0.0, 32, 0), (0.3, 32, 9), (1 / 49, 49, 1), (0.29, 100, 29)],
)
def test_a_fraction_of_the_side_is_rounded_down_to_whole_pixels(fraction, side, pixels):
    assert whole_pixels("cutout", fraction, side) == pixels


@pytest.mark.parametrize("augment, name", [(shift, "max_shift"), (cutout, "cutout")])
def test_a_fraction_of_less_than_a_pixel_is_an_error(graph, augment, name):
    images = tf.zeros([1, 32, 32, 3])
    message = f"--{name} must be 0 or at least 1/32, one pixel, got 0.03"
    with pytest.raises(HyperparameterError, match=message):
        augment(images, 0, 0, 0.03)


@pytest.mark.parametrize("augment, options", [(shift, {}), (flip, {}), (cutout, {"side": 0.25})])
def test_augmentation_depends_only_on_seed_and_step(graph, rng, augment, options):
    images = rng.normal(size=(50, 32, 6, 3)).astype(np.float32)
    one, repeated, other_seed = (
        Augmentation(images, seed, augment, **options) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one(7), repeated(7))
    np.testing.assert_array_equal(one(7), one(7))
    assert (one(7) != one(8)).any()
    assert (one(7) != other_seed(7)).any()


def test_the_gap_left_by_a_shift_is_filled_with_the_mirror_image(graph, rng):
    images = rng.normal(size=(200, 32, 6, 1)).astype(np.float32)
    output = Augmentation(images, padding="reflect")(step=0)
    assert None not in find_shifts(images, output, "reflect")


@pytest.mark.parametrize(
    "side, max_shift, pixels",
    [(32, 0.0, 0), (32, 1 / 16, 2), (32, 0.1, 3), (32, 0.5, 16), (48, 1 / 8, 6)],
)
def test_max_shift_limits_the_shift(graph, side, max_shift, pixels):
    images = np.ones((2000, side, side, 1), np.float32)
    output = Augmentation(images, max_shift=max_shift)(step=0)
    rows = output.max(axis=2).sum(axis=1)  # number of rows that show the image
    assert rows.min() == side - pixels


def test_cutout_zeroes_a_square_centred_anywhere_in_the_image(graph, rng):
    output = Augmentation(np.ones((2000, 32, 32, 3), np.float32), augment=cutout, side=0.25)(step=0)
    zero = output == 0
    assert (zero == zero[..., :1]).all()  # all channels
    zero = zero[..., 0]
    rows, columns = zero.any(axis=2), zero.any(axis=1)
    np.testing.assert_array_equal(zero, rows[:, :, None] & columns[:, None, :])
    for inside in rows, columns:
        # The square starts between 4 pixels outside the image and 5 pixels before its end.
        first = np.argmax(inside, axis=1)
        last = 31 - np.argmax(inside[:, ::-1], axis=1)
        start = np.where(first > 0, first, last - 7)
        values, counts = np.unique(start, return_counts=True)
        assert values.tolist() == list(range(-4, 28))
        np.testing.assert_array_equal(inside.sum(axis=1), last - first + 1)
        np.testing.assert_array_equal(last, np.minimum(start + 7, 31))
        # Of 2,000 images, 62.5 are expected per start, with a standard deviation of 7.8.
        assert counts.min() > 62.5 - 4 * 7.8
        assert counts.max() < 62.5 + 4 * 7.8
    assert (output[~zero] == 1).all()


@pytest.mark.parametrize("side, pixels", [(0.0, 0), (0.5, 24)])
def test_cutout_is_in_proportion_to_the_image(graph, side, pixels):
    output = Augmentation(np.ones((500, 48, 48, 1), np.float32), augment=cutout, side=side)(step=0)
    assert (output == 0).sum((1, 2, 3)).max() == pixels**2


def test_random_keys_differ_between_seeds_and_purposes():
    keys = {random_key(seed, 5, purpose)[0] for seed in (0, 1, 2**32 - 1) for purpose in "abc"}
    assert len(keys) == 9
    assert max(keys) < 2**32


def test_mixup_mixes_each_image_with_its_partner_and_the_loss_follows(graph, rng):
    images = rng.normal(size=(2001, 2, 3, 1)).astype(np.float32)
    labels = rng.integers(0, 5, 2001).astype(np.int32)
    logits = tf.constant(rng.normal(size=(2001, 5)), tf.float32)
    step = tf.placeholder(tf.int64, [])
    batch = mixup({"images": tf.constant(images), "labels": tf.constant(labels)}, 0, step, 1.0)
    both = [cross_entropy(logits, labels), cross_entropy(logits, labels[::-1])]
    with tf.Session() as session:
        fetches = batch, batch_loss(logits, batch, 0.0), both
        mixed, loss, (own, other) = session.run(fetches, {step: 3})
        again = session.run(batch["weights"], {step: 3})
        later = session.run(batch["weights"], {step: 4})
    weights = mixed["weights"]
    share = weights[:, None, None, None]
    expected = share * images + (1 - share) * images[::-1]
    np.testing.assert_allclose(mixed["images"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixed["other_labels"], labels[::-1])
    np.testing.assert_allclose(loss, weights * own + (1 - weights) * other, rtol=1e-5)
    # Beta(1, 1) is uniform, so the larger of the two shares is uniform between 1/2 and 1.
    assert weights.min() >= 0.5
    np.testing.assert_allclose(np.quantile(weights, [0.25, 0.5, 0.75]), [5 / 8, 6 / 8, 7 / 8], 0.05)
    np.testing.assert_array_equal(weights, again)
    assert (weights != later).mean() > 0.99


@pytest.mark.parametrize("alpha", [0.005, 0.2])
def test_mixup_follows_the_beta_distribution(graph, rng, alpha):
    batch = {"images": tf.zeros([20_000, 1, 1, 1]), "labels": tf.zeros([20_000], tf.int32)}
    with tf.Session() as session:
        weights = session.run(mixup(batch, 0, 3, alpha)["weights"])
    drawn = rng.beta(alpha, alpha, 20_000)
    expected = np.maximum(drawn, 1 - drawn)
    assert weights.mean() == pytest.approx(expected.mean(), abs=0.003)
    assert (weights < 0.6).mean() == pytest.approx((expected < 0.6).mean(), abs=0.005)


def test_mixup_with_an_alpha_of_0_changes_nothing(graph):
    batch = {"images": tf.zeros([2, 4, 4, 3]), "labels": tf.zeros([2], tf.int32)}
    assert mixup(batch, 0, 0, 0.0) is batch
