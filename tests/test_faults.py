"""Faults during a run: the message, the exit status, and the files left."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, flip_a_bit, start_python
from fake_cifar10 import make_files, write_folder
from forked import run_script, start_script
from kill_and_resume import kill_and_resume
from tiny_run import IMAGES, STEPS, arguments, command, signal_after_epoch

import SE_ResNeXt
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.layers import conv_layer
from senet.run.checkpoints import Checkpoints, checkpoint_files


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_like_an_uninterrupted_one(tmp_path):
    stopped, while_saving = kill_and_resume(tmp_path, kills=6)
    assert stopped.total() == 6
    assert len(stopped) == 3  # one entry per signal
    assert while_saving >= 1


@pytest.fixture
def train(capfd):
    """Return a function that trains a run in this process and returns (exit status, standard
    output, standard error)."""

    def train(run_dir, *options):
        fields = arguments(run_dir.parent, run_dir.name, "--total_epochs=3", *options)
        status = SE_ResNeXt.main(fields)
        return status, *capfd.readouterr()

    return train


def assert_one_line(errors, start):
    assert errors.startswith(start)
    assert errors.count("\n") == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with the images, the finished run `three` of three epochs, and the run `two`,
    which was killed after two of them."""
    folder = tmp_path_factory.mktemp("trained")
    assert SE_ResNeXt.main(arguments(folder, "three", "--total_epochs=3")) == 0
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
        status, output, errors = train(two, *options)
        assert (status, output) == (1, "")
        assert_one_line(errors, f"error: {start}")
        assert file_contents(two) == before
        return errors

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

        monkeypatch.setattr(SE_ResNeXt, "Squeeze_excitation_layer", another)
        assert_rejected(f"{two}/model/model.ckpt-20 does not match the network: missing from the ")


class TestCheckpointsKept:
    @pytest.fixture
    def saving(self, tmp_path):
        """Return the Checkpoints of a variable of two values, the variable and a session."""
        with tf.Graph().as_default(), tf.Session() as session:
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

    @pytest.mark.slow
    def test_the_best_is_the_first_row_with_the_highest_test_accuracy(self, two, assert_resumes):
        row = "epoch: {}/5, train_loss: 1.0, train_acc: 0.5, test_loss: 1.0, test_acc: {}\n"
        (two / "logs.txt").write_text(row.format(1, "0.9000") + row.format(2, "0.2000"))
        output = assert_resumes(2 * STEPS, "--total_epochs=5", total=5 * STEPS)
        assert "best by test_acc: model.ckpt-10 (epoch 1)" in output
        names = {path.name for path in (two / "model").glob("*.index")}
        assert names == {f"model.ckpt-{step}.index" for step in (10, 30, 40, 50)}


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
            (("--depth=3", "--momentum=0.5"), ["depth was 2, now 3", "momentum was 0.9, now 0.5"]),
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
        assert_rejected(f"{two} has checkpoints, but {two}/hyperparameters.json cannot")

    def test_different_images_are_rejected(self, two, assert_rejected):
        shutil.rmtree(two.parent / "data")
        write_folder(two.parent / "data", make_files(count=IMAGES + 1))
        assert_rejected(f"the training images differ from those that {two} was trained on")

    def test_a_finished_run_says_how_to_continue(self, runs, train):
        before = file_contents(runs / "three" / "model")
        status, output, errors = train(runs / "three")
        assert (status, errors) == (0, "")
        assert "already finished; use a larger --total_epochs to continue" in output
        assert file_contents(runs / "three" / "model") == before


@pytest.mark.slow
class TestProcesses:
    LONG = ("--total_epochs=1000", "--save_minutes=1e-9")

    def start(self, folder):
        """Start a long run in `folder` that saves after each step; wait for its first save."""
        process = start_script(*command(folder, "run", *self.LONG))
        while not list((folder / "run" / "model").glob("model.ckpt-*.index")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        return process

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_stops_the_run_after_the_current_step_is_saved(self, tmp_path, number):
        process = self.start(tmp_path)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == 128 + number
        *notes, last = errors.splitlines(keepends=True)
        finishing = "finishing this step, then saving; press Ctrl-C again to quit without saving\n"
        assert notes == ([finishing] if number == signal.SIGINT else [])
        assert_one_line(last, f"stopped by {number.name} and saved after step ")
        assert "run the same command to resume" in errors
        step = int(errors.split("after step ")[1].split(";")[0])
        assert (tmp_path / "run" / "model" / f"model.ckpt-{step}.index").exists()

    @pytest.mark.parametrize(
        "numbers, status, note",
        [
            ([signal.SIGINT, signal.SIGTERM], 143, "finishing this step (2 min left), then saving"),
            # A shell and the kernel both send SIGHUP when a terminal closes: the second is ignored.
            ([signal.SIGHUP, signal.SIGHUP, signal.SIGINT], 130, ""),
        ],
    )
    def test_a_second_signal_ends_the_process_at_once(self, numbers, status, note):
        code = (
            "import signal, time\n"
            "from senet.engine.signals import StopSignals\n"
            "with StopSignals() as stop:\n"
            "    stop.step_end = time.monotonic() + 120\n"
            "    print('ready', flush=True)\n"
            "    while not stop.received: time.sleep(0.001)\n"
            "    print('first', flush=True)\n"
            "    time.sleep(600)\n"
        )
        process = start_python("-c", code)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(numbers[0])
        assert process.stdout.readline() == "first\n"
        for number in numbers[1:]:
            process.send_signal(number)
        assert process.wait(timeout=60) == status
        _, errors = process.communicate()
        assert errors.startswith(note) and bool(errors) == bool(note)

    def test_only_one_process_trains_a_run_and_a_killed_one_leaves_no_lock(self, tmp_path, train):
        first = self.start(tmp_path)
        status, output, errors = train(tmp_path / "run", *self.LONG)
        assert (status, output) == (1, "")
        assert_one_line(errors, f"error: another process is training in {tmp_path}/run; ")
        assert first.poll() is None
        first.kill()
        first.communicate()
        third = start_script(*command(tmp_path, "run", *self.LONG))
        assert "network: " in third.stdout.readline()
        third.kill()
        third.communicate()

    def test_a_folder_that_cannot_be_written_gives_a_one_line_error(self, tmp_path):
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        # Root may write anywhere unless it drops these capabilities.
        unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        line = [sys.executable, *command(tmp_path, "locked/run")]
        result = subprocess.run(
            [*unprivileged, *line] if os.geteuid() == 0 else line,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert_one_line(
            result.stderr, f"error: cannot write {folder}/run/model: Permission denied; "
        )

    def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(self, two, assert_resumes):
        """Simulate a full disk by limiting the size of files; a checkpoint is 80 kB."""
        before = file_contents(two / "model")
        # Save after each step, so that a save fails before an event of the epoch is written.
        errors = self.train_on_a_full_disk(40_000, two, "--save_minutes=1e-9")
        assert_one_line(errors, f"error: cannot write a checkpoint into {two}/model: ")
        assert "resume from the last checkpoint" in errors
        assert file_contents(two / "model").items() >= before.items()
        assert_resumes(2 * STEPS)

    def test_a_full_disk_while_writing_tensorboard_events_ends_the_run(self, tmp_path):
        """The graph, the first large event, is over 100 kB."""
        errors = self.train_on_a_full_disk(20_000, tmp_path / "run")
        assert_one_line(errors, f"error: cannot write {tmp_path}/run/events.out.tfevents.")

    def train_on_a_full_disk(self, size, run_dir, *options):
        """Train in a process that cannot write files of more than `size` bytes. Return the
        error."""
        limit = resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)
        line = command(run_dir.parent, run_dir.name, "--total_epochs=3", *options)
        status, _, errors = run_script(*line, prepare=limit)
        assert status == 1
        return errors


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_nothing_saved(tmp_path, train):
    status, output, errors = train(tmp_path / "run", "--init_learning_rate=1e30")
    assert status == 1
    assert_one_line(errors, "error: the loss is not finite at step ")
    assert "(learning rate " in errors
    assert "lower --init_learning_rate" in errors
    assert "epoch: " not in output
    assert list((tmp_path / "run" / "model").iterdir()) == []
