import contextlib
import fcntl
import io
import os
import re
import select
import signal
import struct
import sys
import termios

import numpy as np
import pytest
from conftest import run_python
from forked import run_script
from tiny_run import arguments, command, signal_after_epoch

import SE_ResNeXt
from SE_ResNeXt import Hyperparameters, main
from senet.engine.compat import tf
from senet.engine.devices import session_config
from senet.run.console import ProgressBar, duration

OPTIONS = ["--total_epochs=3", "--micro_batch_size=8"]


def train(folder, name, *options):
    """Train in this process; return the printed lines."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(arguments(folder, name, *options)) == 0
    return output.getvalue().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder that contains the run `whole` of three epochs, and the lines it printed."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, train(folder, "whole", *OPTIONS)


def scalars(run_dir):
    """Return the scalars that TensorBoard shows, {tag: {step: value}}. At each START
    event, discard the earlier values for the event's step and for all steps after it, as
    TensorBoard does."""
    shown = {}
    for file in sorted(run_dir.rglob("events.out.tfevents.*")):
        for event in tf.train.summary_iterator(str(file)):
            if event.session_log.status == tf.SessionLog.START:
                for values in shown.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


@pytest.mark.slow
def test_a_killed_and_resumed_run_leaves_the_same_rows_and_scalars(whole):
    folder, _ = whole
    killed = command(folder, "resumed", *OPTIONS)
    assert run_script(*killed, prepare=(signal_after_epoch, 2))[0] == -signal.SIGKILL
    assert "resuming at step 20 of 30" in "\n".join(train(folder, "resumed", *OPTIONS))

    assert (folder / "resumed" / "logs.txt").read_text() == (folder / "whole/logs.txt").read_text()
    of_whole, of_resumed = scalars(folder / "whole"), scalars(folder / "resumed")
    speed = "speed/images_per_second"
    assert of_whole.pop(speed).keys() == of_resumed.pop(speed).keys()
    assert of_whole == of_resumed


def test_a_run_has_the_expected_output_and_files(whole):
    folder, (network, data, device, run, watch, *rows, done, best, after) = whole
    # Worked out by hand: stem 1,856, stages 996, 984 and 3,696, classifier 330.
    assert network == "network: SE_ResNeXt, 7,862 trainable parameters"
    assert data == "data: cifar10, 200 training and 40 test images in 10 classes"
    assert device.startswith("device: ")
    folder = folder / "whole"
    assert run == f"run: {folder} (new)"
    assert watch == f"monitor: tensorboard --logdir {folder.parent}"
    assert [row.split(",")[0] for row in rows] == ["epoch: 1/3", "epoch: 2/3", "epoch: 3/3"]
    notes = r" \((\d+ s|\d+ min), [\d.,]+ images/s, rate [\d.e-]+\)"
    rows = [re.fullmatch(f"(epoch: .*){notes}", row)[1] for row in rows]
    assert rows == (folder / "logs.txt").read_text().splitlines()
    assert done == f"done: checkpoints in {folder}/model"
    accuracies = [float(row.rpartition(" ")[2]) for row in rows]
    epoch = accuracies.index(max(accuracies)) + 1
    assert best == f"best by test_acc: model.ckpt-{10 * epoch} (epoch {epoch})"
    assert after == f"next: python SE_ResNeXt.py evaluate --run_dir={folder}"
    events, *others = sorted(path.name for path in folder.iterdir())
    assert events.startswith("events.out.tfevents.")
    assert others == ["hyperparameters.json", "lock", "logs.txt", "model", "test"]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_progress_bar_fits_into_the_terminal(monkeypatch, columns):
    reader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with ProgressBar("epoch 12/100", 50_000, later=4_400_000) as bar:
            bar.set_postfix_str("loss 2.4567, accuracy 0.2380", refresh=False)
            bar.update(25_000)
            bar.refresh()
        output = b""
        while b" 50 %, " not in output:
            assert select.select([reader], [], [], 10)[0]
            output += os.read(reader, 1000)
    os.close(reader)
    assert max(len(frame) for frame in output.decode().split("\r")) <= columns


def test_without_a_terminal_progress_is_one_line_a_minute(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(ProgressBar, "monitor_interval", 0)
    with ProgressBar("epoch 1/3", 1000, later=2000) as bar:
        for _ in range(10):
            now[0] += 31
            bar.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"\d+ %", line)[0] for line in lines] == [
        "20 %",
        "40 %",
        "60 %",
        "80 %",
        "100 %",
    ]
    # 100 images in 31 s: the other 800 of the epoch take 248 s, and 2,800 take 868 s.
    assert re.fullmatch(
        r"epoch 1/3: 20 %,  3.23 images/s, epoch 04:0[78], run 14 min left", lines[0]
    )


@pytest.mark.parametrize(
    "seconds, text",
    [
        *[(0.4, "0 s"), (29, "29 s"), (100, "2 min"), (3600, "1 h 0 min"), (7290, "2 h 2 min")],
        (309_600, "3 d 14 h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "outputs, message",
    [
        (lambda: {"logits": tf.zeros([3])}, "logits in train_step or epoch_end must be a scalar, "),
        (lambda: {"learning_rate": tf.constant(-0.1)}, "the learning rate of step 1 is -0.1; fix "),
    ],
)
def test_a_wrong_output_of_a_step_ends_the_run_at_the_first_step(
    tmp_path, monkeypatch, capsys, outputs, message
):
    def build(data, hyperparameters, build_graph=SE_ResNeXt.build_graph):
        graph = build_graph(data, hyperparameters)
        graph.train_step.update(outputs())
        return graph

    monkeypatch.setattr(SE_ResNeXt, "build_graph", build)
    assert main(arguments(tmp_path, "run")) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list((tmp_path / "run" / "model").iterdir())


@pytest.mark.slow
def test_an_array_in_epoch_end_ends_the_run_after_the_epoch_is_saved(tmp_path, monkeypatch, capsys):
    def build(data, hyperparameters, build_graph=SE_ResNeXt.build_graph):
        graph = build_graph(data, hyperparameters)
        graph.epoch_end["norms"] = tf.zeros([3])
        return graph

    monkeypatch.setattr(SE_ResNeXt, "build_graph", build)
    assert main(arguments(tmp_path, "run")) == 1
    assert capsys.readouterr().err.startswith("error: norms in train_step or epoch_end must be a ")
    assert (tmp_path / "run" / "model" / "model.ckpt-10.index").exists()


@pytest.mark.slow
def test_xla_gives_the_same_result(tmp_path):
    # At the default rate, ten steps would amplify rounding errors.
    options = ["--total_epochs=1", "--mixed_precision=False", "--init_learning_rate=0.01"]
    train(tmp_path, "without", *options)
    compiled = tmp_path / "compiled"
    flags = {
        # By default, TensorFlow uses XLA on GPUs only; this flag enables it on the CPU.
        "TF_XLA_FLAGS": "--tf_xla_cpu_global_jit",
        # The first flag makes compiling faster.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_dump_to={compiled}",
    }
    status, _, errors = run_python(*command(tmp_path, "with", *options, "--xla"), **flags)
    assert status == 0, errors  # on a slow machine, XLA warns about slow compilation
    assert any(compiled.iterdir())
    with_xla, without = (
        [float(number) for number in re.findall(r"\d+\.\d+", (path / "logs.txt").read_text())]
        for path in (tmp_path / "with", tmp_path / "without")
    )
    # The accuracies of 40 images may differ by one image: compare only the losses.
    np.testing.assert_allclose(with_xla[::2], without[::2], rtol=0.001)


def test_xla_is_used_only_if_requested():
    levels = [
        session_config(Hyperparameters(xla=xla)).graph_options.optimizer_options.global_jit_level
        for xla in (False, True)
    ]
    assert levels == [tf.OptimizerOptions.DEFAULT, tf.OptimizerOptions.ON_1]
