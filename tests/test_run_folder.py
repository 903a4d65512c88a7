"""Remove, copy, damage or replace files of a run, before or during the run."""

import importlib.util
import io
import os
import pathlib
import resource
import shutil
import sys

import pytest
from fake_cifar10 import make_files, write_folder
from image_folders import write_image_folder
from tiny_run import IMAGES, STEPS, arguments

import SE_ResNeXt
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.hyperparameters import RunHyperparameters
from senet.run.checkpoints import Checkpoints, checkpoint_files
from senet.run.events import EventFile
from senet.run.folder import RunFolder

VALUES = {"train_loss": 1.0, "train_acc": 0.5, "test_loss": 1.0, "test_acc": 0.25}


class Hyperparameters(RunHyperparameters):
    total_epochs: int = 3


@pytest.fixture
def hyperparameters(tmp_path):
    return Hyperparameters(run_dir=str(tmp_path / "run"))


class TestRows:
    def test_deleted_rows_are_rewritten(self, hyperparameters):
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
            folder.row_file.unlink()
            folder.add_row(2, VALUES)
            rows = folder.row_file.read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["epoch: 1/3", "epoch: 2/3"]

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

    @pytest.mark.parametrize("text", ["my notes\n", "my notes\nof two lines", "my notes"])
    def test_a_file_with_other_lines_is_not_overwritten(self, hyperparameters, tmp_path, text):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "logs.txt").write_text(text)
        with pytest.raises(Failure, match=r"logs\.txt has lines that no run wrote; move it, or "):
            RunFolder(hyperparameters).__enter__()
        assert (tmp_path / "run" / "logs.txt").read_text() == text

    @pytest.mark.parametrize("name", ["logs.txt", "lock"])
    def test_a_folder_instead_of_a_file_is_reported(self, hyperparameters, tmp_path, name):
        (tmp_path / "run" / name).mkdir(parents=True)
        with pytest.raises(Failure, match=f"{name}.* folder|{name}: Is a directory"):
            RunFolder(hyperparameters).__enter__()

    @pytest.mark.parametrize(
        "second",
        [
            "epoch: 2/3, train_loss: 1.0000, train_acc: 0.5000, test_loss: 1.0000, test_acc: 0.2",
            "epoch: \udcff/3, train_loss: 1.0000, train_acc: 0.5000, test_loss: 1.0000, test_acc: "
            "0.2500\n",
            f"epoch: {'9' * 5000}/3, train_loss: 1.0000, train_acc: 0.5000, test_loss: 1.0000, "
            "test_acc: 0.2500\n",
        ],
        ids=["incomplete", "invalid bytes", "thousands of digits"],
    )
    def test_a_damaged_row_is_ignored(self, hyperparameters, second):
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
        first = folder.row_file.read_text()
        folder.row_file.write_text(first + second, errors="surrogateescape")
        (folder.model / "model.ckpt-1.index").touch()
        folder.write_hyperparameters()
        with RunFolder(hyperparameters) as folder:
            assert list(folder.rows) == [1]

    def test_a_full_disk_while_writing_a_row_keeps_the_earlier_rows(self, hyperparameters):
        """Simulate a full disk by limiting the size of files."""
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
            before = folder.row_file.read_text()
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            try:
                with pytest.raises(Failure, match=r"cannot write .*logs.txt: File too large; fix"):
                    folder.add_row(2, VALUES)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert folder.row_file.read_text() == before


class TestLock:
    def test_a_deleted_lock_file_is_created_again(self, hyperparameters):
        with RunFolder(hyperparameters) as folder:
            folder.lock_file.unlink()
            folder.keep_lock()
            with pytest.raises(Failure, match="another process is training in "):
                RunFolder(hyperparameters).__enter__()

    def test_a_moved_folder_is_not_created_again(self, hyperparameters, tmp_path):
        with RunFolder(hyperparameters) as folder:
            folder.path.rename(tmp_path / "elsewhere")
            for write in folder.keep_lock, lambda: folder.add_row(1, VALUES):
                with pytest.raises(Failure, match="/run was moved or deleted; move it back, then "):
                    write()
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

    def test_a_file_system_without_locks_is_used_without(self, hyperparameters, without_locks):
        with RunFolder(hyperparameters) as folder:
            folder.add_row(1, VALUES)
        assert folder.row_file.exists()


class TestCheckpoints:
    @pytest.fixture
    def saved(self, tmp_path):
        """Yield (Checkpoints, session) after saving steps 1 and 2 of a graph with one variable and
        a step counter."""
        with tf.Graph().as_default(), tf.Session() as session:
            step = tf.train.get_or_create_global_step()
            variable = tf.get_variable("v", initializer=1.0)
            checkpoints = Checkpoints(tmp_path, variable + 1, {})
            session.run(tf.global_variables_initializer())
            for number in 1, 2:
                session.run(tf.assign_add(step, 1))
                checkpoints.save(session, number)
            yield checkpoints, session

    def test_an_incomplete_checkpoint_is_ignored(self, saved, tmp_path):
        """A process that was killed during a save leaves files without an index."""
        checkpoints, session = saved
        (tmp_path / "model.ckpt-2.index").unlink()
        assert checkpoints.restore(session)
        assert checkpoints.current == 1

    def test_a_deleted_checkpoint_is_saved_again(self, saved, tmp_path):
        checkpoints, session = saved
        for file in tmp_path.glob("model.ckpt-*"):
            file.unlink()
        checkpoints.save(session, 2)
        assert list(checkpoint_files(tmp_path)) == [2]

    def test_a_folder_moved_at_the_end_of_a_save_is_reported(self, saved, tmp_path, monkeypatch):
        checkpoints, session = saved
        checkpoints.folder, write = tmp_path / "model", checkpoints.write

        def write_and_move(*arguments):
            write(*arguments)
            checkpoints.folder.rename(tmp_path / "elsewhere")

        monkeypatch.setattr(checkpoints, "write", write_and_move)
        with pytest.raises(Failure, match="^cannot write a checkpoint into .*/model: No such file"):
            checkpoints.save(session, 3)
        assert list(checkpoint_files(tmp_path / "elsewhere")) == [3]

    def test_checkpoints_are_saved_in_a_folder_whose_path_is_not_utf8(
        self, saved, tmp_path, monkeypatch
    ):
        checkpoints, session = saved
        place = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(place)  # noqa: PTH102 (pathlib has no paths in bytes)
        monkeypatch.chdir(place)
        checkpoints.folder = pathlib.Path("model")
        checkpoints.save(session, 3)
        assert list(checkpoint_files(pathlib.Path("model"))) == [3]
        assert tf.train.latest_checkpoint("model") == "model/model.ckpt-3"


def test_a_deleted_event_file_is_reported_and_replaced(tmp_path, capsys):
    with EventFile(tmp_path / "logs") as events:
        shutil.rmtree(tmp_path / "logs")
        events.write(step=3)
        assert capsys.readouterr().err == (
            f"warning: {events.path} was deleted; starting a new one\n"
        )
    assert [event.step for event in tf.train.summary_iterator(str(events.path))] == [0, 3]


@pytest.mark.slow
def test_different_images_are_rejected_before_anything_is_changed(trained, tmp_path, capfd):
    shutil.copytree(trained, tmp_path / "run")
    write_folder(tmp_path / "data", make_files(count=IMAGES + 1))
    before = sorted((tmp_path / "run").rglob("*"))
    assert SE_ResNeXt.main(arguments(tmp_path, "run", "--total_epochs=3")) == 1
    errors = capfd.readouterr().err
    assert errors.startswith("error: the training images differ from those ")
    assert errors.count("\n") == 1
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["tabby", "rex"], [f"klass {number}" for number in range(10)]], ids=["two", "ten"]
)
def test_different_classes_are_reported(trained, tmp_path, capfd, names):
    shutil.copytree(trained, tmp_path / "run")
    write_image_folder(tmp_path / "photos", names, train=20)
    options = f"--dataset={tmp_path / 'photos'}", "--total_epochs=3"
    assert SE_ResNeXt.main(arguments(tmp_path, "run", *options)) == 1
    errors = capfd.readouterr().err
    assert " was trained on different classes (class 0, class 1, " in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_renamed_script_prints_a_command_that_a_shell_accepts(tmp_path, capfd):
    specification = importlib.util.spec_from_file_location(
        "my_net", shutil.copy(SE_ResNeXt.__file__, tmp_path / "my_net.py")
    )
    sys.modules["my_net"] = my_net = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(my_net)
    assert my_net.main(arguments(tmp_path, "a run", "--total_epochs=1")) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"next: python {tmp_path}/my_net.py evaluate --run_dir='{tmp_path}/a run'"


class Terminal(io.StringIO):
    """Standard output that calls `on_first_row` when the first row of a run is printed."""

    on_first_row = None

    def write(self, text):
        if text.startswith("epoch: 1/"):
            self.on_first_row()
        return super().write(text)


@pytest.mark.slow
def test_deleted_files_are_recreated_and_an_epoch_is_saved_before_its_row_is_printed(
    tmp_path, monkeypatch
):
    run_dir, terminal, saved = tmp_path / "run", Terminal(), []

    def on_first_row():
        saved.append((run_dir / "model" / f"model.ckpt-{STEPS}.index").exists())
        saved.append((run_dir / "logs.txt").read_text().startswith("epoch: 1/2"))
        (run_dir / "logs.txt").unlink()
        (run_dir / "lock").unlink()
        shutil.rmtree(run_dir / "test")
        shutil.rmtree(run_dir / "model")

    terminal.on_first_row = on_first_row
    monkeypatch.setattr(sys, "stdout", terminal)
    assert SE_ResNeXt.main(arguments(tmp_path, "run", "--total_epochs=2")) == 0
    assert saved == [True, True]
    rows = (run_dir / "logs.txt").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch: 1/2", "epoch: 2/2"]
    assert all(row in terminal.getvalue() for row in rows)
    assert (run_dir / "lock").exists()
    assert list(checkpoint_files(run_dir / "model")) == [2 * STEPS]
    (events,) = (run_dir / "test").iterdir()
    tags = {v.tag for e in tf.train.summary_iterator(str(events)) for v in e.summary.value}
    assert "accuracy/test" in tags
