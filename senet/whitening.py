"""A frozen first convolution that approximately whitens patches of the image.

Half of its outputs are the principal components of the training images' patches, scaled to similar
variances (smaller for those with little variance), and the others are their negatives. The layers
after it can therefore start to learn at the first step (Page, "How to train your ResNet" part 8;
Jordan, arXiv 2404.00498, section 3.2).
"""

import math

import numpy as np

from senet.engine.compat import tf
from senet.engine.convolution import convolution

IMAGES = 5000  # at most this many are used to compute the filters
POSITIONS = 16  # patches per row and column of a large image
SHRINKAGE = 1e-2  # added to the variances, so that noise is not amplified to unit variance


def whitening_filters(images, mean, std, filters, side):
    """Return float32 filters [side, side, 3, filters] that whiten the patches of `images`, uint8
    [N, height, width, 3], normalised by `mean` and `std`, [3].

    Each filter is an eigenvector of the patches' covariance matrix, divided by the square root of
    its eigenvalue. The first half belong to the largest eigenvalues, in descending order; the
    second half are the same with the opposite sign, since a ReLU follows.

    Raises ValueError unless `filters` is even and at most 6 * side * side.
    """
    if filters % 2 or not 2 <= filters <= 6 * side * side:
        raise ValueError(
            f"filters must be an even number from 2 to {6 * side * side} for a kernel of side "
            f"{side}, got {filters}"
        )
    # Evenly spaced, since the images of a folder are sorted by class. Only the patches are copied,
    # since the images may be larger than memory.
    images = images[:: max(1, math.ceil(len(images) / IMAGES))]
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    # Every other position at 32x32, channels last: [N, rows, columns, side, side, 3].
    step = max(2, images.shape[1] // POSITIONS)
    windows = windows[:, ::step, ::step].transpose(0, 1, 2, 4, 5, 3)
    pixels = (windows.reshape(-1, 3).astype(np.float32) - mean) / std
    patches = pixels.reshape(-1, side * side * 3).astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    # LAPACK does not define the sign: make the largest component positive.
    largest = directions[np.abs(directions).argmax(axis=0), range(len(variances))]
    whitening = (directions * np.sign(largest) / np.sqrt(variances + SHRINKAGE))[:, ::-1]
    half = whitening[:, : filters // 2]
    return np.concatenate([half, -half], axis=1).reshape(side, side, 3, -1).astype(np.float32)


def whitening_layer(input_x, filters, side, initial_weights, layer_name):
    """Return the convolution of `input_x`, [batch, height, width, 3], without padding, with the
    frozen variable `weights`, [side, side, 3, filters], whose initial value is `initial_weights`.

    `initial_weights` may be None if a checkpoint supplies the value, as in evaluate and predict."""
    with tf.variable_scope(layer_name):
        # With NaN, training without filters fails; with zeros, it would run on all-zero maps.
        initial = tf.constant_initializer(np.nan if initial_weights is None else initial_weights)
        weights = tf.get_variable(
            "weights", [side, side, 3, filters], initializer=initial, trainable=False
        )
        return convolution(input_x, tf.cast(weights, input_x.dtype), padding="VALID")
