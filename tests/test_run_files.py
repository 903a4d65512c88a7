"""The files of a run when it is resumed or while it trains: with other settings or images, deleted,
damaged, foreign, moved, or on a full disk."""

import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import sys

import numpy as np
import pytest
from conftest import assert_one_line_error, flip_a_bit, full_disk
from fake_cifar10 import make_files, write_folder
from forked import run_script
from image_folders import write_image_folder
from tiny_run import IMAGES, STEPS, arguments, command, signal_after_epoch

import SE_ResNet
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.hyperparameters import RunHyperparameters
from senet.layers import conv_layer
from senet.run.checkpoints import Checkpoints, checkpoint_files
from senet.run.folder import RunFolder

VALUES = {"train_loss": 1.0, "train_acc": 0.5, "test_loss": 1.0, "test_acc": 0.25}


@pytest.fixture
def hyperparameters(tmp_path):
    return RunHyperparameters(run_dir=str(tmp_path / "run"))


class TestFolder:
    @pytest.mark.parametrize("left", [[], ["model.ckpt-10.data-00000-of-00001"]])
    def test_rows_without_their_checkpoints_are_kept(self, hyperparameters, left):
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
            folder.add_row(2, VALUES)
            for name in left:
                (folder.model / name).touch()
        before = folder.row_file.read_text()
        with pytest.raises(Failure, match=r"rows up to epoch 2, but .*/model has no checkpoint"):
            RunFolder(hyperparameters).__enter__()
        assert folder.row_file.read_text() == before

    def test_a_file_with_other_lines_is_not_overwritten(self, hyperparameters, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "logs.txt").write_text("my notes\nof two lines")
        with pytest.raises(Failure, match=r"logs\.txt has lines that no run wrote; move it, or "):
            RunFolder(hyperparameters).__enter__()
        assert (tmp_path / "run" / "logs.txt").read_text() == "my notes\nof two lines"

    def test_a_full_disk_while_writing_a_row_keeps_the_earlier_rows(self, hyperparameters):
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
            before = folder.row_file.read_text()
            with full_disk(100), pytest.raises(Failure, match=r"cannot write .*logs.txt: File too"):
                folder.add_row(2, VALUES)
            assert folder.row_file.read_text() == before

    def test_a_moved_folder_is_not_created_again(self, hyperparameters, tmp_path):
        with RunFolder(hyperparameters) as folder:
            folder.path.rename(tmp_path / "elsewhere")
            with pytest.raises(Failure, match="/run was moved or deleted; move it back, then "):
                folder.add_row(1, VALUES)
        assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]

    def test_a_process_that_lost_the_lock_adds_no_row(self, hyperparameters):
        with RunFolder(hyperparameters) as first:
            first.lock_file.unlink()
            with RunFolder(hyperparameters) as second:
                with pytest.raises(Failure, match="another process is training in "):
                    first.add_row(1, VALUES)
                assert not first.row_file.exists()
                second.add_row(1, VALUES)
                assert second.row_file.exists()

    def test_a_folder_that_cannot_be_created_is_reported(self, tmp_path):
        (tmp_path / "file").touch()
        hyperparameters = RunHyperparameters(run_dir=str(tmp_path / "file" / "run"))
        with pytest.raises(Failure, match="^cannot write .*/file/run/model: Not a directory; fix "):
            RunFolder(hyperparameters).__enter__()


class TestCheckpoints:
    @pytest.fixture
    def saving(self, tmp_path):
        """Yield the Checkpoints of a variable of two values, the variable and a session."""
        with tf.Graph().as_default(), tf.Session() as session:
            tf.train.get_or_create_global_step()
            variable = tf.get_variable("v", initializer=[1.0, 2.0])
            (tmp_path / "model").mkdir()
            checkpoints = Checkpoints(tmp_path / "model", variable + 1, {})
            session.run(tf.global_variables_initializer())
            yield checkpoints, variable, session

    def test_the_newest_three_and_the_best_are_kept(self, saving):
        checkpoints, _, session = saving
        for step in range(1, 9):
            checkpoints.save(session, step, best_step=2 if step > 1 else None)
        assert list(checkpoint_files(checkpoints.folder)) == [2, 6, 7, 8]

    def test_an_incomplete_checkpoint_is_ignored(self, saving):
        """A process that was killed during a save leaves files without an index."""
        checkpoints, _, session = saving
        for step in 1, 2:
            tf.train.get_global_step().load(step, session)
            checkpoints.save(session, step)
        (checkpoints.folder / "model.ckpt-2.index").unlink()
        assert checkpoints.restore(session)
        assert checkpoints.current == 1

    def test_tensorflow_finds_the_newest_checkpoint_of_a_moved_folder(self, saving, tmp_path):
        checkpoints, _, session = saving
        checkpoints.save(session, 8)
        moved = checkpoints.folder.rename(tmp_path / "moved")
        assert tf.train.latest_checkpoint(str(moved)) == str(moved / "model.ckpt-8")

    def test_a_value_that_is_not_finite_is_not_saved(self, saving):
        checkpoints, variable, session = saving
        variable.load([1.0, np.inf], session)
        with pytest.raises(Failure, match="not finite after step 7"):
            checkpoints.save(session, 7)
        assert list(checkpoints.folder.iterdir()) == []


# ------------------------------------------------------------------------------ whole runs


@pytest.fixture
def train(call):
    """Return a function that trains a run of three epochs, or of those in `options`."""

    def train(run_dir, *options):
        return call(*arguments(run_dir.parent, run_dir.name, "--total_epochs=3", *options))

    return train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with the images, the finished run `three` of three epochs, and the run `two`,
    which was killed after two of them."""
    folder = tmp_path_factory.mktemp("trained")
    assert SE_ResNet.main(arguments(folder, "three", "--total_epochs=3")) == 0
    killed = command(folder, "two", "--total_epochs=3")
    status, *_ = run_script(*killed, prepare=(signal_after_epoch, 2))
    assert status == -signal.SIGKILL
    return folder


@pytest.fixture
def two(runs, tmp_path):
    """Return a copy of the run that was killed after two of three epochs."""
    write_folder(tmp_path / "data", make_files(count=IMAGES))
    return shutil.copytree(runs / "two", tmp_path / "two")


@pytest.fixture
def assert_resumes(two, train):
    """Return a function that resumes `two` and checks the step at which it does."""

    def assert_resumes(step, *options, total=3 * STEPS):
        status, output, errors = train(two, *options)
        assert (status, errors) == (0, "")
        assert f"resuming at step {step} of {total}" in output
        return output

    return assert_resumes


def file_contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def assert_rejected(two, train):
    """Return a function that resumes `two` and checks the error, and that no file changed."""

    def assert_rejected(start, *options):
        before = file_contents(two)
        result = train(two, *options)
        assert_one_line_error(result, 1, start)
        assert file_contents(two) == before
        return result[2]

    return assert_rejected


CORRUPTIONS = {
    "truncated data": ("data-00000-of-00001", lambda path: os.truncate(path, 1000)),
    "data with a flipped bit": ("data-00000-of-00001", flip_a_bit),
    "missing data": ("data-00000-of-00001", lambda path: path.unlink()),
    "index with a flipped bit": ("index", flip_a_bit),
}


@pytest.mark.slow
class TestDamagedCheckpoints:
    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    def test_any_corruption_is_reported(self, two, assert_rejected, corruption):
        suffix, corrupt = CORRUPTIONS[corruption]
        corrupt(two / "model" / f"model.ckpt-{2 * STEPS}.{suffix}")
        errors = assert_rejected(f"{two}/model/model.ckpt-20: cannot be read (")
        assert "delete its files to use the previous checkpoint" in errors

    def test_training_resumes_from_the_previous_checkpoint_after_its_deletion(
        self, runs, two, assert_resumes
    ):
        for file in (two / "model").glob(f"model.ckpt-{2 * STEPS}.*"):
            file.unlink()
        assert_resumes(STEPS)
        assert (two / "logs.txt").read_text() == (runs / "three" / "logs.txt").read_text()

    def test_a_checkpoint_of_another_network_is_rejected(self, two, assert_rejected, monkeypatch):
        def another(x, out_dim, ratio, layer_name):
            return conv_layer(x, out_dim, 1, layer_name="another")

        monkeypatch.setattr(SE_ResNet, "Squeeze_excitation_layer", another)
        assert_rejected(f"{two}/model/model.ckpt-20 does not match the network: missing from the ")


@pytest.mark.slow
class TestRows:
    def test_an_epoch_with_an_incomplete_row_is_evaluated_on_resume(
        self, runs, two, assert_resumes
    ):
        rows = (two / "logs.txt").read_text()
        (two / "logs.txt").write_text(rows[:-9])
        output = assert_resumes(2 * STEPS)
        assert [line[:10] for line in output.splitlines()[5:7]] == ["epoch: 2/3", "epoch: 3/3"]
        assert (two / "logs.txt").read_text() == (runs / "three" / "logs.txt").read_text()

    def test_a_run_without_rows_resumes_at_its_checkpoint(self, runs, two, assert_resumes):
        (two / "logs.txt").unlink()
        shutil.rmtree(two / "test")
        assert_resumes(2 * STEPS)
        last_two = (runs / "three" / "logs.txt").read_text().splitlines()[1:]
        assert (two / "logs.txt").read_text().splitlines() == last_two


@pytest.mark.slow
class TestSettings:
    @pytest.mark.parametrize(
        "options, changes",
        [
            (("--width=3", "--momentum=0.5"), ["width was 2, now 3", "momentum was 0.85, now 0.5"]),
            (("--total_epochs=2",), ["total_epochs was 3, now 2"]),
        ],
    )
    def test_different_hyperparameters_are_rejected(self, two, assert_rejected, options, changes):
        start = f"{two} was trained with different hyperparameters ("
        errors = assert_rejected(start, *options)
        assert all(change in errors for change in changes)

    def test_more_epochs_and_a_different_save_interval_are_accepted(self, two, assert_resumes):
        options = "--total_epochs=4", "--save_minutes=3", "--allow_soft_placement=False"
        assert_resumes(2 * STEPS, *options, total=4 * STEPS)
        assert json.loads((two / "hyperparameters.json").read_text())["total_epochs"] == 4

    def test_checkpoints_with_unreadable_hyperparameters_are_rejected(self, two, assert_rejected):
        (two / "hyperparameters.json").write_text("{")
        assert_rejected(f"{two}/hyperparameters.json cannot be read: ")

    def test_different_test_images_are_rejected(self, two, assert_rejected):
        files = make_files(count=IMAGES)
        shutil.rmtree(two.parent / "data")
        write_folder(two.parent / "data", files | {"test_batch": files["data_batch_1"]})
        assert_rejected(f"the images or their labels differ from those that {two} was trained and")

    @pytest.mark.parametrize("count", [2, 10])
    def test_different_classes_are_rejected(self, two, assert_rejected, count):
        photos = two.parent / "photos"
        write_image_folder(photos, [f"klass {number}" for number in range(count)], train=20)
        errors = assert_rejected(str(two), f"--dataset={photos}")
        assert " was trained on different classes (class 0, class 1, " in errors

    def test_a_finished_run_says_how_to_continue(self, runs, train):
        before = file_contents(runs / "three" / "model")
        status, output, errors = train(runs / "three")
        assert (status, errors) == (0, "")
        assert "already finished; use a larger --total_epochs to continue" in output
        assert file_contents(runs / "three" / "model") == before


@pytest.mark.slow
class TestWriting:
    def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(self, two, assert_resumes):
        """Simulate a full disk by limiting the size of files; a checkpoint is 80 kB."""
        before = file_contents(two / "model")
        # Save after each step, so that a save fails before an event of the epoch is written.
        errors = self.train_on_a_full_disk(20_000, two, "--save_minutes=1e-9")
        assert errors.startswith(f"error: cannot write a checkpoint into {two}/model: ")
        assert "resume from the last checkpoint" in errors
        assert file_contents(two / "model").items() >= before.items()
        assert_resumes(2 * STEPS)

    def test_a_full_disk_while_writing_tensorboard_events_ends_the_run(self, tmp_path):
        """The graph, the first large event, is over 100 kB."""
        errors = self.train_on_a_full_disk(20_000, tmp_path / "run")
        assert errors.startswith(f"error: cannot write {tmp_path}/run/events.out.tfevents.")

    def train_on_a_full_disk(self, size, run_dir, *options):
        """Train in a process that cannot write files of more than `size` bytes. Return the
        error."""
        limit = resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)
        line = command(run_dir.parent, run_dir.name, "--total_epochs=3", *options)
        status, _, errors = run_script(*line, prepare=limit)
        assert (status, errors.count("\n")) == (1, 1)
        return errors


@pytest.mark.slow
def test_a_renamed_script_prints_a_command_that_a_shell_accepts(tmp_path, capfd, monkeypatch):
    specification = importlib.util.spec_from_file_location(
        "my_net", shutil.copy(SE_ResNet.__file__, tmp_path / "my_net.py")
    )
    sys.modules["my_net"] = my_net = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(my_net)
    (tmp_path / "other folder").mkdir()
    monkeypatch.chdir(tmp_path / "other folder")
    assert my_net.main(arguments(tmp_path, "a run", "--total_epochs=1")) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"next: python ../my_net.py evaluate --run_dir='{tmp_path}/a run'"


class Terminal(io.StringIO):
    """Standard output that calls `on_first_row` when the first row of a run is printed."""

    on_first_row = None

    def write(self, text):
        if text.startswith("epoch: 1/"):
            self.on_first_row()
        return super().write(text)


@pytest.mark.slow
def test_deleted_files_are_recreated_and_a_save_precedes_its_row(tmp_path, monkeypatch):
    run_dir, terminal, saved = tmp_path / "run", Terminal(), []

    def on_first_row():
        saved.append((run_dir / "model" / f"model.ckpt-{STEPS}.index").exists())
        saved.append((run_dir / "logs.txt").read_text().startswith("epoch: 1/2"))
        (run_dir / "logs.txt").unlink()
        (run_dir / "lock").unlink()
        shutil.rmtree(run_dir / "model")

    terminal.on_first_row = on_first_row
    monkeypatch.setattr(sys, "stdout", terminal)
    assert SE_ResNet.main(arguments(tmp_path, "run", "--total_epochs=2")) == 0
    assert saved == [True, True]
    rows = (run_dir / "logs.txt").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch: 1/2", "epoch: 2/2"]
    assert all(row in terminal.getvalue() for row in rows)
    assert (run_dir / "lock").exists()
    assert list(checkpoint_files(run_dir / "model")) == [2 * STEPS]
