"""Faults during a run: the message, the exit status, and the files left."""

import json
import os
import pathlib
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


def train(capfd, folder, name, *options):
    """Train in this process; return (exit status, standard output, standard error)."""
    status = SE_ResNeXt.main(arguments(folder, name, *options))
    return status, *capfd.readouterr()


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


def file_contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CORRUPTIONS = {
    "truncated data": ("data-00000-of-00001", lambda path: os.truncate(path, 1000)),
    "empty data": ("data-00000-of-00001", lambda path: os.truncate(path, 0)),
    "data with a flipped bit": ("data-00000-of-00001", flip_a_bit),
    "missing data": ("data-00000-of-00001", lambda path: path.unlink()),
    "truncated index": ("index", lambda path: os.truncate(path, 100)),
    "index with a flipped bit": ("index", flip_a_bit),
}


@pytest.mark.slow
class TestDamagedCheckpoints:
    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    def test_any_corruption_is_reported_and_no_file_is_changed(self, two, capfd, corruption):
        suffix, corrupt = CORRUPTIONS[corruption]
        corrupt(two / "model" / f"model.ckpt-{2 * STEPS}.{suffix}")
        before = file_contents(two)
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, output) == (1, "")
        assert_one_line(errors, f"error: {two}/model/model.ckpt-20: cannot be read (")
        assert "delete its files to use the previous checkpoint" in errors
        assert file_contents(two) == before

    def test_training_resumes_from_the_previous_checkpoint_after_its_deletion(
        self, runs, two, capfd
    ):
        for file in (two / "model").glob(f"model.ckpt-{2 * STEPS}.*"):
            file.unlink()
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, errors) == (0, "")
        assert "resuming at step 10 of 30" in output
        assert (two / "logs.txt").read_text() == (runs / "three" / "logs.txt").read_text()

    def test_leftovers_of_a_killed_save_are_ignored(self, two, capfd):
        aside = two / "model" / "aside"
        aside.mkdir()
        (aside / "model.ckpt-25.index").write_bytes(b"half")
        (two / "hyperparameters.json.new").write_text("{")
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, errors) == (0, "")
        assert "resuming at step 20 of 30" in output
        assert not aside.exists()

    def test_an_incomplete_first_save_is_ignored(self, two, capfd):
        for path in (two / "model").iterdir():
            path.unlink()
        first, _ = (two / "logs.txt").read_text().splitlines(keepends=True)
        (two / "logs.txt").write_text(first)
        (two / "model" / "model.ckpt-1.data-00000-of-00001").write_bytes(b"half")
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, errors) == (0, "")
        assert f"run: {two} (new)" in output

    def test_a_checkpoint_of_another_network_is_rejected(self, two, capfd, monkeypatch):
        def another(x, out_dim, ratio, layer_name):
            return conv_layer(x, out_dim, 1, layer_name="another")

        monkeypatch.setattr(SE_ResNeXt, "Squeeze_excitation_layer", another)
        before = file_contents(two)
        status, _, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert status == 1
        start = f"error: {two}/model/model.ckpt-20 does not match the network: missing from the "
        assert_one_line(errors, start)
        assert file_contents(two) == before


class TestCheckpointsKept:
    def test_the_newest_three_and_the_best_are_kept(self, tmp_path):
        with tf.Graph().as_default(), tf.Session() as session:
            variable = tf.get_variable("v", initializer=1.0)
            checkpoints = Checkpoints(tmp_path, variable + 1)
            session.run(tf.global_variables_initializer())
            for step in range(1, 9):
                checkpoints.save(session, step, best_step=2 if step > 1 else None)
        assert list(checkpoint_files(tmp_path)) == [2, 6, 7, 8]

    def test_tensorflow_finds_the_newest_checkpoint_of_a_moved_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = pathlib.Path("runs") / "model"
        folder.mkdir(parents=True)
        with tf.Graph().as_default(), tf.Session() as session:
            checkpoints = Checkpoints(folder, tf.get_variable("v", initializer=1.0) + 1)
            session.run(tf.global_variables_initializer())
            checkpoints.save(session, 8)
        moved = folder.rename(tmp_path / "moved")
        assert tf.train.latest_checkpoint(str(moved)) == str(moved / "model.ckpt-8")

    @pytest.mark.slow
    def test_the_best_is_the_first_row_with_the_highest_test_accuracy(self, two, capfd):
        row = "epoch: {}/5, train_loss: 1.0, train_acc: 0.5, test_loss: 1.0, test_acc: {}\n"
        (two / "logs.txt").write_text(row.format(1, "0.9000") + row.format(2, "0.2000"))
        status, output, _ = train(capfd, two.parent, "two", "--total_epochs=5")
        assert status == 0
        assert "best by test accuracy: model.ckpt-10 (epoch 1)" in output
        names = {path.name for path in (two / "model").glob("*.index")}
        assert names == {f"model.ckpt-{step}.index" for step in (10, 30, 40, 50)}

    def test_a_value_that_is_not_finite_is_not_saved(self, tmp_path):
        with tf.Graph().as_default(), tf.Session() as session:
            variable = tf.get_variable("v", initializer=[1.0, 2.0])
            checkpoints = Checkpoints(tmp_path, variable + 1)
            session.run(tf.global_variables_initializer())
            variable.load([1.0, np.inf], session)
            with pytest.raises(Failure, match="not finite after step 7"):
                checkpoints.save(session, 7)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
class TestRows:
    def test_an_epoch_with_an_incomplete_row_is_evaluated_on_resume(self, runs, two, capfd):
        rows = (two / "logs.txt").read_text()
        (two / "logs.txt").write_text(rows[:-9])
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, errors) == (0, "")
        assert [line[:10] for line in output.splitlines()[5:7]] == ["epoch: 2/3", "epoch: 3/3"]
        assert (two / "logs.txt").read_text() == (runs / "three" / "logs.txt").read_text()

    def test_a_run_without_rows_resumes_at_its_checkpoint(self, runs, two, capfd):
        (two / "logs.txt").unlink()
        shutil.rmtree(two / "test")
        status, output, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert (status, errors) == (0, "")
        last_two = (runs / "three" / "logs.txt").read_text().splitlines()[1:]
        assert (two / "logs.txt").read_text().splitlines() == last_two


@pytest.mark.slow
class TestSettings:
    def test_different_hyperparameters_are_rejected_with_both_values(self, two, capfd):
        before = file_contents(two)
        status, output, errors = train(
            capfd, two.parent, "two", "--total_epochs=3", "--depth=3", "--momentum=0.5"
        )
        assert (status, output) == (1, "")
        assert_one_line(errors, f"error: {two} was trained with different hyperparameters (")
        assert "depth was 2, now 3" in errors
        assert "momentum was 0.9, now 0.5" in errors
        assert file_contents(two) == before

    def test_fewer_epochs_are_rejected(self, two, capfd):
        status, _, errors = train(capfd, two.parent, "two", "--total_epochs=2")
        assert status == 1
        assert_one_line(
            errors, f"error: {two} was trained with different hyperparameters (total_epoch"
        )

    def test_more_epochs_and_a_different_save_interval_are_accepted(self, two, capfd):
        options = "--total_epochs=4", "--save_minutes=3", "--allow_soft_placement=False"
        status, output, errors = train(capfd, two.parent, "two", *options)
        assert (status, errors) == (0, "")
        assert "resuming at step 20 of 40" in output
        assert json.loads((two / "hyperparameters.json").read_text())["total_epochs"] == 4

    def test_checkpoints_with_unreadable_hyperparameters_are_rejected(self, two, capfd):
        (two / "hyperparameters.json").write_text("{")
        status, _, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert status == 1
        assert_one_line(
            errors, f"error: {two} has checkpoints, but {two}/hyperparameters.json cannot"
        )

    def test_different_images_are_rejected(self, two, capfd):
        shutil.rmtree(two.parent / "data")
        write_folder(two.parent / "data", make_files(count=IMAGES + 1))
        before = file_contents(two / "model")
        status, _, errors = train(capfd, two.parent, "two", "--total_epochs=3")
        assert status == 1
        assert_one_line(
            errors, f"error: the training images differ from those that {two} was trained on"
        )
        assert file_contents(two / "model") == before

    def test_a_finished_run_says_how_to_continue(self, runs, capfd):
        before = file_contents(runs / "three" / "model")
        status, output, errors = train(capfd, runs, "three", "--total_epochs=3")
        assert (status, errors) == (0, "")
        assert "already finished; use a larger --total_epochs to continue" in output
        assert file_contents(runs / "three" / "model") == before


def wait_for_a_checkpoint(process, run_dir):
    while not list((run_dir / "model").glob("model.ckpt-*.index")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
class TestProcesses:
    LONG = ("--total_epochs=1000", "--save_minutes=1e-9")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_stops_the_run_after_the_current_step_is_saved(self, tmp_path, number):
        process = start_script(*command(tmp_path, "run", "--total_epochs=1000"))
        while not process.stdout.readline().startswith("epoch: 1/"):
            assert process.poll() is None
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
        "numbers, status",
        [
            ([signal.SIGTERM, signal.SIGINT], 130),
            # A shell and the kernel both send SIGHUP when a terminal closes: the second is ignored.
            ([signal.SIGHUP, signal.SIGHUP, signal.SIGTERM], 143),
        ],
    )
    def test_a_second_signal_ends_the_process_at_once(self, numbers, status):
        code = (
            "import signal, time\n"
            "from senet.engine.signals import StopSignals\n"
            "with StopSignals() as stop:\n"
            "    print('ready', flush=True)\n"
            "    while not stop.received: time.sleep(0.001)\n"
            "    print('first', flush=True)\n"
            "    time.sleep(600)\n"
        )
        process = start_python("-c", code)
        assert process.stdout.readline() == "ready\n"
        first, *others = numbers
        process.send_signal(first)
        assert process.stdout.readline() == "first\n"
        for number in others:
            process.send_signal(number)
        assert process.wait(timeout=60) == status
        process.communicate()

    def test_two_consecutive_signals_do_no_damage(self, tmp_path):
        process = start_script(*command(tmp_path, "run", *self.LONG))
        wait_for_a_checkpoint(process, tmp_path / "run")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        # At the end of the process, after the run is saved, SIGTERM has its default effect.
        assert process.returncode in (130, 143, -signal.SIGTERM)
        self.assert_resumes(tmp_path, "run")

    def assert_resumes(self, folder, name):
        process = start_script(*command(folder, name, *self.LONG))
        lines = [process.stdout.readline() for _ in range(4)]
        process.kill()
        process.communicate()
        assert "resuming at step" in lines[3]

    def test_only_one_process_trains_a_run_and_a_killed_one_leaves_no_lock(self, tmp_path, capfd):
        first = start_script(*command(tmp_path, "run", *self.LONG))
        wait_for_a_checkpoint(first, tmp_path / "run")
        status, output, errors = train(capfd, tmp_path, "run", *self.LONG)
        assert (status, output) == (1, "")
        assert_one_line(errors, f"error: another process is training in {tmp_path}/run; ")
        assert first.poll() is None
        first.kill()
        first.communicate()
        third = start_script(*command(tmp_path, "run", *self.LONG))
        assert "network: " in third.stdout.readline()
        third.kill()
        third.communicate()

    def test_moving_the_folder_away_ends_the_run(self, tmp_path):
        process = start_script(*command(tmp_path, "run", *self.LONG))
        wait_for_a_checkpoint(process, tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        _, errors = process.communicate()
        assert process.returncode == 1
        # The text between depends on the moment; see test_run_folder.py.
        assert_one_line(errors, "error: ")
        assert f"{tmp_path}/run" in errors
        assert "run the same command to resume from the last checkpoint" in errors
        assert not (tmp_path / "run").exists()
        self.assert_resumes(tmp_path, "elsewhere")

    def test_a_folder_that_cannot_be_written_gives_a_one_line_error(self, tmp_path):
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        # Root may write anywhere unless it drops these capabilities.
        unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        result = subprocess.run(
            [
                *(unprivileged if os.geteuid() == 0 else []),
                sys.executable,
                *command(tmp_path, "locked/run"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert_one_line(
            result.stderr, f"error: cannot write {folder}/run/model: Permission denied; "
        )

    def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(self, two, capfd):
        """Simulate a full disk by limiting the size of files; a checkpoint is 80 kB."""
        before = file_contents(two / "model")
        # Save after each step, so that a save fails before an event of the epoch is written.
        options = two.parent, "two", "--save_minutes=1e-9"
        status, _, errors = self.train_with_file_size_limit(40_000, *options)
        assert status == 1
        assert_one_line(errors, f"error: cannot write a checkpoint into {two}/model: ")
        assert "resume from the last checkpoint" in errors
        after = file_contents(two / "model")
        assert {path: after[path] for path in before} == before
        status, output, _ = train(capfd, two.parent, "two", "--total_epochs=3")
        assert status == 0
        assert "resuming at step 20 of 30" in output

    def test_a_full_disk_while_writing_tensorboard_events_ends_the_run(self, tmp_path):
        """Simulate a full disk by limiting the size of files; the graph, the first large event, is
        over 100 kB."""
        status, _, errors = self.train_with_file_size_limit(20_000, tmp_path, "run")
        assert status == 1
        assert_one_line(errors, f"error: cannot write {tmp_path}/run/events.out.tfevents.")

    def train_with_file_size_limit(self, size, folder, name, *options):
        """Train in a process that cannot write files of more than `size` bytes."""
        limit = resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)
        return run_script(*command(folder, name, "--total_epochs=3", *options), prepare=limit)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::RuntimeWarning")  # raised by NumPy
def test_overflow_of_float32_ends_the_run_with_a_one_line_error(tmp_path, capfd):
    # One step per epoch: in the first, the loss is still finite and only the new weights are not.
    options = "--init_learning_rate=3.4e38", "--weight_decay=3.4e38", "--batch_size=200"
    status, _, errors = train(capfd, tmp_path, "run", *options)
    assert status == 1
    assert_one_line(errors, "error: ")
    assert "lower --init_learning_rate" in errors


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_nothing_saved(tmp_path, capfd):
    status, output, errors = train(capfd, tmp_path, "run", "--init_learning_rate=1e30")
    assert status == 1
    assert_one_line(errors, "error: the loss is not finite at step ")
    assert "(learning rate " in errors
    assert "lower --init_learning_rate" in errors
    assert "epoch: " not in output
    assert list((tmp_path / "run" / "model").iterdir()) == []
