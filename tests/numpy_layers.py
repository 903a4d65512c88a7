"""The layers, implemented in NumPy from their definitions. Feature maps are [batch, h, w, c]."""

import numpy as np


def windows(x, kernel, stride, padding, fill):
    """Return the windows of `x`, [batch, out_h, out_w, c, kernel_h, kernel_w]."""
    sides = [(0, 0), (0, 0)]
    if padding == "SAME":
        sides = []
        for length, k in zip(x.shape[1:3], kernel, strict=True):
            total = max((-(-length // stride) - 1) * stride + k - length, 0)
            sides.append((total // 2, total - total // 2))
    x = np.pad(x, [(0, 0), *sides, (0, 0)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return view[:, ::stride, ::stride]


def convolution(x, filters, stride=1, padding="SAME"):
    """Return the convolution with `filters`, [h, w, in / groups, out]."""
    groups = x.shape[-1] // filters.shape[2]
    outputs = [
        np.einsum("bijchw,hwco->bijo", windows(part, w.shape[:2], stride, padding, 0), w)
        for part, w in zip(
            np.split(x, groups, axis=-1), np.split(filters, groups, axis=-1), strict=True
        )
    ]
    return np.concatenate(outputs, axis=-1)


def max_pooling(x, kernel, stride, padding="VALID"):
    return windows(x, (kernel, kernel), stride, padding, -np.inf).max(axis=(-2, -1))


def average_pooling(x, kernel):
    """Return the mean of each window, not counting padding, with stride 1 and padding "SAME"."""
    return np.nanmean(windows(x, (kernel, kernel), 1, "SAME", np.nan), axis=(-2, -1))


def batch_norm(x, gamma, beta, mean, variance):
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def relu(x):
    return np.maximum(x, 0)


def squeeze_excitation(x, w1, b1, w2, b2):
    """Return the output of an SE block: SENet, equations 2 to 4."""
    z = x.mean(axis=(1, 2))
    s = 1 / (1 + np.exp(-(relu(z @ w1 + b1) @ w2 + b2)))
    return x * s[:, None, None, :]
