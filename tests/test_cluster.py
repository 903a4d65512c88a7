"""Check that one device, two devices and two hosts produce the same run, and that invalid, missing
and frozen workers are reported. Hosts are local processes."""

import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from conftest import ROOT, start_python
from fake_cifar10 import make_files, write_folder
from forked import run_script, start_script
from tiny_run import TINY_OPTIONS

import SE_ResNeXt
from senet import devices
from senet.compat import tf
from senet.run import cluster
from senet.run.checkpoints import Checkpoints, checkpoint_files
from senet.run.run import Run

# An epoch is one step on all 50 images, so the 8 rows describe 8 steps. Every micro-batch has 25
# images, on one device or on two, so batch norm sees the same images.
EPOCHS = 8
OPTIONS = [
    f"--total_epochs={EPOCHS}",
    "--batch_size=50",
    "--micro_batch_size=25",
    "--init_learning_rate=0.02",
]
PRECISION = "--mixed_precision=False"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    write_folder(folder / "data", make_files(count=10))
    return folder


def command(folder, name, *options):
    places = [f"--data_dir={folder / 'data'}", f"--run_dir={folder / name}"]
    return ["SE_ResNeXt.py", *TINY_OPTIONS, *OPTIONS, PRECISION, *places, *options]


def free_addresses(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def start_worker(addresses, index, *command, start=start_script, **options):
    """Start worker `index` of the cluster at `addresses`."""
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": {"worker": addresses}, "task": task})
    return start(*command, TF_CONFIG=config, **options)


def start_workers(*commands, start=start_script):
    """Start one worker for each command line; return the processes and their addresses."""
    addresses = free_addresses(len(commands))
    workers = [start_worker(addresses, n, *line, start=start) for n, line in enumerate(commands)]
    return workers, addresses


def finish(processes, notes=False):
    """Wait for the processes; return [(exit status, standard output, standard error)]. Notes that a
    worker is waiting are removed unless `notes` is true."""
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=600)
        if not notes:
            errors = re.sub(r"(?m)^still waiting after \d+ s: .*\n", "", errors)
        results.append((process.returncode, output, errors))
    return results


def numbers(folder, name):
    """Return the losses and accuracies in logs.txt, [epochs, 4]."""
    rows = (folder / name / "logs.txt").read_text().splitlines()
    return np.array([re.findall(r": (\d+\.\d+)", row) for row in rows], float)


def checkpoint(folder, name):
    """Return the variables of the newest checkpoint, {name: value}."""
    reader = tf.train.load_checkpoint(str(folder / name / "model"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def wait_for_step(folder, name, step, processes):
    """Wait for the checkpoint of `step` or of a later one."""
    model = folder / name / "model"
    while not model.exists() or max(checkpoint_files(model), default=0) < step:
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes)


@pytest.fixture(scope="module")
def one(folder):
    """Return the name of the run on one device, which all other runs must match."""
    _, *arguments = command(folder, "one")
    assert SE_ResNeXt.main(arguments) == 0
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
    """Return the name of an uninterrupted run on two hosts, and what `finish` returned for it."""
    processes, _ = start_workers(command(folder, "hosts"), command(folder, "hosts"))
    return "hosts", finish(processes)


@pytest.mark.slow
def test_two_hosts_give_the_same_run_as_one_device(folder, one, two_hosts):
    name, results = two_hosts
    (status, output, errors), (other_status, other_output, other_errors) = results
    assert (status, errors, other_status, other_errors) == (0, "", 0, "")
    waiting = "worker {} (2 workers, numbered from 0): waiting up to 10 minutes for the others"
    assert output.splitlines()[0] == waiting.format(0)
    assert other_output == waiting.format(1) + "\n"
    assert_same_run(folder, name, one)


def save_slowly(seconds):
    save = Checkpoints.save
    Checkpoints.save = lambda *arguments: (time.sleep(seconds), save(*arguments))


SLOW = (save_slowly, 0.5)  # leaves time for a signal before the last epoch ends


def save_slowly_and_check_often():
    """Make saving take longer than detecting that a worker has ended."""
    cluster.CHECK_SECONDS = 1
    save_slowly(4)


@pytest.mark.slow
def test_two_hosts_stop_together_and_one_resumes(folder, one):
    addresses = free_addresses(2)
    processes = [
        start_worker(
            addresses, number, *command(folder, "fewer"), prepare=(save_slowly_and_check_often,)
        )
        for number in range(2)
    ]
    wait_for_step(folder, "fewer", 1, processes)
    processes[1].send_signal(signal.SIGTERM)
    (status, _, errors), (other_status, _, other_errors) = finish(processes)
    assert (status, other_status) == (143, 143)
    assert errors.startswith("stopped by SIGTERM and saved after step ")
    assert other_errors == errors
    assert run_script(*command(folder, "fewer"))[0] == 0
    assert_same_run(folder, "fewer", one)


def run_out_of_memory():
    def end_step(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    Run.end_step = end_step


@pytest.mark.slow
def test_a_host_without_enough_memory_says_so(folder):
    addresses = free_addresses(2)
    workers = [
        start_worker(addresses, number, *command(folder, "large"), prepare=(run_out_of_memory,))
        for number in range(2)
    ]
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors.startswith("error: out of memory; use a smaller --micro_batch_size")


@pytest.mark.slow
def test_one_host_stops_and_two_resume(folder, one):
    process = start_script(*command(folder, "more"), prepare=SLOW)
    wait_for_step(folder, "more", 3, [process])
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    processes, _ = start_workers(command(folder, "more"), command(folder, "more"))
    assert [status for status, *_ in finish(processes)] == [0, 0]
    assert_same_run(folder, "more", one)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killing_one_worker_ends_the_other_and_both_can_resume(folder, two_hosts, victim):
    name, addresses = f"killed{victim}", free_addresses(2)
    processes = [
        start_worker(addresses, number, *command(folder, name), prepare=SLOW) for number in range(2)
    ]
    wait_for_step(folder, name, 3, processes)
    processes[victim].kill()
    killed = time.monotonic()
    results = finish(processes)
    assert time.monotonic() - killed < 60
    status, _, errors = results[1 - victim]
    assert status == 1
    assert errors == (
        f"error: worker {victim} at {addresses[victim]} does not respond; "
        f"restart all workers to resume from the last checkpoint\n"
    )
    processes, _ = start_workers(command(folder, name), command(folder, name))
    assert [status for status, *_ in finish(processes)] == [0, 0]
    # The resumed run must match bit for bit.
    uninterrupted = checkpoint(folder, two_hosts[0])
    for key, value in checkpoint(folder, name).items():
        np.testing.assert_array_equal(value, uninterrupted[key], err_msg=key)
    rows = (folder / name / "logs.txt").read_text()
    assert rows == (folder / two_hosts[0] / "logs.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "difference, options",
    [
        ("hyperparameters", ["--weight_decay=0.1"]),
        ("hyperparameters", ["--micro_batch_size=2"]),  # one that a resumed run may change
        ("images", []),
        ("code", []),
    ],
)
def test_a_worker_that_differs_from_the_chief_is_rejected(folder, tmp_path, difference, options):
    other, start = command(folder, "other") + options, start_script
    if difference == "images":
        write_folder(tmp_path / "data", make_files(count=11))
        other += [f"--data_dir={tmp_path / 'data'}"]
    elif difference == "code":
        # A script with a different name is still part of the code that is compared.
        for name in ("senet", "cifar10.py"):
            (tmp_path / name).symlink_to(ROOT / name)
        start = start_python
        other[0] = tmp_path / "my_net.py"
        other[0].write_text((ROOT / "SE_ResNeXt.py").read_text() + "# changed\n")
    processes, addresses = start_workers(command(folder, "other"), other, start=start)
    for status, _, errors in finish(processes):
        assert status == 1
        assert errors == (
            f"error: worker 1 at {addresses[1]} differs from the chief in its {difference}; "
            f"use the same {difference} on all workers\n"
        )


def set_cpu_flags(file):
    devices.CPU_FLAGS = file


@pytest.mark.slow
def test_a_worker_without_bfloat16_support_is_rejected(folder, tmp_path):
    addresses, workers = free_addresses(2), []
    for number, flags in enumerate(["avx2 avx512_bf16", "avx2"]):
        file = tmp_path / str(number)
        file.write_text(f"flags\t\t: fpu {flags}\n")
        line = command(folder, "precision", "--mixed_precision=True")
        workers.append(start_worker(addresses, number, *line, prepare=(set_cpu_flags, file)))
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors == (
            f"error: bfloat16 is not supported on {addresses[1]}, but the other workers use it; "
            f"set --mixed_precision=False on all workers\n"
        )


@pytest.mark.slow
def test_a_worker_without_the_chiefs_checkpoint_is_rejected(folder, one):
    processes, addresses = start_workers(
        command(folder, "one", f"--total_epochs={EPOCHS + 1}"),
        command(folder, "away", f"--total_epochs={EPOCHS + 1}"),
    )
    for status, _, errors in finish(processes):
        assert status == 1
        assert errors == (
            f"error: worker 1 at {addresses[1]} differs from the chief in its checkpoint; "
            f"use the same checkpoint on all workers\n"
        )


WARM_START = ["--total_epochs=3", "--seed=1"]


def newest_two(folder, name):
    """Return the paths of the second-newest and the newest checkpoint."""
    model = folder / name / "model"
    return [model / f"model.ckpt-{step}" for step in list(checkpoint_files(model))[-2:]]


@pytest.mark.slow
def test_every_device_and_host_starts_from_the_same_weights(folder, one):
    start = f"--initial_checkpoint={folder / one}"
    status, output, errors = run_script(*command(folder, "started", *WARM_START, start))
    assert (status, errors) == (0, "")
    line = f"weights: 79 of 79 variables from {newest_two(folder, one)[1]}"
    assert line in output.splitlines()
    options = [*WARM_START, start, "--devices=cpu:0,cpu:1"]
    status, output, errors = run_script(*command(folder, "started_two", *options))
    assert (status, errors) == (0, "")
    assert line in output.splitlines()
    assert_same_run(folder, "started_two", "started")
    workers = [command(folder, "started_hosts", *WARM_START, start)] * 2
    (status, output, _), (other_status, other, _) = finish(start_workers(*workers)[0])
    assert (status, other_status) == (0, 0)
    assert line in output.splitlines()
    assert "weights: " not in other
    assert_same_run(folder, "started_hosts", "started")


@pytest.mark.slow
def test_a_worker_with_different_initial_weights_is_rejected(folder, one, tmp_path):
    # The same relative path leads to a different checkpoint on each worker.
    for place, path in zip("ab", newest_two(folder, one), strict=True):
        model = tmp_path / place / "start" / "model"
        model.mkdir(parents=True)
        for file in path.parent.glob(f"{path.name}.*"):
            shutil.copy(file, model)
    line, addresses = command(folder, "weights", "--initial_checkpoint=start"), free_addresses(2)
    workers = [start_worker(addresses, n, *line, cwd=tmp_path / "ab"[n]) for n in range(2)]
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors.splitlines()[-1] == (  # on a loaded machine, after notes about waiting
            f"error: worker 1 at {addresses[1]} differs from the chief in its initial checkpoint; "
            f"use the same initial checkpoint on all workers"
        )


@pytest.mark.parametrize(
    "options, environment, status, message",
    [
        (
            ["--devices=cpu:0,cpu:1,cpu:2"],
            {},
            2,
            "--batch_size must be a multiple of 3, the number of devices, got 50",
        ),
        (["--devices=gpu1"], {}, 2, "--devices must be all, "),
        (
            ["--devices=0,1"],
            {},
            1,
            "--devices=0,1 names a GPU that TensorFlow does not see (it sees none)",
        ),
        ([], {"TF_CONFIG": "{worker: 1}"}, 1, "TF_CONFIG is not valid: {worker: 1}; it must be"),
    ],
)
def test_invalid_devices_and_clusters_are_rejected_before_data_is_read(
    folder, options, environment, status, message, monkeypatch, capsys
):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ())
    monkeypatch.setattr(devices, "_chosen", "all")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # The data folder does not exist, so the error must come before any data is read.
    _, *arguments = command(folder, "rejected", *options, f"--data_dir={folder / 'nowhere'}")
    assert SE_ResNeXt.main(arguments) == status
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (folder / "rejected").exists()


def test_the_default_of_devices_is_all():
    assert SE_ResNeXt.Hyperparameters().devices == "all"


def shorten_waiting(patience):
    cluster.START_SECONDS, cluster.NOTE_SECONDS, cluster.FROZEN_SECONDS = patience, 4, 10


def start_impatient_worker(folder, name, addresses, index, *options, patience=300):
    """Start a worker that waits for the others for `patience` seconds. It also prints notes and
    detects frozen workers sooner than usual."""
    line = command(folder, name, *options)
    return start_worker(addresses, index, *line, prepare=(shorten_waiting, patience))


@pytest.mark.slow
def test_a_worker_that_never_starts_is_reported(folder):
    addresses = free_addresses(2)
    worker = start_impatient_worker(folder, "never", addresses, 0, patience=12)
    ((status, _, errors),) = finish([worker], notes=True)
    *notes, last = errors.splitlines()
    assert status == 1
    missing = f"worker 1 at {addresses[1]} does not respond"
    assert notes
    assert all(re.fullmatch(rf"still waiting after \d+ s: {missing}", note) for note in notes)
    assert last.startswith(f"error: gave up after 0 minutes: {missing}; restart all workers")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_waiting_worker_ends_on_a_signal(folder, number):
    process = start_impatient_worker(folder, "signal", free_addresses(2), 0)
    while not process.stderr.readline().startswith("still waiting"):
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.endswith(f"stopped by {number.name} while waiting for workers\n")


@pytest.mark.slow
def test_workers_wait_for_one_that_starts_late(folder):
    addresses = free_addresses(2)
    first = start_impatient_worker(folder, "late", addresses, 0, "--total_epochs=1")
    while not first.stderr.readline().startswith("still waiting"):
        assert first.poll() is None
    results = finish(
        [first, start_impatient_worker(folder, "late", addresses, 1, "--total_epochs=1")]
    )
    assert [status for status, *_ in results] == [0, 0]


@pytest.mark.slow
def test_a_frozen_worker_is_detected(folder):
    addresses = free_addresses(2)
    workers = [
        start_impatient_worker(folder, "frozen", addresses, n, "--total_epochs=9999")
        for n in range(2)
    ]
    wait_for_step(folder, "frozen", 3, workers)
    workers[1].send_signal(signal.SIGSTOP)
    ((status, _, errors),) = finish(workers[:1])
    workers[1].kill()
    workers[1].communicate()
    assert status == 1
    assert errors.endswith(
        f"error: worker 1 at {addresses[1]} does not respond; restart all workers to resume from "
        f"the last checkpoint\n"
    )


@pytest.mark.parametrize(
    "config, message",
    [
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "twice",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0.0}}',
            "not",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": true}}',
            "not",
        ),
        ("[" * 100_000, "is not valid: [["),
    ],
)
def test_an_invalid_tf_config_is_rejected(config, message, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", config)
    assert SE_ResNeXt.main([]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: TF_CONFIG ")
    assert message in errors
    assert errors.count("\n") == 1
    assert len(errors) < 500
