"""Run the examples of docs/trained_networks.md and docs/python.md, which use the network that ships
with the repository. Probabilities may differ by 0.02: the machine may compute in bfloat16."""

import re

import numpy as np
import pytest
from conftest import ROOT, run_python
from fake_cifar10 import make_files, write_folder

import SE_ResNet
import SE_ResNeXt
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.layers import moving_averages
from senet.run.trained import load

PAGE = (ROOT / "docs" / "trained_networks.md").read_text()
EXAMPLES = dict(re.findall(r"^\$ python SE_ResNet\.py (.*)\n((?:.+\n)+)", PAGE, re.M))
NUMBER = re.compile(r"\b[01]\.\d+")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)


def assert_close(output, expected):
    """Compare two texts, with a tolerance for the numbers in them."""
    assert NUMBER.sub("", output) == NUMBER.sub("", expected)
    numbers = [np.array(NUMBER.findall(text), float) for text in (output, expected)]
    np.testing.assert_allclose(*numbers, atol=0.02)


@pytest.mark.parametrize("command", [words for words in EXAMPLES if words.startswith("predict")])
def test_predict_prints_what_the_page_shows(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert SE_ResNet.main(command.split()) == 0
    assert_close(capsys.readouterr().out, EXAMPLES[command].removesuffix("```\n"))


def test_the_page_shows_the_evaluation_of_the_card():
    card = (ROOT / "models" / "SE_ResNet" / "README.md").read_text()
    (shown,) = re.findall(r"evaluate --run_dir.*?```", PAGE, re.S)
    assert set(shown.splitlines()[2:-2]) <= set(card.splitlines())


@pytest.mark.slow
def test_an_export_works_in_plain_tensorflow_and_tflite(tmp_path, capsys, monkeypatch):
    for name in "assests", "models":
        (tmp_path / name).symlink_to(ROOT / name)
    write_folder(tmp_path / "data", make_files(count=40))  # to calibrate int8
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^python SE_ResNet\.py (export .*)", PAGE, re.M)
    assert SE_ResNet.main(command.split()) == 0
    client, tflite, int8 = blocks(PAGE)
    status, output, errors = run_python("-c", client, cwd=tmp_path, PYTHONPATH="")
    assert status == 0, errors
    assert_close(output, "assests/ship.png: ship 0.7074\nassests/truck.png: truck 0.5929\n")
    sizes = f"before = len(network)\n{int8}\nassert len(network) < 0.3 * before\n"
    code = f"{tflite}\n{sizes}"
    status, output, errors = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert status == 0, errors
    assert_close(output.partition("\n")[0], "ship 0.7074")


def test_the_examples_of_docs_python_run(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained, own_graph = blocks((ROOT / "docs" / "python.md").read_text())
    names = {}
    exec(trained, names)
    assert capsys.readouterr().out == "['ship', 'truck']\n"
    np.testing.assert_allclose(names["probabilities"].max(axis=1), [0.7074, 0.5929], atol=0.02)
    with names["trained"] as network:
        values = network.session.run(network.graph.get_collection("variables")[-2:])
        assert [value.shape for value in values] == [(256, 10), (10,)]
        odds = np.exp(names["features"] @ values[0] + values[1])
        np.testing.assert_allclose(
            odds / odds.sum(axis=1, keepdims=True), names["probabilities"], atol=1e-4
        )
        with pytest.raises(TypeError, match="images must be uint8"):
            network.probabilities(names["images"] / 255)
    with pytest.raises(Failure, match="does not match this script"):
        load(SE_ResNeXt.SE_ResNeXt, "models/SE_ResNet")

    feed = np.random.default_rng(0).normal(size=(16, 32, 32, 3)), np.arange(16) % 2
    with tf.Graph().as_default():
        exec(own_graph, names)
        with names["session"] as session:
            feed = dict(zip((names["x"], names["y"]), feed, strict=True))
            expected = session.run(moving_averages(), feed)
            session.run(names["train_step"], feed)
            averages = session.run(tf.moving_average_variables())
            for _ in range(100):  # of the same batch: the averages become its statistics
                session.run(names["assigns"], feed)
            trained, tested = session.run([names["logits"], names["tested"]], feed)
    assert all(map(np.allclose, averages, expected))
    np.testing.assert_allclose(tested, trained, atol=0.05)  # their variance is the unbiased one
