"""Compare the modules of the two Inception networks with NumPy versions of the paper's figures.

Branches are written as in the figures: `1x1 64, 3x3 96/2V` is a 1x1 convolution with 64
filters, then a 3x3 one with 96 filters, stride 2 and no padding.
"""

import re

import numpy as np
import numpy_layers as nl
import pytest
from conftest import load_values

import SE_Inception_resnet_v2 as resnet_v2
import SE_Inception_v4 as v4
from senet.engine.compat import tf

NETWORKS = {v4: v4.SE_Inception_v4, resnet_v2: resnet_v2.SE_Inception_resnet_v2}
by_inception = pytest.mark.parametrize("script", NETWORKS, ids=lambda script: script.__name__)


class Module:
    """A module of a network, built alone, with random input and random variables."""

    def __init__(self, script, method, shape, ratio=8, name="module"):
        class Alone(NETWORKS[script]):
            def Build_SEnet(self, x, classes):
                return getattr(self, method)(x, *([] if method == "Stem" else [name]))

        rng = np.random.default_rng(1)
        self.x = rng.normal(size=shape).astype(np.float32)
        with tf.Graph().as_default(), tf.Session() as session:
            hyperparameters = script.Hyperparameters(reduction_ratio=ratio)
            output = Alone(tf.constant(self.x), False, hyperparameters).model
            session.run(tf.global_variables_initializer())
            self.variables = session.run({v.op.name: v for v in tf.global_variables()})
            drawn = {
                variable: rng.uniform(0.5, 1.5, variable.shape).astype(np.float32)
                for variable in tf.global_variables()
                if not variable.op.name.endswith("weights")
            }
            # These weights start at zero, which would make the gates independent of the input.
            drawn |= {
                variable: rng.normal(0, 0.1, variable.shape).astype(np.float32)
                for variable in tf.global_variables(f"{name}/SE/fully_connected2/weights")
            }
            load_values(session, drawn)
            self.variables |= {variable.op.name: value for variable, value in drawn.items()}
            self.output = session.run(output)
        self.scope = "Stem" if method == "Stem" else name
        self.branches = 0

    def variable(self, *path):
        return self.variables.pop("/".join([self.scope, *path]))

    def branch(self, x, text):
        """Return the output of the figure's next branch, computed with NumPy."""
        scope = "branch" + (f"_{self.branches}" if self.branches else "")
        self.branches += 1
        for number, part in enumerate(text.split(", "), 1):
            height, width, filters, stride, valid = re.fullmatch(
                r"(\d)x(\d) (\d+)(?:/(\d))?(V?)", part
            ).groups()
            weights = self.variable(scope, f"conv{number}", "conv", "weights")
            assert weights.shape == (int(height), int(width), x.shape[-1], int(filters))
            x = nl.convolution(x, weights, int(stride or 1), "VALID" if valid else "SAME")
            norm = ("gamma", "beta", "moving_mean", "moving_variance")
            x = nl.batch_norm(
                x, *(self.variable(scope, f"conv{number}", "batch_norm", name) for name in norm)
            )
            x = nl.relu(x)
        return x

    def gated(self, x):
        names = [(f"fully_connected{n}", kind) for n in (1, 2) for kind in ("weights", "bias")]
        return nl.squeeze_excitation(x, *(self.variable("SE", *name) for name in names))

    def check(self, expected):
        assert self.variables == {}  # the figure uses every variable
        scale = np.abs(expected).max()
        np.testing.assert_allclose(self.output / scale, expected / scale, rtol=0, atol=1e-4)


def concatenate(*branches):
    return np.concatenate(branches, axis=-1)


@by_inception
def test_stem_matches_figure_3(script):
    m = Module(script, "Stem", (2, 75, 75, 3))
    x = m.branch(m.x, "3x3 32/2V, 3x3 32V, 3x3 64")
    x = concatenate(nl.max_pooling(x, 3, 2), m.branch(x, "3x3 96/2V"))
    x = concatenate(m.branch(x, "1x1 64, 3x3 96V"), m.branch(x, "1x1 64, 7x1 64, 1x7 64, 3x3 96V"))
    m.check(concatenate(m.branch(x, "3x3 192/2V"), nl.max_pooling(x, 3, 2)))


# Script, module, height of the input, which is a pixel wider, and the branches of figures 4, 7, 7,
# 5 (with 7x1 for the second 1x7), 8 and 18. "average" and "max" are 3x3 pooling.
CONCATENATED = [
    (v4, "Inception_A", 5, "average, 1x1 96; 1x1 96; 1x1 64, 3x3 96; 1x1 64, 3x3 96, 3x3 96"),
    (v4, "Reduction_A", 9, "max; 3x3 384/2V; 1x1 192, 3x3 224, 3x3 256/2V"),
    (resnet_v2, "Reduction_A", 9, "max; 3x3 384/2V; 1x1 256, 3x3 256, 3x3 384/2V"),
    (
        *(v4, "Inception_B", 5),
        "average, 1x1 128; 1x1 384; 1x1 192, 1x7 224, 7x1 256; "
        "1x1 192, 1x7 192, 7x1 224, 1x7 224, 7x1 256",
    ),
    (v4, "Reduction_B", 4, "max; 1x1 192, 3x3 192/2V; 1x1 256, 1x7 256, 7x1 320, 3x3 320/2V"),
    (
        *(resnet_v2, "Reduction_B", 4),
        "max; 1x1 256, 3x3 384/2V; 1x1 256, 3x3 288/2V; 1x1 256, 3x3 288, 3x3 320/2V",
    ),
]


@pytest.mark.parametrize("script, method, height, figure", CONCATENATED)
def test_concatenated_branches_match_the_figures(script, method, height, figure):
    m = Module(script, method, (2, height, height + 1, 7), ratio=7)
    branches = []
    for text in figure.split("; "):
        x = nl.average_pooling(m.x, 3) if text.startswith("average, ") else m.x
        convolutions = text.removeprefix("average, ")
        branches.append(nl.max_pooling(m.x, 3, 2) if text == "max" else m.branch(x, convolutions))
    m.check(m.gated(concatenate(*branches)))


def test_inception_c_matches_figure_6():
    m = Module(v4, "Inception_C", (2, 3, 4, 7))
    short = m.branch(m.x, "1x1 384")
    long = m.branch(m.x, "1x1 384, 1x3 448, 3x1 512")
    m.check(
        m.gated(
            concatenate(
                m.branch(nl.average_pooling(m.x, 3), "1x1 256"),
                m.branch(m.x, "1x1 256"),
                m.branch(short, "1x3 256"),
                m.branch(short, "3x1 256"),
                m.branch(long, "1x3 256"),
                m.branch(long, "3x1 256"),
            )
        )
    )


RESIDUAL = [
    ("Inception_resnet_A", ["1x1 32", "1x1 32, 3x3 32", "1x1 32, 3x3 48, 3x3 64"]),  # figure 16
    ("Inception_resnet_B", ["1x1 192", "1x1 128, 1x7 160, 7x1 192"]),  # figure 17
    ("Inception_resnet_C", ["1x1 192", "1x1 192, 1x3 224, 3x1 256"]),  # figure 19
]


@pytest.mark.parametrize("method, figure", RESIDUAL)
@pytest.mark.parametrize("ratio", [0, 8])
def test_residual_modules_match_figures_16_17_and_19(method, figure, ratio):
    m = Module(resnet_v2, method, (2, 5, 6, 24), ratio)
    branches = concatenate(*(m.branch(m.x, text) for text in figure))
    linear = nl.convolution(branches, m.variable("linear", "weights")) + m.variable(
        "linear", "bias"
    )
    m.check(nl.relu(m.x + (m.gated(0.1 * linear) if ratio else 0.1 * linear)))
