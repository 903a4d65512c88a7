"""The devices of a run (tf.distribute). `senet.run.hosts` adds those of other hosts."""

import contextlib
import os
import threading
import zlib

import numpy as np

from senet.engine.compat import tf
from senet.engine.devices import session_config, use_devices
from senet.engine.errors import Failure, HyperparameterError


class Cluster(contextlib.ExitStack):
    """The devices of a run; use it in a `with` statement around the graph. If TF_CONFIG lists
    several hosts, `Cluster(...)` is a `senet.run.hosts.Hosts`.

    `strategy` is the tf.distribute.Strategy; `chief` is whether this process writes the run's
    files. Raises Failure if a GPU does not exist, and HyperparameterError if the batch size is not
    a multiple of the number of devices."""

    chief = True
    target = ""  # of the session
    addresses = ("",)  # of the hosts

    def __new__(cls, *_):
        if os.environ.get("TF_CONFIG"):
            from senet.run import hosts  # which imports this module

            if len(hosts.read_tf_config()[0]) > 1:
                return object.__new__(hosts.Hosts)
        return object.__new__(cls)

    def __init__(self, hyperparameters, signals):
        super().__init__()
        self.finished = threading.Event()
        self.hyperparameters = hyperparameters
        self.signals = signals
        names = use_devices(hyperparameters.devices)
        self.config = session_config(hyperparameters)
        self.strategy = self._strategy(names)
        replicas = self.strategy.num_replicas_in_sync
        if hyperparameters.batch_size % replicas:
            raise HyperparameterError(
                f"--batch_size must be a multiple of {replicas}, the number of devices, "
                f"got {hyperparameters.batch_size}"
            )

    def _strategy(self, names):
        if names in (["/gpu:0"], ["/cpu:0"]):
            return tf.distribute.get_strategy()  # the default: TensorFlow chooses the device
        if len(names) == 1:
            return tf.distribute.OneDeviceStrategy(names[0])
        return tf.distribute.MirroredStrategy(names)

    def __enter__(self):
        self.enter_context(self.strategy.scope())
        return self

    def session(self):
        """Return a `tf.Session` on the devices of all hosts."""
        return tf.Session(self.target, config=self.config)

    def gather(self, *values):
        """Wait for all hosts to call this; return the integers of each, [hosts, values]."""
        return np.array([values])

    def stop(self, flag):
        """Return whether `flag` is true on any host. If so, the others may now end."""
        if stop := bool(self.gather(bool(flag)).any()):
            self.finished.set()
        return stop

    def from_chief(self, *values):
        """Return the chief's integers `values` on every host."""
        return self.gather(*values)[0].tolist()

    def check_same(self, **strings):
        """Raise Failure with the names of the `strings` that differ from the chief's."""
        rows = self.gather(*[zlib.crc32(string.encode()) for string in strings.values()])
        for number, same in enumerate(rows == rows[0]):
            different = [name for name, equal in zip(strings, same, strict=True) if not equal]
            if different:
                listed = " and ".join(different).replace("_", " ")
                raise Failure(
                    f"worker {number} at {self.addresses[number]} differs from the chief in its "
                    f"{listed}; use the same {listed} on all workers"
                )

    def wait_for_all(self):
        """Wait until every host has called this; after that, any may end."""
        self.gather()
        self.finished.set()
