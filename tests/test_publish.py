"""Check the command `publish`, which writes a run without its optimizer state into a new folder, on
the tiny run `trained`, and the networks that it wrote into models/."""

import json
import re
import shutil

import pytest
from conftest import ROOT, assert_one_line_error
from image_folders import save
from model_cards import check_published
from PIL import Image
from tiny_run import TINY_OPTIONS

import SE_ResNet
from cifar10 import CIFAR10, load_cifar


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """Return the folder of the published run. Commands need --data_dir to find its data set."""
    folder = tmp_path_factory.mktemp("published") / "models" / "tiny"
    note = "--note=Artificial images, re-encoded as JPEG."
    assert SE_ResNet.main(["publish", str(folder), f"--run_dir={trained}", note]) == 0
    return folder


MODELS = sorted(card.parent for card in ROOT.glob("models/*/README.md"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_the_card_of_a_network_in_models_matches_its_files(folder):
    check_published(folder)


def test_the_numbers_on_the_card_match_the_files(published, trained):
    check_published(published)
    card = (published / "README.md").read_text()
    assert "Artificial images, re-encoded as JPEG." in card
    assert "with 2,625 trainable" in card  # worked out by hand in test_run.py
    (command,) = re.findall(r"^python SE_ResNet.py (--(?!initial).*)", card, re.M)
    assert set(command.split()) == {*TINY_OPTIONS, "--total_epochs=2"}
    assert "200 training and 40 test images" in card
    assert (published / "logs.txt").read_text() == (trained / "logs.txt").read_text()
    assert [path.name for path in published.parent.iterdir()] == ["tiny"]


def test_the_commands_give_the_results_of_the_run_and_leave_the_folder_unchanged(
    published, trained, call, tmp_path, monkeypatch
):
    images = load_cifar(CIFAR10, trained.parent / "data")[2]
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    data_dir = f"--data_dir={trained.parent / 'data'}"
    before = sorted(published.rglob("*"))
    for command in ["predict", "0.png"], ["excitation"], ["evaluate"]:
        expected = call(*command, f"--run_dir={trained}")
        status, output, errors = call(*command, f"--run_dir={published}", data_dir)
        output = output.replace("figure: ", f"figure: {trained}/")  # in the current folder
        assert (status, output.replace(str(published), str(trained)), errors) == expected
    assert call("export", "model", f"--run_dir={published}")[0] == 0
    assert sorted(published.rglob("*")) == before
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "0.png",
        "confusion_matrix.png",
        "excitation.png",
    }


def test_training_does_not_resume_a_published_network(published, call):
    before = sorted(published.rglob("*"))
    result = call(f"--run_dir={published}", "--total_epochs=9")
    assert_one_line_error(result, 1, f"{published} is a published network and has no optimizer ")
    assert f"use --initial_checkpoint={published} and another --run_dir" in result[2]
    assert sorted(published.rglob("*")) == before


def test_an_earlier_checkpoint_is_published_with_its_rows_and_the_settings_of_the_run(
    trained, call, tmp_path
):
    folder = tmp_path / "first"
    options = "--checkpoint=model.ckpt-10", "--micro_batch_size=7"  # for the evaluation
    assert call("publish", folder, f"--run_dir={trained}", *options)[0] == 0
    check_published(folder)
    rows = (trained / "logs.txt").read_text().splitlines(keepends=True)
    assert (folder / "logs.txt").read_text() == rows[0]
    assert "--micro_batch_size" not in (folder / "README.md").read_text()
    assert json.loads((folder / "hyperparameters.json").read_text())["micro_batch_size"] == 0


def test_a_checkpoint_without_a_row_is_rejected(trained, call, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    rows = (run / "logs.txt").read_text().splitlines(keepends=True)
    (run / "logs.txt").write_text(rows[0])
    result = call("publish", tmp_path / "new", f"--run_dir={run}")
    assert_one_line_error(
        result, 1, f"{run}/logs.txt has no row for {run}/model/model.ckpt-20: step 20 is"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_machine_specific_settings_are_not_published(trained, tmp_path, call):
    """Set --dataset to an absolute path, and set --devices."""
    *splits, names = load_cifar(CIFAR10, trained.parent / "data")
    for split, images, labels in ("train", *splits[:2]), ("test", *splits[2:]):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "images" / split / names[label] / f"{number}.png"
            save(path, Image.fromarray(image))
    options = f"--dataset={tmp_path / 'images'}", "--devices=cpu:0"
    assert call("publish", tmp_path / "new", f"--run_dir={trained}", *options)[0] == 0
    check_published(tmp_path / "new")
    fields = json.loads((tmp_path / "new" / "hyperparameters.json").read_text())
    assert fields["dataset"] == "images"
    assert not {"data_dir", "run_dir", "devices", "save_minutes"} & fields.keys()
    assert "--dataset=images" in (tmp_path / "new" / "README.md").read_text()
    for path in (tmp_path / "new").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
