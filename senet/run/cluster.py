"""The devices, and the hosts, that share out a run (tf.distribute).

One host: all its GPUs, or the devices named. Several hosts: TF_CONFIG in the environment of each
names them all, as for every TensorFlow program; the first is the chief.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import zlib

import numpy as np

from senet.compat import tf
from senet.devices import session_config, visible_gpus
from senet.errors import Failure, HyperparameterError, first_line

GO_ON = "start all workers again to go on from the last checkpoint"
WATCH_SECONDS = 5


class Cluster:
    """What a run computes on; use it in a `with` statement around the graph.

    `strategy` is the tf.distribute.Strategy, `number` this worker's among `addresses`, those of all
    hosts (one, and empty, without TF_CONFIG). Raises Failure or HyperparameterError if the devices
    are not there or the batch does not divide among them."""

    def __init__(self, hyperparameters):
        self.hyperparameters = hyperparameters
        self.addresses, self.number = _hosts()
        self.chief = self.number == 0
        self.gathering = {}
        self.finished = threading.Event()
        self.watching = threading.Thread(target=self._watch, daemon=True)
        self.config = session_config(hyperparameters)
        if len(self.addresses) > 1:
            self.strategy = self._of_hosts()
        else:
            self.strategy = self._of_devices(device_names(hyperparameters.devices))
        replicas = self.strategy.num_replicas_in_sync
        if hyperparameters.batch_size % replicas:
            raise HyperparameterError(
                f"batch_size={hyperparameters.batch_size}: does not divide among {replicas} "
                f"devices; batch_size takes a multiple of {replicas}"
            )

    def _of_devices(self, names):
        cpus = [name for name in names if "cpu" in name]
        self.config.device_count["CPU"] = max(1, len(cpus))
        self.target = ""
        if names == device_names("all")[:1]:
            return tf.distribute.get_strategy()  # what TensorFlow takes by itself
        if len(names) == 1:
            return tf.distribute.OneDeviceStrategy(names[0])
        return tf.distribute.MirroredStrategy(names)

    def _of_hosts(self):
        if self.hyperparameters.devices != "all":
            raise HyperparameterError(
                f"devices={self.hyperparameters.devices}: with TF_CONFIG every host uses all its "
                f"GPUs; choose them with CUDA_VISIBLE_DEVICES"
            )
        strategy = tf.distribute.experimental.MultiWorkerMirroredStrategy()
        self.config = strategy.update_config_proto(self.config)
        self.config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        print(f"worker {self.number} of {len(self.addresses)}: waiting for the others", flush=True)
        try:
            self.server = tf.distribute.Server(
                {"worker": self.addresses}, "worker", self.number, config=self.config
            )
        except tf.errors.OpError as error:
            raise Failure(
                f"worker {self.number} cannot listen at {self.addresses[self.number]}: "
                f"{first_line(error)}"
            ) from None
        self.target = self.server.target
        return strategy

    def __enter__(self):
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.strategy.scope())
        return self

    def __exit__(self, kind, error, _):
        self.finished.set()
        self._open.close()
        if len(self.addresses) > 1 and isinstance(error, tf.errors.OpError):
            raise Failure(
                f"{self._silent_workers() or 'a worker stopped: ' + first_line(error)}; {GO_ON}"
            ) from None

    def _watch(self):
        """End this process when another worker is gone. A step fails by itself then; what would
        wait forever is the set-up of one that the other never joins."""
        silent_before = False
        while not self.finished.wait(WATCH_SECONDS):
            silent = self._silent_workers()
            if silent and silent_before and not self.finished.is_set():
                print(f"error: {silent}; {GO_ON}", file=sys.stderr, flush=True)
                os._exit(1)
            silent_before = bool(silent)

    def _silent_workers(self):
        """Who does not listen any more, in words."""
        silent = []
        for number, address in enumerate(self.addresses):
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError:
                silent.append(f"worker {number} at {address} does not answer")
        return ", ".join(silent)

    def session(self):
        """A `tf.Session` on the devices of all hosts."""
        return tf.Session(self.target, config=self.config)

    def gather(self, values):
        """The integers `values` of every worker, int64 [workers, values]; every worker has to call
        it, and waits here for the others."""
        if len(self.addresses) < 2:
            return np.array([values])
        if len(values) not in self.gathering:
            self.gathering[len(values)] = self._gathering(len(values))
        session, row, table = self.gathering[len(values)]
        result = session.run(table, {row: values})
        if not self.watching.is_alive():  # now that all are here
            self.watching.start()
        return result

    def _gathering(self, count):
        """A session, the placeholder for this worker's row, and the table of all rows."""
        with tf.Graph().as_default(), self.strategy.scope():
            row = tf.placeholder(tf.int64, [count])
            mine = tf.one_hot(self.number, len(self.addresses), dtype=tf.int64)[:, None] * row
            tables = self.strategy.run(lambda: tf.identity(mine))
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, tables, axis=None)
            # Each of a worker's devices has said it.
            devices = self.strategy.num_replicas_in_sync // len(self.addresses)
            session = self.session()
            self._open.callback(session.close)
            return session, row, total // devices

    def wait_for_all(self):
        """Return when every worker has come here; from then on each may end when it likes."""
        self.gather([0])
        self.finished.set()

    def from_chief(self, *values):
        """The chief's integers `values`, on every worker."""
        return self.gather(values)[0].tolist()

    def any(self, flag):
        """Whether `flag` is true on any worker."""
        return bool(self.gather([bool(flag)]).any())

    def check_same(self, **texts):
        """Raise Failure unless every worker has the chief's `texts`, named as people know them."""
        rows = self.gather([zlib.crc32(text.encode()) for text in texts.values()])
        names = [name.replace("_", " ") for name in texts]
        for number, row in enumerate(rows):
            others = [name for name, same in zip(names, row == rows[0], strict=True) if not same]
            if others:
                raise Failure(
                    f"worker {number} at {self.addresses[number]} has other {', '.join(others)} "
                    f"than the chief: give all workers the same"
                )


def _hosts():
    """The addresses of all workers in TF_CONFIG, [] without it, and this one's number of them."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return [], 0
    try:
        config = json.loads(text)
        addresses, task = config["cluster"]["worker"], config["task"]
        right = set(config["cluster"]) == {"worker"} and task["type"] == "worker"
        right = right and all(re.fullmatch(r"\S+:\d+", address) for address in addresses)
        if right and task["index"] in range(len(addresses)):
            return addresses, task["index"]
    except (ValueError, KeyError, TypeError):
        pass
    raise Failure(
        f"TF_CONFIG is not understood: {text}; it takes "
        """{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}"""
    )


def device_names(devices):
    """The TensorFlow names of the hyperparameter `devices`."""
    if devices == "all":
        return [f"/gpu:{number}" for number in range(len(visible_gpus()))] or ["/cpu:0"]
    names = [f"/{name}" if ":" in name else f"/gpu:{name}" for name in devices.split(",")]
    missing = [name for name in names if "gpu" in name and int(name[5:]) >= len(visible_gpus())]
    if missing:
        raise Failure(
            f"devices={devices}: TensorFlow sees {len(visible_gpus())} GPUs here, numbered from 0"
        )
    return names
