"""Start the workers of a cluster as local processes."""

import json
import re
import socket
import time

from fake_cifar10 import make_files, write_folder
from forked import start_script
from tiny_run import TINY_OPTIONS

from senet.run import hosts
from senet.run.checkpoints import checkpoint_files

# An epoch is one step on all 50 images, so the 5 rows describe 5 steps. Every micro-batch has 25
# images, on one device or on two, so batch norm sees the same images.
EPOCHS = 5
OPTIONS = [
    f"--total_epochs={EPOCHS}",
    "--batch_size=50",
    "--micro_batch_size=25",
    "--init_learning_rate=0.02",
    "--mixed_precision=False",
]


def command(folder, name, *options):
    """Return the command line of the run `folder`/`name`; write its images if they are missing."""
    data_dir = folder / "data"
    if not data_dir.exists():
        write_folder(data_dir, make_files(count=10))
    places = [f"--data_dir={data_dir}", f"--run_dir={folder / name}"]
    return ["SE_ResNet.py", *TINY_OPTIONS, *OPTIONS, *places, *options]


def free_addresses(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def start_worker(addresses, index, *command, start=start_script, chief=False, **options):
    """Start worker `index` of the cluster at `addresses`. If `chief` is true, use TensorFlow's
    convention in which the first one is the job "chief"."""
    cluster = {"worker": addresses}
    task = {"type": "worker", "index": index}
    if chief:
        cluster = {"chief": addresses[:1], "worker": addresses[1:]}
        task = {"type": "worker", "index": index - 1} if index else {"type": "chief", "index": 0}
    config = json.dumps({"cluster": cluster, "task": task})
    return start(*command, TF_CONFIG=config, **options)


def start_workers(*commands, prepare=None, **options):
    """Start one worker for each command line; return the processes and their addresses. `prepare`
    are the calls that workers make first, {index: (function, *values)}."""
    addresses = free_addresses(len(commands))
    calls = {number: {"prepare": call} for number, call in (prepare or {}).items()}
    workers = [
        start_worker(addresses, number, *line, **calls.get(number, {}), **options)
        for number, line in enumerate(commands)
    ]
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


def shorten_waiting(patience):
    """Wait `patience` seconds for the others; print notes and notice missing workers sooner than
    usual."""
    hosts.CHECK_SECONDS = 2
    hosts.GONE_SECONDS = 8
    hosts.NOTE_SECONDS = 4
    hosts.START_SECONDS = patience


def wait_for_a_note(process):
    while not process.stderr.readline().startswith("still waiting"):
        assert process.poll() is None


def wait_for_step(folder, name, step, processes):
    """Wait for the checkpoint of `step` or of a later one."""
    model = folder / name / "model"
    while not model.exists() or max(checkpoint_files(model), default=0) < step:
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes)


def assert_rejected(processes, addresses, difference):
    """Wait for the processes; check that worker 1 was rejected because it differs from worker 0."""
    for status, _, errors in finish(processes):
        assert status == 1
        message = (
            f"error: worker 1 at {addresses[1]} differs from the chief in its {difference}; "
            f"use the same {difference} on all workers\n"
        )
        assert errors.endswith(message), errors
