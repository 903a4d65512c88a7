"""The devices of a run (tf.distribute). `senet.run.hosts` adds those of other hosts."""

import contextlib
import os

from senet.engine.compat import tf
from senet.engine.devices import session_config, use_devices
from senet.engine.errors import HyperparameterError


class Cluster(contextlib.ExitStack):
    """The devices of a run; use it in a `with` statement around the graph. If TF_CONFIG lists
    several hosts, `Cluster(...)` is a `senet.run.hosts.Hosts`.

    `strategy` is the tf.distribute.Strategy; `chief` is whether this process writes the run's
    files. Raises Failure if a GPU does not exist, and HyperparameterError if the batch size is not
    a multiple of the number of devices."""

    chief = True
    target = ""  # of the session

    def __new__(cls, *_):
        if os.environ.get("TF_CONFIG"):
            from senet.run import hosts  # which imports this module

            if len(hosts.read_tf_config()[0]) > 1:
                return object.__new__(hosts.Hosts)
        return object.__new__(cls)

    def __init__(self, hyperparameters, signals):
        super().__init__()
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

    def stop(self, flag):
        """Return whether `flag` is true on any host. If so, the others may now end."""
        return bool(flag)

    def from_chief(self, *values):
        """Return the chief's integers `values` on every host."""
        return values

    def check_same(self, **strings):
        """Raise Failure with the names of the `strings` that differ from the chief's."""

    def check_same_precision(self):
        """Raise Failure with the addresses of hosts without bfloat16 if others compute in it."""

    def wait_for_all(self):
        """Wait until every host has called this; after that, any may end."""
