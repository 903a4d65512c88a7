"""What a whole run prints and writes, and how it ends: after its last epoch, on a signal, on a
wrong number, beside a second process."""

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time

import numpy as np
import pytest
from conftest import assert_one_line_error, run_python, start_python
from forked import start_script
from kill_and_resume import kill_and_resume
from tiny_run import arguments, command

import SE_ResNet
from SE_ResNet import main
from senet.engine.compat import tf
from senet.run.console import ProgressBar, duration


def test_a_run_has_the_expected_output_and_files(tmp_path, capsys):
    folder = tmp_path / "whole"
    assert main(arguments(tmp_path, "whole", "--total_epochs=3", "--micro_batch_size=8")) == 0
    output = capsys.readouterr().out.splitlines()
    network, data, device, run, watch, *rows, done, best, after = output
    # Worked out by hand: stages 479, 812 and 1,244, classifier 90.
    assert network == "network: SE_ResNet, 2,625 trainable parameters"
    assert data == "data: cifar10, 200 training and 40 test images in 10 classes"
    assert device.startswith("device: ")
    assert run == f"run: {folder} (new)"
    assert watch == f"monitor: tensorboard --logdir {tmp_path}"
    assert [row.split(",")[0] for row in rows] == ["epoch: 1/3", "epoch: 2/3", "epoch: 3/3"]
    notes = r" \((\d+ s|\d+ min), [\d.,]+ images/s, rate [\d.e-]+\)"
    rows = [re.fullmatch(f"(epoch: .*){notes}", row)[1] for row in rows]
    assert rows == (folder / "logs.txt").read_text().splitlines()
    assert done == f"done: checkpoints in {folder}/model"
    accuracies = [float(re.search(r"test_acc: ([\d.]+)", row)[1]) for row in rows]
    epoch = accuracies.index(max(accuracies)) + 1
    assert best == f"best by test_acc: epoch {epoch}; to use it, add --checkpoint=best"
    assert after == f"next: python SE_ResNet.py evaluate --run_dir={folder}"
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
    shares = [re.search(r"\d+ %", line)[0] for line in lines]
    assert shares == ["20 %", "40 %", "60 %", "80 %", "100 %"]
    # 100 images in 31 s: the other 800 of the epoch take 248 s, and 2,800 take 868 s.
    first = r"epoch 1/3: 20 %,  3.23 images/s, epoch 04:0[78], run 14 min left"
    assert re.fullmatch(first, lines[0])


def test_a_duration_is_shown_in_its_two_largest_units():
    texts = {0.4: "0 s", 29: "29 s", 100: "2 min", 3600: "1 h 0 min", 7290: "2 h 2 min"}
    for seconds, text in {**texts, 309_600: "3 d 14 h"}.items():
        assert duration(seconds) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, outputs, message",
    [
        ("train_step", lambda: {"logits": tf.zeros([3])}, "logits in .* must be a scalar"),
        ("train_step", lambda: {"learning_rate": tf.constant(-0.1)}, "the learning rate of st"),
        ("epoch_end", lambda: {"norms": tf.zeros([3])}, "norms in .* must be a scalar"),
    ],
)
def test_a_wrong_output_of_a_script_ends_the_run_with_nothing_saved(
    tmp_path, monkeypatch, capsys, part, outputs, message
):
    def build(data, hyperparameters, build_graph=SE_ResNet.build_graph):
        graph = build_graph(data, hyperparameters)
        getattr(graph, part).update(outputs())
        return graph

    monkeypatch.setattr(SE_ResNet, "build_graph", build)
    assert main(arguments(tmp_path, "run")) == 1
    assert re.match(f"error: {message}", capsys.readouterr().err)
    assert not list((tmp_path / "run" / "model").glob("*.index"))


@pytest.mark.slow
def test_an_option_without_effect_ends_the_run(tmp_path, call):
    options = "--schedule=cosine", "--step_factor=0.1"  # the default, but set
    _, _, errors = result = call(*arguments(tmp_path, "run", *options))
    assert (result[0], errors.count("\n")) == (2, 1)
    assert errors.startswith("error: --step_factor=0.1 has no effect, since nothing reads it with ")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_nothing_saved(tmp_path, call):
    status, output, errors = call(*arguments(tmp_path, "run", "--init_learning_rate=1e30"))
    assert (status, errors.count("\n"), "epoch: " in output) == (1, 1, False)
    assert errors.startswith("error: the loss is not finite at step ")
    assert "(learning rate " in errors and "a lower learning rate" in errors
    assert list((tmp_path / "run" / "model").iterdir()) == []


@pytest.mark.slow
def test_xla_gives_the_same_result(tmp_path):
    """SE_ResNet has Muon and a maximum over the whole map, whose gradient could be NaN."""
    # At the default rates, four steps would amplify rounding errors.
    line = "--width=2 --reduction_ratio=2 --dataset=shapes --total_epochs=1 --mixed_precision=False"
    options = [*line.split(), "--init_learning_rate=0.001", "--filter_learning_rate=0.001"]
    assert SE_ResNet.main([*options, f"--run_dir={tmp_path / 'without'}"]) == 0
    compiled = tmp_path / "compiled"
    flags = {
        # By default, TensorFlow uses XLA on GPUs only; this flag enables it on the CPU.
        "TF_XLA_FLAGS": "--tf_xla_cpu_global_jit",
        # The first flag makes compiling faster.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_dump_to={compiled}",
    }
    options += ["--xla", f"--run_dir={tmp_path / 'with'}"]
    status, _, errors = run_python("SE_ResNet.py", *options, **flags)
    assert status == 0, errors  # on a slow machine, XLA warns about slow compilation
    assert any(compiled.iterdir())
    with_xla, without = (
        [float(number) for number in re.findall(r"\d+\.\d+", (path / "logs.txt").read_text())]
        for path in (tmp_path / "with", tmp_path / "without")
    )
    # The accuracies may differ by an image: compare only the losses.
    np.testing.assert_allclose(with_xla[::2], without[::2], rtol=0.001)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_like_an_uninterrupted_one(tmp_path):
    stopped, while_saving = kill_and_resume(tmp_path, kills=3)
    assert len(stopped) == 3  # one entry per signal
    assert while_saving >= 1


LONG = ("--total_epochs=1000", "--save_minutes=1e-9")


def start_long_run(folder):
    """Start a long run in `folder` that saves after each step; wait for its first save."""
    process = start_script(*command(folder, "run", *LONG))
    while not list((folder / "run" / "model").glob("model.ckpt-*.index")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_after_the_current_step_is_saved(tmp_path, number):
    process = start_long_run(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    *notes, last = errors.splitlines(keepends=True)
    finishing = "finishing this step, then saving; press Ctrl-C again to quit without saving\n"
    assert notes == ([finishing] if number == signal.SIGINT else [])
    assert last.startswith(f"stopped by {number.name} and saved after step ")
    assert "run the same command to resume" in last
    step = int(errors.split("after step ")[1].split(";")[0])
    assert (tmp_path / "run" / "model" / f"model.ckpt-{step}.index").exists()


WAIT_FOR_SIGNALS = """
import signal, time
from senet.engine.signals import StopSignals
with StopSignals() as stop:
    stop.step_end = time.monotonic() + 120
    print('ready', flush=True)
    while not stop.received: time.sleep(0.001)
    print('first', flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers, status, note",
    [
        ([signal.SIGINT, signal.SIGTERM], 143, "finishing this step (2 min left), then saving"),
        # A shell and the kernel both send SIGHUP when a terminal closes: the second is ignored.
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGINT], 130, ""),
    ],
)
def test_a_second_signal_ends_the_process_at_once(numbers, status, note):
    process = start_python("-c", WAIT_FOR_SIGNALS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(numbers[0])
    assert process.stdout.readline() == "first\n"
    for number in numbers[1:]:
        process.send_signal(number)
    assert process.wait(timeout=60) == status
    _, errors = process.communicate()
    assert errors.startswith(note) and bool(errors) == bool(note)


@pytest.mark.slow
def test_only_one_process_trains_a_run_and_a_killed_one_leaves_no_lock(tmp_path, call):
    first = start_long_run(tmp_path)
    result = call(*arguments(tmp_path, "run", *LONG))
    assert_one_line_error(result, 1, f"another process is training in {tmp_path}/run; ")
    assert first.poll() is None
    first.kill()
    first.communicate()
    third = start_script(*command(tmp_path, "run", *LONG))
    assert "network: " in third.stdout.readline()
    third.kill()
    third.communicate()
