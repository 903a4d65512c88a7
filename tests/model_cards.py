"""Check a published network and its card, using only its files."""

import hashlib
import json
import math
import re

import numpy as np

from senet.data.inputs import decode_json
from senet.engine.compat import tf


def check_published(folder):
    """Assert that the numbers on the card match the files, and that these contain no absolute
    paths."""
    card = (folder / "README.md").read_text("utf-8")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(line.split("  ")[::-1] for line in lines)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {str(path.relative_to(folder)) for path in files} == {*listed, "SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in files) <= 10e6

    for name in "README.md", "hyperparameters.json", "logs.txt", "model/checkpoint":
        text = (folder / name).read_text("utf-8")
        assert not re.search(r"(?<![\w<.])~?/\w", text), f"{name} has an absolute path"

    (index,) = folder.glob("model/*.index")
    reader = tf.train.NewCheckpointReader(str(index.with_suffix("")))
    shapes = reader.get_variable_to_shape_map()
    network = decode_json(reader.get_tensor("network_variables"))
    others = {"input/mean", "input/std", "input/label_names", "global_step", "network_variables"}
    # Networks that were published by an earlier version have no fields.
    assert shapes.keys() - {"network_fields"} == network.keys() | others
    fields = json.loads((folder / "hyperparameters.json").read_text("utf-8"))
    frozen = {"stem/weights"} if "width" in fields else set()  # of SE_ResNet
    sizes = [
        math.prod(shape)
        for name, shape in network.items()
        if not name.startswith("input/") and "/moving_" not in name and name not in frozen
    ]
    assert f"with {sum(sizes):,} trainable" in card
    for name in "mean", "std":
        digits = ", ".join(f"{value:.4f}" for value in reader.get_tensor(f"input/{name}"))
        assert f"{name} {digits} " in " ".join(card.split())
    names = decode_json(reader.get_tensor("input/label_names"))
    assert f"**Classes** ({len(names)}): {', '.join(names)}." in card

    rows = (folder / "logs.txt").read_text("utf-8").splitlines()
    assert re.findall(r"^epoch: .*", card, re.M) == rows[-1:]
    accuracy = re.search(r"^test_loss: \d+\.\d{4}, test_acc: (\d\.\d{4})", card, re.M)[1]
    table = card.partition("\nclass ")[2].partition("```")[0].splitlines()[1:]
    matrix = np.array([line.replace(" .", " 0").split()[-len(names) :] for line in table], int)
    assert f"{matrix.trace() / matrix.sum():.4f}" == accuracy
    assert f"{matrix.sum():,} test images" in " ".join(card.split())
    assert f"with seed {fields['seed']} " in card
