"""Check that paths are rejected if TensorFlow would read them as patterns or if they are URLs, and
that ~ is the home folder."""

import pytest
import tiny_run

import SE_ResNeXt
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError
from senet.fields import not_pattern


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--run_dir=a" + character] for character in "*?[\\"),
        ["evaluate", "--checkpoint=a[1]/m"],
        ["export", "a[1]"],
        ["publish", "a[1]"],
        ["--initial_checkpoint=a[1]"],
    ],
)
def test_paths_that_are_patterns_are_rejected(tmp_path, trained, capsys, monkeypatch, arguments):
    tiny_run.arguments(tmp_path, "run")  # which writes the data
    monkeypatch.chdir(tmp_path)
    assert SE_ResNeXt.main([f"--run_dir={trained}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "must not contain *, ?, [ or \\" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_tensorflow_reads_back_a_checkpoint_with_any_allowed_name(tmp_path, graph):
    variable = tf.get_variable("v", [])
    saver = tf.train.Saver(max_to_keep=None)
    with tf.Session() as session:
        # Save under each name, and under one that it would match as a pattern.
        for name in ["X", *" !\"#$%&'()+,-.:;<=>@]^_`{|}~ü"]:
            path = str(tmp_path / f"a{name}b")
            variable.load(ord(name), session)
            saver.save(session, path, write_state=False, write_meta_graph=False)
            assert not_pattern(path) == path
            assert tf.train.NewCheckpointReader(path).get_tensor("v") == ord(name)


def test_a_tilde_is_the_home_folder_and_a_url_is_rejected(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    hp = SE_ResNeXt.Hyperparameters(run_dir="~/runs/a", dataset="~/photos", data_dir="~")
    assert (hp.run_dir, hp.dataset, hp.data_dir) == (
        "/home/ada/runs/a",
        "/home/ada/photos",
        "/home/ada",
    )
    for name in "run_dir", "initial_checkpoint", "dataset":
        with pytest.raises(HyperparameterError, match=f"--{name} must be a local path, not a URL"):
            SE_ResNeXt.Hyperparameters(**{name: "gs://bucket/run"})
