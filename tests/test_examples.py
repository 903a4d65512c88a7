"""Run the examples of docs/trained_networks.md and docs/python.md, which use the network that ships
with the repository. Probabilities may differ by 0.02: the machine may compute in bfloat16."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, run_python
from fake_cifar10 import make_files, write_folder
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import SE_ResNet
import SE_ResNeXt
from senet.cli.export import decode_image
from senet.data.image_files import read_image
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a folder with the images, the network and, in runs/export/1, the export of the
    page."""
    folder = tmp_path_factory.mktemp("examples")
    for name in "assests", "models":
        (folder / name).symlink_to(ROOT / name)
    (command,) = re.findall(r"^python SE_ResNet\.py (export .*)", PAGE, re.M)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert SE_ResNet.main(command.split()) == 0
    return folder


@pytest.mark.slow
def test_an_export_works_in_plain_tensorflow_and_tflite(exported):
    write_folder(exported / "data", make_files(count=4))  # to calibrate int8
    client, tflite, int8 = blocks(PAGE)
    status, output, errors = run_python("-c", client, cwd=exported, PYTHONPATH="")
    assert status == 0, errors
    assert_close(output, "assests/ship.png: ship 0.8612\nassests/truck.png: truck 0.8632\n")
    code = f"{tflite}\nbefore = len(network)\n{int8}\nassert len(network) < 0.3 * before\n"
    status, output, errors = run_python("-c", code, cwd=exported, PYTHONPATH=str(ROOT))
    assert status == 0, errors
    assert_close(output.partition("\n")[0], "ship 0.8612")


@pytest.fixture(scope="session")
def odd_images(tmp_path_factory):
    """Return the paths of images like photos, in odd formats and sizes."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)

    def photo(width, height):
        blurred = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        image = np.array(blurred.resize((width, height), Image.Resampling.BICUBIC), float)
        noise = rng.normal(0, 12, image.shape)
        return Image.fromarray((image + noise).clip(0, 255).astype(np.uint8))

    clear = photo(150, 99).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((150, 99)))
    two_colours = photo(60, 41).convert("L").point([0] * 128 + [255] * 128)
    images = {
        "large.jpg": (photo(1301, 1003), {"quality": 92}),
        "progressive.jpeg": (photo(640, 481), {"progressive": True, "subsampling": 2}),
        "grey.jpg": (photo(333, 401).convert("L"), {}),
        "cmyk.jpg": (photo(200, 201).convert("CMYK"), {"quality": 95}),
        "clear.png": (clear, {}),
        "palette.png": (photo(301, 300).quantize(64), {"transparency": 3}),
        "grey_alpha.png": (photo(57, 41).convert("LA"), {}),
        "tiny.png": (photo(31, 29), {}),
        "one_bit.png": (two_colours.convert("1"), {}),
        "two_bits.png": (photo(64, 47).convert("L").quantize(4), {"bits": 2}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


def test_decode_image_gives_the_pixels_of_read_image(odd_images, tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        data = tf.placeholder(tf.string, [])
        decoded = decode_image(data, 32)
        for path in odd_images:
            difference = session.run(decoded, {data: path.read_bytes()}) - np.int32(
                read_image(path, 32)
            )
            # Decoders and the sums of filters may round differently.
            assert abs(difference).max() <= 1, path
            assert abs(difference).mean() < 0.1, path
        Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(tf.errors.InvalidArgumentError, match="more than 8 bits per channel"):
            session.run(decoded, {data: (tmp_path / "deep.png").read_bytes()})


LOAD_EXPORT = """
import json, pathlib, sys, numpy, tensorflow as tf
signatures = tf.saved_model.load("runs/export/1").signatures
contents = tf.constant([pathlib.Path(path).read_bytes() for path in sys.argv[1:]])
images = tf.constant(numpy.load("images.npy"))
results = {
    "encoded": signatures["encoded"](image_bytes=contents),
    "serving_default": signatures["serving_default"](images=images),
}
network = tf.lite.TFLiteConverter.from_saved_model("runs/export/1", ["serving_default"]).convert()
classify = tf.lite.Interpreter(model_content=network).get_signature_runner("serving_default")
rows = [classify(images=image[None]) for image in images.numpy()]
results["tflite"] = {name: tf.concat([row[name] for row in rows], 0) for name in rows[0]}
for name, result in results.items():
    labels = [[label.decode() for label in row] for row in result["labels"].numpy()]
    results[name] = labels, result["probabilities"].numpy().tolist()
print(json.dumps(results))
try:
    signatures["serving_default"](images=images[:, 4:])
except tf.errors.InvalidArgumentError as error:
    sys.exit(f"{error}")
"""


@pytest.mark.slow
def test_an_export_and_its_tflite_version_agree_with_predict(exported, odd_images, capsys):
    graph = saved_model_pb2.SavedModel()
    graph.ParseFromString((exported / "runs/export/1/saved_model.pb").read_bytes())
    nodes = graph.meta_graphs[0].graph_def.node
    assert {node.device for node in nodes} == {""}  # it may run on other devices
    assert not [node.name for node in nodes if "Variable" in node.op or "Random" in node.op]
    np.save(exported / "images.npy", [read_image(path, 32) for path in odd_images])
    status, output, errors = run_python("-c", LOAD_EXPORT, *odd_images, cwd=exported, PYTHONPATH="")
    message = "Shape of tensor images [10,28,32,3] is not compatible with expected shape [?,32,32,"
    assert status == 1 and message in errors
    results = json.loads(output)
    options = [f"--run_dir={exported}/models/SE_ResNet", "--mixed_precision=False"]
    assert SE_ResNet.main(["predict", *map(str, odd_images), "--json", "--top=10", *options]) == 0
    records = map(json.loads, capsys.readouterr().out.splitlines())
    for number, record in enumerate(records):
        expected = {part["label"]: part["probability"] for part in record["top"]}
        for name, columns in results.items():
            labels, values = (column[number] for column in columns)
            tolerance = 0.01 if name == "encoded" else 1e-5
            assert dict(zip(labels, values, strict=True)) == pytest.approx(expected, abs=tolerance)
            assert labels[0] == record["top"][0]["label"]
            assert values == sorted(values, reverse=True)


def test_the_examples_of_docs_python_run(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained, own_graph = blocks((ROOT / "docs" / "python.md").read_text())
    names = {}
    exec(trained, names)
    assert capsys.readouterr().out == "['ship', 'truck']\n"
    np.testing.assert_allclose(names["probabilities"].max(axis=1), [0.8612, 0.8632], atol=0.02)
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
