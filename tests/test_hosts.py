"""Check how TF_CONFIG is read, and that missing workers, and workers that differ from the chief,
are reported."""

import contextlib
import importlib.util
import re
import signal
import sys
import threading

import pytest
from conftest import ROOT
from fake_cifar10 import make_files, write_folder
from workers import (
    assert_rejected,
    command,
    finish,
    free_addresses,
    shorten_waiting,
    start_worker,
    start_workers,
    wait_for_a_note,
)

import SE_ResNet
from senet.engine import devices
from senet.engine.compat import tf
from senet.engine.errors import Failure
from senet.run import hosts


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
    assert SE_ResNet.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: TF_CONFIG is not valid: {reason}")


@pytest.mark.parametrize(
    "error, message",
    [
        (tf.errors.UnavailableError, r"^worker 0 at localhost:\d+ does not respond; restart all"),
        (tf.errors.ResourceExhaustedError, None),  # of this worker: reported as on one host
    ],
)
def test_an_error_of_tensorflow_names_the_workers_that_do_not_respond(error, message):
    cluster = object.__new__(hosts.Hosts)
    contextlib.ExitStack.__init__(cluster)
    cluster.addresses, cluster.finished = free_addresses(1), threading.Event()
    problem = error(None, None, "the message of TensorFlow")
    with pytest.raises(Failure, match=message) if message else contextlib.nullcontext():
        cluster.__exit__(type(problem), problem, None)
    assert cluster.finished.is_set()


def pretend(flags, changed=None):
    """Let this process find the CPU flags in a file and, if a path `changed` is given, run a script
    with another last line."""
    devices.CPU_FLAGS = flags
    if changed:
        changed.write_text((ROOT / "SE_ResNet.py").read_text() + "# changed\n")
        specification = importlib.util.spec_from_file_location("changed", changed)
        sys.modules["changed"] = module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        SE_ResNet.main = module.main


@pytest.mark.slow
def test_a_worker_that_differs_from_the_chief_is_rejected(tmp_path):
    with_bfloat16, without = tmp_path / "with", tmp_path / "without"
    with_bfloat16.write_text("flags\t\t: fpu avx2 avx512_bf16\n")
    without.write_text("flags\t\t: fpu avx2\n")
    line = command(tmp_path, "other", "--mixed_precision=True")
    write_folder(tmp_path / "more_images", make_files(count=11))
    # A resumed run may change micro_batch_size.
    other = [*line, "--micro_batch_size=2", f"--data_dir={tmp_path / 'more_images'}"]
    prepare = {0: (pretend, with_bfloat16), 1: (pretend, without, tmp_path / "changed.py")}
    workers = start_workers(line, other, prepare=prepare)
    assert_rejected(*workers, "hyperparameters and code and images and precision")


@pytest.mark.slow
def test_a_worker_that_never_starts_is_reported(tmp_path):
    addresses = free_addresses(2)
    line = command(tmp_path, "never")
    worker = start_worker(addresses, 0, *line, prepare=(shorten_waiting, 12))
    ((status, _, errors),) = finish([worker], notes=True)
    *notes, last = errors.splitlines()
    assert status == 1
    missing = f"worker 1 at {addresses[1]} does not respond"
    assert notes
    assert all(re.fullmatch(rf"still waiting after \d+ s: {missing}", note) for note in notes)
    assert last.startswith(f"error: gave up after 0 minutes: {missing}; restart all workers")


@pytest.mark.slow
def test_a_waiting_worker_ends_on_a_signal(tmp_path):
    line = command(tmp_path, "signal")
    process = start_worker(free_addresses(2), 0, *line, prepare=(shorten_waiting, 300))
    wait_for_a_note(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("stopped by SIGINT while waiting for workers\n")
