import re
import signal
import time

import numpy as np
from conftest import run_python, start_python
from tiny_run import command

from SE_ResNeXt import Hyperparameters
from senet.compat import tf
from senet.devices import session_config


def scalars(run_dir):
    """{tag: {epoch: value}} that TensorBoard shows: a start drops what is not before its step."""
    shown = {}
    for file in sorted((run_dir / "logs").iterdir()):
        for event in tf.train.summary_iterator(str(file)):
            if event.session_log.status == tf.SessionLog.START:
                for values in shown.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


def test_a_killed_and_resumed_run_leaves_the_same_rows_and_learning_rates(tmp_path):
    options = ["--total_epochs=4"]
    status, whole, errors = run_python(*command(tmp_path, "whole", *options))
    assert (status, errors) == (0, "")

    process = start_python(*command(tmp_path, "resumed", *options))
    while not (tmp_path / "resumed" / "model" / "model.ckpt-20.index").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, resumed, errors = run_python(*command(tmp_path, "resumed", *options))
    assert (status, errors) == (0, "")
    assert "resuming at step 20 of 40" in resumed or "resuming at step 30 of 40" in resumed

    rows = (tmp_path / "whole" / "logs.txt").read_text()
    assert [row.split(",")[0] for row in rows.splitlines()] == [
        f"epoch: {n}/4" for n in range(1, 5)
    ]
    assert rows in whole
    assert (tmp_path / "resumed" / "logs.txt").read_text() == rows
    of_whole, of_resumed = scalars(tmp_path / "whole"), scalars(tmp_path / "resumed")
    assert of_whole.pop("images_per_second").keys() == of_resumed.pop("images_per_second").keys()
    assert of_whole == of_resumed


def test_what_a_run_leaves_and_says(tmp_path):
    status, output, errors = run_python(*command(tmp_path, "run", "--total_epochs=1"))
    assert (status, errors) == (0, "")
    network, data, device, run, watch, row, done, best, after = output.splitlines()
    # By hand: stem 1,856, stages 996, 984 and 3,696, classifier 330.
    assert network == "network: SE_ResNeXt, 7,862 trainable parameters"
    assert data == "data: cifar10, 500 training and 100 test images in 10 classes"
    assert device.startswith("device: ")
    folder = tmp_path / "run"
    assert run == f"run: {folder} (new)"
    assert watch == f"watch it: tensorboard --logdir {folder}"
    assert row == (folder / "logs.txt").read_text().strip()
    assert done == f"done: checkpoints in {folder}/model"
    assert best == "best by test accuracy: model.ckpt-10 (epoch 1)"
    assert after == f"next: python SE_ResNeXt.py evaluate --run_dir={folder}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "hyperparameters.json",
        "lock",
        "logs",
        "logs.txt",
        "model",
    ]


def test_what_would_take_days_without_a_gpu_is_said_at_the_start(tmp_path):
    options = ["--total_epochs=999999", "--depth=16", "--cardinality=8", "--padding=32"]
    process = start_python(*command(tmp_path, "run", *options))
    lines = [process.stdout.readline() for _ in range(7)]
    process.kill()
    process.communicate()
    assert re.fullmatch(
        r"note: without a GPU this takes about [\d,]+ days; a smaller start:\n", lines[5]
    )
    assert lines[6] == (
        "  python SE_ResNeXt.py --padding=0 --depth=8 --micro_batch_size=0 --total_epochs=3 "
        f"--data_dir={tmp_path}/data --run_dir=runs/small\n"
    )


def test_xla_computes_the_same_as_without(tmp_path):
    for name, xla in ("with", True), ("without", False):
        options = ["--total_epochs=1", "--mixed_precision=False", f"--xla={xla}"]
        # By itself, TensorFlow has XLA compile for GPUs only; the flag is for the CPU.
        flag = {"TF_XLA_FLAGS": "--tf_xla_cpu_global_jit"}
        status, _, errors = run_python(*command(tmp_path, name, *options), **flag)
        assert (status, errors) == (0, "")
    with_xla, without = (
        [float(number) for number in re.findall(r"\d+\.\d+", (path / "logs.txt").read_text())]
        for path in (tmp_path / "with", tmp_path / "without")
    )
    # Ten steps at full learning rate let differences of rounding grow: losses, then accuracies.
    np.testing.assert_allclose(with_xla[::2], without[::2], rtol=0.02)


def test_xla_is_used_only_if_asked_for():
    levels = [
        session_config(Hyperparameters(xla=xla)).graph_options.optimizer_options.global_jit_level
        for xla in (False, True)
    ]
    assert levels == [tf.OptimizerOptions.DEFAULT, tf.OptimizerOptions.ON_1]
