"""Several hosts that train one run (TF_CONFIG, as for any distributed TensorFlow program). Each
runs a worker; the first one is the chief."""

import functools
import os
import socket
import threading
import time

from senet.engine.compat import print_error, tf
from senet.engine.errors import Failure, HyperparameterError
from senet.engine.text import first_line
from senet.run.cluster import Cluster
from senet.run.console import say

RESTART = "restart all workers to resume from the last checkpoint"
CHECK_SECONDS = 5  # between checks of the other workers, and for each to accept a connection
GONE_SECONDS = 20  # since a worker last accepted one
NOTE_SECONDS = 30  # between notes on missing workers
START_SECONDS = 600  # for all workers to start
ROW = 4  # integers that `Hosts.gather` can exchange
EXAMPLE = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'


class Hosts(Cluster):
    """The devices of several hosts; `number` is the index of this worker in `addresses`."""

    def __init__(self, hyperparameters, signals):
        self.addresses, self.number = read_tf_config()
        self.chief = self.number == 0
        self.connected = threading.Event()
        super().__init__(hyperparameters, signals)

    def _strategy(self, names):
        if self.hyperparameters.devices != "all":
            raise HyperparameterError(
                f"--devices must be all when TF_CONFIG is set, got {self.hyperparameters.devices}; "
                f"choose a host's GPUs with CUDA_VISIBLE_DEVICES"
            )
        workers = tf.train.ClusterSpec({"worker": self.addresses})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            workers, task_type="worker", task_id=self.number, rpc_layer="grpc"
        )
        strategy = tf.distribute.experimental.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        self.config = strategy.update_config_proto(self.config)
        self.config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        say(
            f"worker {self.number} ({len(self.addresses)} workers, numbered from 0): waiting up "
            f"to {START_SECONDS // 60} minutes for the others"
        )
        try:
            self.server = tf.distribute.Server(workers, "worker", self.number, config=self.config)
        except tf.errors.OpError as error:
            raise Failure(
                f"worker {self.number} cannot listen on {self.addresses[self.number]} "
                f"({first_line(error)}); free the port, or fix TF_CONFIG if it is not this host's"
            ) from None
        self.target = self.server.target
        return strategy

    def __enter__(self):
        self.signals.waiting = True
        threading.Thread(target=self._watch, daemon=True).start()
        return super().__enter__()

    def __exit__(self, kind, error, trace):
        self.finished.set()
        super().__exit__(kind, error, trace)
        out_of_memory = isinstance(error, tf.errors.ResourceExhaustedError)  # of this worker
        if isinstance(error, tf.errors.OpError) and not out_of_memory:
            silent = ", ".join(self._silent_workers().values())
            raise Failure(f"{silent or 'a worker stopped: ' + first_line(error)}; {RESTART}")

    def _watch(self):
        """End this process if another stops or does not start: TensorFlow would wait forever."""
        started = noted = time.monotonic()
        answered = {}  # {number: time}
        while not self.finished.wait(CHECK_SECONDS):
            silent = self._silent_workers()
            now = time.monotonic()
            if self.connected.is_set():
                answered = dict.fromkeys(silent, now) | answered
            answered |= {n: now for n in range(len(self.addresses)) if n not in silent}
            gone = [n for n in silent if now - answered.get(n, now) > GONE_SECONDS]
            if gone and not self.finished.is_set():
                _end(", ".join(silent[n] for n in gone))
            if self.connected.is_set():
                continue
            starting = "a worker is still starting, or its TF_CONFIG lists different workers"
            reason = ", ".join(silent.values()) or starting
            if now - started > START_SECONDS:
                _end(f"gave up after {START_SECONDS // 60} minutes: {reason}")
            if now - noted > NOTE_SECONDS:
                noted = now
                print_error(f"still waiting after {now - started:.0f} s: {reason}")

    def _silent_workers(self):
        """Return {number: description} of the workers that do not respond."""
        silent = {}
        for number, address in enumerate(self.addresses):
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), CHECK_SECONDS).close()
            except (OSError, ValueError, OverflowError):  # of a port
                silent[number] = f"worker {number} at {address} does not respond"
        return silent

    def gather(self, *values):
        session, row, table = self._gathering
        rows = session.run(table, {row: [*values, *[0] * (ROW - len(values))]})
        self.connected.set()
        self.signals.waiting = False
        return rows[:, : len(values)]

    @functools.cached_property
    def _gathering(self):
        """A session, the placeholder for this worker's row, and the table of all rows."""
        with tf.Graph().as_default(), self.strategy.scope():
            row = tf.placeholder(tf.int64, [ROW])
            mine = tf.one_hot(self.number, len(self.addresses), dtype=tf.int64)[:, None] * row
            tables = self.strategy.run(lambda: tf.identity(mine))
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, tables, axis=None)
            session = self.session()
            self.callback(session.close)
            # Every device of a worker has added the worker's row.
            return session, row, total * len(self.addresses) // self.strategy.num_replicas_in_sync


def _end(reason):
    print_error(f"error: {reason}; {RESTART}")
    os._exit(1)


def read_tf_config():
    """Return the addresses of all workers in TF_CONFIG, the chief's first, and the index of this
    one; [] and 0 for a single host. Raises Failure if TF_CONFIG is not valid."""
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        spec = resolver.cluster_spec()
        if others := {*spec.jobs, resolver.task_type or "worker"} - {"chief", "worker"}:
            raise ValueError(f"the job {others.pop()} is not supported, only chief and worker")
        addresses = [address for job in sorted(spec.jobs) for address in spec.job_tasks(job)]
        if len(set(addresses)) < len(addresses):
            raise ValueError("two workers have the same address")
        if len(addresses) < 2:
            return [], 0
        return addresses, addresses.index(spec.task_address(resolver.task_type, resolver.task_id))
    except (ValueError, TypeError) as error:
        raise Failure(
            f"TF_CONFIG is not valid: {first_line(error)}; it must be as in {EXAMPLE}"
        ) from None
