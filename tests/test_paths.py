"""Check that paths are rejected if TensorFlow would read them as patterns."""

import pytest
import tiny_run

import SE_ResNeXt
from senet.engine.compat import tf
from senet.hyperparameters import check_not_pattern


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
            assert check_not_pattern(path) == path
            assert tf.train.NewCheckpointReader(path).get_tensor("v") == ord(name)
