"""The training scripts, one row each, for tests that apply to all of them."""

import importlib
from typing import NamedTuple

import numpy as np
import pytest

from senet.data.datasets import Dataset, Split
from senet.engine.compat import tf


class Script(NamedTuple):
    """A training script, and the properties that tests need."""

    name: str  # of the module, and of the network's class
    title: str  # as in README.md
    parameters: dict  # {reduction ratio: trainable parameters for 10 classes}
    multiply_adds: float  # in billions, of a forward pass of one image
    se_blocks: int
    tiny: dict  # hyperparameters of the smallest network for 32x32 images

    @property
    def module(self):
        return importlib.import_module(self.name)

    @property
    def network(self):
        return getattr(self.module, self.name)

    def hyperparameters(self, **fields):
        return self.module.Hyperparameters(**fields)


SCRIPTS = [
    Script(
        "SE_ResNet",
        "SE-ResNet",
        {0: 1_971_338, 16: 1_988_846},
        multiply_adds=0.12,
        se_blocks=3,
        tiny={"width": 2, "reduction_ratio": 2},
    ),
    Script(
        "SE_ResNeXt",
        "SE-ResNeXt-29 8x64d",
        {0: 34_426_698, 16: 34_948_506},
        multiply_adds=48.49,
        se_blocks=9,
        tiny={"cardinality": 2, "depth": 2, "blocks": 1, "reduction_ratio": 2, "padding": 0},
    ),
    Script(
        "SE_Inception_v4",
        "SE-Inception-v4",
        {0: 41_158_186, 16: 43_477_002},
        multiply_adds=0.73,
        se_blocks=16,
        tiny={"padding": 22},
    ),
    Script(
        "SE_Inception_resnet_v2",
        "SE-Inception-ResNet-v2",
        {0: 30_310_378, 16: 35_704_030},
        multiply_adds=0.57,
        se_blocks=22,
        tiny={"padding": 22},
    ),
]
by_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def noise(count, label_names="ab"):
    """Return a Dataset of `count` black images; their values do not matter."""
    split = Split(np.zeros([count, 32, 32, 3], np.uint8), np.zeros(count, np.int32))
    return Dataset("noise", split, split, list(label_names))


# The smallest SE_ResNeXt, in float32 and without micro-batches.
TINY = {**SCRIPTS[1].tiny, "micro_batch_size": 0, "mixed_precision": False}


def assert_readable_graph(run_dir):
    """Assert that TensorBoard's graph page shows few boxes at the top level (not counting the
    modules of the Inceptions) and one box for each SE block."""
    files = run_dir.rglob("events.out.tfevents.*")
    events = [event for file in files for event in tf.train.summary_iterator(str(file))]
    (graph,) = [event.graph_def for event in events if event.graph_def]
    nodes = tf.GraphDef.FromString(graph).node
    top = {node.name.partition("/")[0] for node in nodes}
    assert {"input", "outputs"} <= top
    assert not top & {"save", "test", "train", "epoch_end", "epoch_sums", "global_step", "to_uint8"}
    parts = {name for name in top if not name.startswith(("Inception", "Reduction"))}
    assert len(parts) <= 16
    boxes = {"/".join(node.name.split("/")[:-1]) for node in nodes}
    blocks = {box for box in boxes if box.endswith("/SE")}
    tags = {value.tag for event in events for value in event.summary.value}
    assert len(blocks) == sum(tag.startswith("squeeze_excitation/") for tag in tags) > 0
