"""The devices and hosts of a run (tf.distribute).

On one host, a run uses all GPUs or the given devices. With several hosts, TF_CONFIG must be set on
each and list all workers, as for any distributed TensorFlow program; the first worker is the chief.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import zlib

import numpy as np

from senet.engine.compat import print_error, tf
from senet.engine.devices import compute_dtype, session_config, use_devices
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.text import first_line
from senet.run.console import say

RESTART = "restart all workers to resume from the last checkpoint"
CHECK_SECONDS = 5  # between checks of the other workers
NOTE_SECONDS = 30  # between notes on missing workers
START_SECONDS = 600  # for all workers to start
FROZEN_SECONDS = 60  # without a response on an open connection
# The first bytes that an HTTP/2 client sends: a gRPC server replies at once, a frozen one does not.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Cluster:
    """The devices and hosts of a run; use it in a `with` statement around the graph.

    `strategy` is the tf.distribute.Strategy, `addresses` are those of all workers, and `number` is
    the index of this worker in them ([] and 0 without TF_CONFIG). Raises Failure or
    HyperparameterError if a device does not exist, if TF_CONFIG is not valid, or if the batch size
    is not a multiple of the number of devices."""

    def __init__(self, hyperparameters, signals):
        self.hyperparameters, self.signals = hyperparameters, signals
        self.addresses, self.number = _hosts()
        self.chief = self.number == 0
        self.gathering = {}
        self.connected, self.finished = threading.Event(), threading.Event()
        names = use_devices(hyperparameters.devices)
        self.config = session_config(hyperparameters)
        if len(self.addresses) > 1:
            self.strategy = self._of_hosts()
        else:
            self.strategy = self._of_devices(names)
        replicas = self.strategy.num_replicas_in_sync
        if hyperparameters.batch_size % replicas:
            raise HyperparameterError(
                f"--batch_size must be a multiple of {replicas}, the number of devices, "
                f"got {hyperparameters.batch_size}"
            )

    def _of_devices(self, names):
        self.target = ""
        if names in (["/gpu:0"], ["/cpu:0"]):
            return tf.distribute.get_strategy()  # the default: TensorFlow chooses the device
        if len(names) == 1:
            return tf.distribute.OneDeviceStrategy(names[0])
        return tf.distribute.MirroredStrategy(names)

    def _of_hosts(self):
        if self.hyperparameters.devices != "all":
            raise HyperparameterError(
                f"--devices must be all when TF_CONFIG is set, got {self.hyperparameters.devices}; "
                f"choose a host's GPUs with CUDA_VISIBLE_DEVICES"
            )
        strategy = tf.distribute.experimental.MultiWorkerMirroredStrategy()
        self.config = strategy.update_config_proto(self.config)
        self.config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        say(
            f"worker {self.number} ({len(self.addresses)} workers, numbered from 0): waiting up "
            f"to {START_SECONDS // 60} minutes for the others"
        )
        try:
            self.server = tf.distribute.Server(
                {"worker": self.addresses}, "worker", self.number, config=self.config
            )
        except tf.errors.OpError:
            raise Failure(
                f"worker {self.number} cannot listen on {self.addresses[self.number]}: another "
                f"process uses the port, or the address does not belong to this host; free the "
                f"port or fix TF_CONFIG"
            ) from None
        self.target = self.server.target
        return strategy

    def __enter__(self):
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.strategy.scope())
        if len(self.addresses) > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, error, _):
        self.finished.set()
        self._open.close()
        out_of_memory = isinstance(error, tf.errors.ResourceExhaustedError)  # of this worker
        if len(self.addresses) > 1 and isinstance(error, tf.errors.OpError) and not out_of_memory:
            unresponsive = _described(_unresponsive_workers(self.addresses))
            raise Failure(f"{unresponsive or 'a worker stopped: ' + first_line(error)}; {RESTART}")

    def _watch(self):
        """End this process if another worker stops, if one does not start in time, or if a signal
        arrives before all workers are connected. In each case, TensorFlow would wait forever."""
        started = checked = noted = time.monotonic()
        unresponsive_since, seen = {}, set()
        while not self.finished.wait(0.1):
            now = time.monotonic()
            if self.signals.received and not self.connected.is_set():
                number = self.signals.received
                self._end(128 + number, f"stopped by {number.name} while waiting for workers")
            if now - checked < CHECK_SECONDS:
                continue
            checked = now
            missing = _unresponsive_workers(self.addresses)
            seen |= set(range(len(self.addresses))) - missing.keys()
            expected = missing.keys() if self.connected.is_set() else missing.keys() & seen
            unresponsive_since = {n: unresponsive_since.get(n, now) for n in expected}
            gone = {
                number: missing[number]
                for number, since in unresponsive_since.items()
                if now - since >= (FROZEN_SECONDS if missing[number].frozen else CHECK_SECONDS)
            }
            if gone and not self.finished.is_set():
                self._end(1, f"error: {_described(gone)}; {RESTART}")
            if self.connected.is_set():
                continue
            reason = _described(missing) or (
                "all workers respond, but one is still starting, or its TF_CONFIG differs in more "
                "than the index"
            )
            if now - started > START_SECONDS:
                minutes = START_SECONDS // 60
                self._end(1, f"error: gave up after {minutes} minutes: {reason}; {RESTART}")
            if now - noted > NOTE_SECONDS:
                noted = now
                print_error(f"still waiting after {now - started:.0f} s: {reason}")

    def _end(self, status, line):
        print_error(line)
        os._exit(status)

    def session(self):
        """Return a `tf.Session` on the devices of all hosts."""
        return tf.Session(self.target, config=self.config)

    def gather(self, values):
        """Return the integers `values` of every worker, int64 [workers, values]. Every worker must
        call this; the call waits for all of them."""
        if len(self.addresses) < 2:
            return np.array([values])
        if len(values) not in self.gathering:
            self.gathering[len(values)] = self._gathering(len(values))
        session, row, table = self.gathering[len(values)]
        result = session.run(table, {row: values})
        self.connected.set()
        return result

    def _gathering(self, count):
        """Return a session, the placeholder for this worker's row, and the table of all rows."""
        with tf.Graph().as_default(), self.strategy.scope():
            row = tf.placeholder(tf.int64, [count])
            mine = tf.one_hot(self.number, len(self.addresses), dtype=tf.int64)[:, None] * row
            tables = self.strategy.run(lambda: tf.identity(mine))
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, tables, axis=None)
            # Every device of a worker has added the worker's row.
            devices = self.strategy.num_replicas_in_sync // len(self.addresses)
            session = self.session()
            self._open.callback(session.close)
            return session, row, total // devices

    def wait_for_all(self):
        """Wait until every worker has called this; after that, any worker may end."""
        self.gather([0])
        self.finished.set()

    def stop(self, flag):
        """Return whether `flag` is true on any worker. If so, stop watching the others, which may
        now end."""
        stop = bool(self.gather([bool(flag)]).any())
        if stop:
            self.finished.set()
        return stop

    def from_chief(self, *values):
        """Return the chief's integers `values` on every worker."""
        return self.gather(values)[0].tolist()

    def check_same(self, **strings):
        """Raise Failure unless every worker passes the same `strings` as the chief. The message
        lists the names of those that differ."""
        rows = self.gather([zlib.crc32(string.encode()) for string in strings.values()])
        names = [name.replace("_", " ") for name in strings]
        for number, row in enumerate(rows):
            different = [n for n, equal in zip(names, row == rows[0], strict=True) if not equal]
            if different:
                listed = " and ".join(different)
                raise Failure(
                    f"worker {number} at {self.addresses[number]} differs from the chief in its "
                    f"{listed}; use the same {listed} on all workers"
                )

    def check_same_precision(self):
        """Raise Failure if only some of the workers compute in bfloat16. The message lists the
        addresses of those that do not."""
        with_bfloat16 = compute_dtype(self.hyperparameters.mixed_precision) == tf.bfloat16
        has = self.gather([with_bfloat16])[:, 0].tolist()
        if len(set(has)) > 1:
            without = ", ".join(
                address for address, h in zip(self.addresses, has, strict=True) if not h
            )
            raise Failure(
                f"bfloat16 is not supported on {without}, but the other workers use it; set "
                f"--mixed_precision=False on all workers"
            )


class Unresponsive(str):
    """The description of a worker that does not respond. `frozen` is true if the worker accepts
    connections but does not reply."""

    frozen = False


def _unresponsive_workers(addresses):
    """Return {number: Unresponsive} of the workers that do not respond."""
    unresponsive = {}
    for number, address in enumerate(addresses):
        host, _, port = address.rpartition(":")
        description = Unresponsive(f"worker {number} at {address} does not respond")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
                description.frozen = True
                connection.sendall(GREETING)
                if not connection.recv(1):
                    raise OSError
        except (OSError, OverflowError):
            unresponsive[number] = description
    return unresponsive


def _described(unresponsive):
    return ", ".join(unresponsive.values())


def _hosts():
    """Return the addresses of all workers in TF_CONFIG and the index of this one, or ([], 0) if
    TF_CONFIG is not set.

    Raises Failure if TF_CONFIG is not valid."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return [], 0
    try:
        config = json.loads(text)
        addresses, task = config["cluster"]["worker"], config["task"]
        index = task["index"]
        valid = set(config["cluster"]) == {"worker"} and task["type"] == "worker"
        ports = [re.fullmatch(r"\S+:(\d{1,5})", address) for address in addresses]
        valid = valid and all(port and 0 < int(port[1]) < 2**16 for port in ports)
        valid = valid and type(index) is int and index in range(len(addresses))
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise Failure(
            f"TF_CONFIG is not valid: {first_line(ValueError(text))}; it must be "
            '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
        )
    if duplicates := sorted({a for a in addresses if addresses.count(a) > 1}):
        raise Failure(
            f"TF_CONFIG lists the worker {duplicates[0]} twice; give each worker its own address"
        )
    return addresses, index
