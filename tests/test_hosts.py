"""Check how TF_CONFIG is read, and that missing workers, and workers that differ from the chief,
are reported."""

import re
import signal

import pytest
from conftest import ROOT, start_python
from fake_cifar10 import make_files, write_folder
from forked import start_script
from workers import assert_rejected, command, finish, free_addresses, start_worker, start_workers

import SE_ResNeXt
from senet.engine import devices
from senet.engine.compat import tf
from senet.run import hosts
from senet.run.run import Run


def tf_config(cluster, task):
    return f'{{"cluster": {cluster}, "task": {task}, "environment": "cloud"}}'


WORKER = '{"type": "worker", "index": 0}'
CHIEF = '{"type": "chief", "index": 0}'


@pytest.mark.parametrize(
    "config, expected",
    [
        ("{}", ([], 0)),
        (tf_config('{"chief": ["a:1"]}', CHIEF), ([], 0)),
        (tf_config('{"worker": ["a:1", "b:1"]}', WORKER), (["a:1", "b:1"], 0)),
        (tf_config('{"worker": ["b:1"], "chief": ["a:1"]}', CHIEF), (["a:1", "b:1"], 0)),
        (tf_config('{"worker": ["b:1"], "chief": ["a:1"]}', WORKER), (["a:1", "b:1"], 1)),
    ],
)
def test_tf_config_lists_the_chief_first_and_may_list_one_host(config, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert hosts.read_tf_config() == expected


@pytest.mark.parametrize(
    "cluster, task, reason",
    [
        ('{"worker": ["a:1"], "ps": ["b:1"]}', WORKER, "the job ps is not supported, only "),
        ('{"worker": ["a:1"]}', '{"type": "evaluator", "index": 0}', "the job evaluator is not "),
        ('{"worker": "a:1"}', WORKER, "The tasks for job 'worker' must be a list"),
        ('{"worker": ["a:1", "a:1"]}', WORKER, "two workers have the same address; it must be as "),
        ('{"worker": ["a:1", "b:1"]}', '{"type": "worker", "index": 2}', "No task with index 2 "),
        ('{"worker": ["a:1", "b:1"]}', "{}", "No such job in cluster: None"),
        ("worker", "{}", "Expecting value: line 1 column 13"),
    ],
)
def test_the_invalid_part_of_tf_config_is_reported(cluster, task, reason, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", tf_config(cluster, task))
    assert SE_ResNeXt.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: TF_CONFIG is not valid: {reason}")


def run_out_of_memory():
    def end_step(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    Run.end_step = end_step


@pytest.mark.slow
def test_a_host_without_enough_memory_says_so(tmp_path):
    prepare = {0: (run_out_of_memory,), 1: (run_out_of_memory,)}
    workers, _ = start_workers(*[command(tmp_path, "large")] * 2, prepare=prepare)
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors.startswith("error: out of memory; use a smaller --micro_batch_size")


@pytest.mark.slow
@pytest.mark.parametrize("difference", ["hyperparameters", "images", "code"])
def test_a_worker_that_differs_from_the_chief_is_rejected(tmp_path, difference):
    other = command(tmp_path, "other")
    start = start_script
    if difference == "hyperparameters":
        other.append("--micro_batch_size=2")  # which a resumed run may change
    elif difference == "images":
        write_folder(tmp_path / "more_images", make_files(count=11))
        other.append(f"--data_dir={tmp_path / 'more_images'}")
    else:
        # A script with a different name is still part of the code that is compared.
        for name in ("senet", "cifar10.py"):
            (tmp_path / name).symlink_to(ROOT / name)
        start = start_python
        other[0] = tmp_path / "my_net.py"
        other[0].write_text((ROOT / "SE_ResNeXt.py").read_text() + "# changed\n")
    processes, addresses = start_workers(command(tmp_path, "other"), other, start=start)
    assert_rejected(processes, addresses, difference)


def set_cpu_flags(file):
    devices.CPU_FLAGS = file


@pytest.mark.slow
def test_a_worker_without_bfloat16_support_is_rejected(tmp_path):
    prepare = {}
    for number, flags in enumerate(["avx2 avx512_bf16", "avx2"]):
        file = tmp_path / str(number)
        file.write_text(f"flags\t\t: fpu {flags}\n")
        prepare[number] = (set_cpu_flags, file)
    line = command(tmp_path, "precision", "--mixed_precision=True")
    workers, addresses = start_workers(line, line, prepare=prepare)
    for status, _, errors in finish(workers):
        assert status == 1
        assert errors == (
            f"error: bfloat16 is not supported on {addresses[1]}, but the other workers use it; "
            f"set --mixed_precision=False on all workers\n"
        )


def shorten_waiting(patience):
    hosts.CHECK_SECONDS = 2
    hosts.GONE_SECONDS = 8
    hosts.NOTE_SECONDS = 4
    hosts.START_SECONDS = patience


def start_impatient_worker(folder, name, addresses, index, *options, patience=300):
    """Start a worker that waits for the others for `patience` seconds. It also prints notes and
    detects missing workers sooner than usual."""
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


def wait_for_a_note(process):
    while not process.stderr.readline().startswith("still waiting"):
        assert process.poll() is None


@pytest.mark.slow
def test_a_waiting_worker_ends_on_a_signal(tmp_path):
    process = start_impatient_worker(tmp_path, "signal", free_addresses(2), 0)
    wait_for_a_note(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("stopped by SIGINT while waiting for workers\n")


@pytest.mark.slow
def test_workers_wait_for_one_that_starts_late(tmp_path):
    addresses = free_addresses(2)
    first = start_impatient_worker(tmp_path, "late", addresses, 0, "--total_epochs=1")
    wait_for_a_note(first)
    late = start_impatient_worker(tmp_path, "late", addresses, 1, "--total_epochs=1")
    assert [status for status, *_ in finish([first, late])] == [0, 0]
