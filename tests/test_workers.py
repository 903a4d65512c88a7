"""Check that invalid, missing and frozen workers, and workers that differ from the chief, are
reported."""

import re
import signal

import pytest
from conftest import ROOT, start_python
from fake_cifar10 import make_files, write_folder
from forked import start_script
from workers import command, finish, free_addresses, start_worker, start_workers, wait_for_step

import SE_ResNeXt
from senet.engine import devices
from senet.engine.compat import tf
from senet.run import cluster
from senet.run.run import Run


def run_out_of_memory():
    def end_step(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    Run.end_step = end_step


@pytest.mark.slow
def test_a_host_without_enough_memory_says_so(tmp_path):
    addresses = free_addresses(2)
    workers = [
        start_worker(addresses, number, *command(tmp_path, "large"), prepare=(run_out_of_memory,))
        for number in range(2)
    ]
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors.startswith("error: out of memory; use a smaller --micro_batch_size")


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
def test_a_worker_that_differs_from_the_chief_is_rejected(tmp_path, difference, options):
    other, start = command(tmp_path, "other") + options, start_script
    if difference == "images":
        write_folder(tmp_path / "more_images", make_files(count=11))
        other += [f"--data_dir={tmp_path / 'more_images'}"]
    elif difference == "code":
        # A script with a different name is still part of the code that is compared.
        for name in ("senet", "cifar10.py"):
            (tmp_path / name).symlink_to(ROOT / name)
        start = start_python
        other[0] = tmp_path / "my_net.py"
        other[0].write_text((ROOT / "SE_ResNeXt.py").read_text() + "# changed\n")
    processes, addresses = start_workers(command(tmp_path, "other"), other, start=start)
    for status, _, errors in finish(processes):
        assert status == 1
        assert errors == (
            f"error: worker 1 at {addresses[1]} differs from the chief in its {difference}; "
            f"use the same {difference} on all workers\n"
        )


def set_cpu_flags(file):
    devices.CPU_FLAGS = file


@pytest.mark.slow
def test_a_worker_without_bfloat16_support_is_rejected(tmp_path):
    addresses, workers = free_addresses(2), []
    for number, flags in enumerate(["avx2 avx512_bf16", "avx2"]):
        file = tmp_path / str(number)
        file.write_text(f"flags\t\t: fpu {flags}\n")
        line = command(tmp_path, "precision", "--mixed_precision=True")
        workers.append(start_worker(addresses, number, *line, prepare=(set_cpu_flags, file)))
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors == (
            f"error: bfloat16 is not supported on {addresses[1]}, but the other workers use it; "
            f"set --mixed_precision=False on all workers\n"
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
    tmp_path, options, environment, status, message, monkeypatch, capsys
):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ())
    monkeypatch.setattr(devices, "_chosen", "all")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # The data folder does not exist, so the error must come before any data is read.
    _, *arguments = command(tmp_path, "rejected", *options, f"--data_dir={tmp_path / 'nowhere'}")
    assert SE_ResNeXt.main(arguments) == status
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "rejected").exists()


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
def test_a_worker_that_never_starts_is_reported(tmp_path):
    addresses = free_addresses(2)
    worker = start_impatient_worker(tmp_path, "never", addresses, 0, patience=12)
    ((status, _, errors),) = finish([worker], notes=True)
    *notes, last = errors.splitlines()
    assert status == 1
    missing = f"worker 1 at {addresses[1]} does not respond"
    assert notes
    assert all(re.fullmatch(rf"still waiting after \d+ s: {missing}", note) for note in notes)
    assert last.startswith(f"error: gave up after 0 minutes: {missing}; restart all workers")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_waiting_worker_ends_on_a_signal(tmp_path, number):
    process = start_impatient_worker(tmp_path, "signal", free_addresses(2), 0)
    while not process.stderr.readline().startswith("still waiting"):
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.endswith(f"stopped by {number.name} while waiting for workers\n")


@pytest.mark.slow
def test_workers_wait_for_one_that_starts_late(tmp_path):
    addresses = free_addresses(2)
    first = start_impatient_worker(tmp_path, "late", addresses, 0, "--total_epochs=1")
    while not first.stderr.readline().startswith("still waiting"):
        assert first.poll() is None
    results = finish(
        [first, start_impatient_worker(tmp_path, "late", addresses, 1, "--total_epochs=1")]
    )
    assert [status for status, *_ in results] == [0, 0]


@pytest.mark.slow
def test_a_frozen_worker_is_detected(tmp_path):
    addresses = free_addresses(2)
    workers = [
        start_impatient_worker(tmp_path, "frozen", addresses, n, "--total_epochs=9999")
        for n in range(2)
    ]
    wait_for_step(tmp_path, "frozen", 3, workers)
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
        (
            '{"cluster": {"worker": ["a:1", "b:65536"]}, "task": {"type": "worker", "index": 0}}',
            "is not valid",
        ),
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
