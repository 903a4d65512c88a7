"""Check that paths are rejected if TensorFlow would read them as patterns."""

import pytest
import tiny_run

import SE_ResNeXt
from senet.engine.compat import tf
from senet.hyperparameters import check_not_pattern


@pytest.mark.parametrize("name", ["exp[1]", "exp\\1", "a*", "a?b"])
def test_a_run_dir_that_is_a_pattern_is_rejected_before_training(tmp_path, capsys, name):
    assert SE_ResNeXt.main(tiny_run.arguments(tmp_path, name)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --run_dir must not contain *, ?, [ or \\")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--checkpoint=a[1]/m"],
        ["export", "a[1]"],
        ["publish", "a[1]"],
        ["--initial_checkpoint=a[1]"],
    ],
)
def test_other_paths_that_are_patterns_are_rejected(trained, capsys, arguments):
    assert SE_ResNeXt.main([*arguments, f"--run_dir={trained}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must not contain *, ?, [ or \\" in line and "a[1]" in line


@pytest.mark.parametrize("name", list(" !\"#$%&'()+,-.:;<=>@]^_`{|}~ü"))
def test_tensorflow_reads_back_a_checkpoint_with_any_allowed_name(tmp_path, graph, name):
    path = str(tmp_path / f"a{name}b")
    variable = tf.get_variable("v", [], initializer=tf.ones_initializer())
    # Save under the name itself, and under one that it would match as a pattern.
    for other in f"a{name}b", "aXb":
        with tf.Session() as session:
            session.run(variable.assign(2.0 if other == "aXb" else 1.0))
            tf.train.Saver().save(session, str(tmp_path / other), write_state=False)
    assert check_not_pattern(path) == path
    assert tf.train.NewCheckpointReader(path).get_tensor("v") == 1
