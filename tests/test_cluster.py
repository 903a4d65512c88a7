"""Check that one device, two devices and two hosts produce the same run, also if it is stopped,
killed or starts from the weights of another run."""

import re
import shutil
import signal
import time

import numpy as np
import pytest
from forked import run_script
from tiny_run import signal_after_epoch
from workers import (
    EPOCHS,
    assert_rejected,
    command,
    finish,
    free_addresses,
    shorten_waiting,
    start_worker,
    start_workers,
    wait_for_a_note,
    wait_for_step,
)

import SE_ResNet
from senet.engine.compat import tf
from senet.run import hosts
from senet.run.checkpoints import Checkpoints, checkpoint_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


def numbers(folder, name):
    """Return the losses and accuracies in logs.txt, [epochs, 4]."""
    rows = (folder / name / "logs.txt").read_text().splitlines()
    return np.array([re.findall(r": (\d+\.\d+)", row) for row in rows], float)


def checkpoint(folder, name):
    """Return the variables of the newest checkpoint, {name: value}."""
    reader = tf.train.load_checkpoint(str(folder / name / "model"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.fixture(scope="module")
def one(folder):
    """Return the name of the run on one device, which all other runs must match."""
    _, *arguments = command(folder, "one")
    assert SE_ResNet.main(arguments) == 0
    assert numbers(folder, "one").shape == (EPOCHS, 4)
    return "one"


def assert_same_run(folder, name, other):
    np.testing.assert_allclose(numbers(folder, name), numbers(folder, other), atol=1.1e-4)
    values, others = checkpoint(folder, name), checkpoint(folder, other)
    assert values.keys() == others.keys()
    # Summing in a different order changes the rounding errors, which the steps amplify: for some
    # variables, to 0.4 % of the norm. If a gradient were counted twice or only half
    # counted, the difference would be at least half of the norm.
    for key, value in values.items():
        difference = np.linalg.norm(value - others[key])
        assert difference <= 0.01 * np.linalg.norm(others[key]) + 1e-6, key


@pytest.mark.slow
def test_two_devices_produce_the_same_run_as_one(folder, one):
    status, output, errors = run_script(*command(folder, "two", "--devices=cpu:0,cpu:1"))
    assert (status, errors) == (0, "")
    assert "split into 2 devices" in output
    assert_same_run(folder, "two", one)


@pytest.fixture(scope="module")
def two_hosts(folder):
    """Return the name of an uninterrupted run on two hosts, a chief and a worker that starts late,
    and what `finish` returned for it."""
    addresses = free_addresses(2)
    line = command(folder, "hosts")
    chief = start_worker(addresses, 0, *line, chief=True, prepare=(shorten_waiting, 300))
    wait_for_a_note(chief)
    worker = start_worker(addresses, 1, *line, chief=True)
    return "hosts", finish([chief, worker])


@pytest.mark.slow
def test_two_hosts_give_the_same_run_as_one_device(folder, one, two_hosts):
    name, results = two_hosts
    (status, output, errors), (other_status, other_output, other_errors) = results
    assert (status, errors, other_status, other_errors) == (0, "", 0, "")
    waiting = "worker {} (2 workers, numbered from 0): waiting up to {} minutes for the others"
    assert output.splitlines()[0] == waiting.format(0, 5)
    assert other_output == waiting.format(1, 10) + "\n"
    assert_same_run(folder, name, one)


def save_slowly_and_check_often():
    """Make saving take longer than detecting that a worker has ended."""
    hosts.CHECK_SECONDS = 1
    hosts.GONE_SECONDS = 1
    save = Checkpoints.save
    Checkpoints.save = lambda *arguments: (time.sleep(4), save(*arguments))


def kill(folder, name, victim, epoch):
    """Start the run `name` on two hosts, kill the one with the number `victim` after `epoch`, and
    check that the other ends with an error."""
    prepare = {victim: (signal_after_epoch, epoch)}
    processes, addresses = start_workers(*[command(folder, name)] * 2, prepare=prepare)
    assert processes[victim].wait() == -signal.SIGKILL
    status, _, errors = finish(processes)[1 - victim]
    assert status == 1
    assert errors == (
        f"error: worker {victim} at {addresses[victim]} does not respond; "
        f"restart all workers to resume from the last checkpoint\n"
    )


@pytest.mark.slow
def test_two_hosts_stop_together_and_resume_after_a_signal_and_two_kills(folder, two_hosts):
    prepare = {number: (save_slowly_and_check_often,) for number in range(2)}
    processes, _ = start_workers(*[command(folder, "stopped")] * 2, prepare=prepare)
    wait_for_step(folder, "stopped", 1, processes)
    processes[1].send_signal(signal.SIGTERM)
    (status, _, errors), (other_status, _, other_errors) = finish(processes)
    assert (status, other_status) == (143, 143)
    assert errors.startswith("stopped by SIGTERM and saved after step ")
    assert other_errors == errors

    kill(folder, "stopped", victim=1, epoch=EPOCHS - 2)
    kill(folder, "stopped", victim=0, epoch=EPOCHS - 1)
    processes, _ = start_workers(*[command(folder, "stopped")] * 2)
    assert [status for status, *_ in finish(processes)] == [0, 0]
    # The resumed run must match bit for bit.
    uninterrupted = checkpoint(folder, two_hosts[0])
    for key, value in checkpoint(folder, "stopped").items():
        np.testing.assert_array_equal(value, uninterrupted[key], err_msg=key)
    rows = (folder / "stopped" / "logs.txt").read_text()
    assert rows == (folder / two_hosts[0] / "logs.txt").read_text()


@pytest.mark.slow
def test_a_worker_without_the_chiefs_checkpoint_is_rejected(folder, one):
    more = f"--total_epochs={EPOCHS + 1}"
    workers = start_workers(command(folder, "one", more), command(folder, "away", more))
    assert_rejected(*workers, "checkpoint")


def newest_two(folder, name):
    """Return the paths of the second-newest and the newest checkpoint."""
    model = folder / name / "model"
    return [model / f"model.ckpt-{step}" for step in list(checkpoint_files(model))[-2:]]


@pytest.mark.slow
def test_both_devices_start_from_the_same_weights(folder, one):
    options = ["--total_epochs=1", "--seed=1", f"--initial_checkpoint={folder / one}"]
    line = f"weights: 39 of 39 variables from {newest_two(folder, one)[1]}"
    for name, devices in ("started", "all"), ("started_two", "cpu:0,cpu:1"):
        more = [*options, f"--devices={devices}"]
        status, output, errors = run_script(*command(folder, name, *more))
        assert (status, errors) == (0, "")
        assert line in output.splitlines()
    assert_same_run(folder, "started_two", "started")


@pytest.mark.slow
def test_a_worker_with_different_initial_weights_is_rejected(folder, one, tmp_path):
    # The same relative path leads to a different checkpoint on each worker.
    for place, path in zip("ab", newest_two(folder, one), strict=True):
        model = tmp_path / place / "start" / "model"
        model.mkdir(parents=True)
        for file in path.parent.glob(f"{path.name}.*"):
            shutil.copy(file, model)
    line = command(folder, "weights", "--initial_checkpoint=start")
    addresses = free_addresses(2)
    workers = [start_worker(addresses, n, *line, cwd=tmp_path / "ab"[n]) for n in range(2)]
    assert_rejected(workers, addresses, "initial checkpoint")
