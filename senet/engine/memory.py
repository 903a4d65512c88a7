"""Compare the available memory with a lower bound on the memory that a network needs."""

import contextlib
import os
import pathlib
import re

from senet.engine.compat import tf
from senet.engine.devices import chosen_gpus
from senet.engine.errors import HyperparameterError
from senet.engine.micro_batches import micro_batches_per_replica

PROC = pathlib.Path("/proc")  # on Linux
CGROUPS = pathlib.Path("/sys/fs/cgroup")


def available_memory():
    """Return how many more bytes this process can allocate before the machine swaps or its control
    group (such as a container) reaches its limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    available = [page * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        text = (PROC / "meminfo").read_text()
        available += [1024 * int(size) for size in re.findall("MemAvailable: *([0-9]+)", text)]
        _, resident, files, *_ = map(int, (PROC / "self/statm").read_text().split())
        # The pages of mapped files (cached images) are freed when memory is needed.
        available += [limit - page * (resident - files) for limit in _cgroup_limits()]
    return max(0, min(available))


def _cgroup_limits():
    """Yield the limits, in bytes, of this process's control group and of its parents."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2 and 1
            folder = CGROUPS / controllers / path.lstrip("/")
            for group in folder, *folder.parents:
                for name in "memory.max", "memory.limit_in_bytes":
                    # Absent in the root; "max" means no limit. Inside a container, the container's
                    # own group appears as the root.
                    with contextlib.suppress(OSError, ValueError):
                        yield int((group / name).read_text())


def check_training_memory(images, hyperparameters):
    """Raise HyperparameterError if training on that many `images` needs more memory than is
    available. Call it when the default graph has the network, but not yet the gradients."""
    hp = hyperparameters
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    batch = min(hp.batch_size, images)
    count = micro_batches_per_replica(batch, replicas, hp.micro_batch_size)
    devices = len(strategy.extended.worker_devices) if replicas > 1 else 1  # of this host
    images_at_once = devices * -(-batch // (replicas * count))  # in the largest micro-batches
    # A gradient and a momentum for each trained value.
    weights = devices * (_bytes(tf.global_variables()) + 2 * _bytes(tf.trainable_variables()))
    # The backward pass needs the input of each batch norm and the output of its activation.
    operations = tf.get_default_graph().get_operations()
    norms = [op.outputs[0] for op in operations if op.type.startswith("FusedBatchNorm")]
    maps = 2 * images_at_once * sum(x.shape[1:].num_elements() * x.dtype.size for x in norms)
    available = available_memory()
    # TensorFlow reports an error when the memory of a GPU is exhausted.
    if chosen_gpus() or weights + maps <= available:
        return
    sizes = [f"{size / 1e9:,.3g} GB" for size in (weights + maps, weights, maps, available)]
    raise HyperparameterError(
        f"training needs at least {sizes[0]} of memory ({sizes[1]} for variables, {sizes[2]} for "
        f"the feature maps of {images_at_once:,} image{'s' * (images_at_once != 1)}), but "
        f"{sizes[3]} is available; use a smaller network, smaller images or a smaller "
        f"--micro_batch_size (0: whole batch)"
    )


def _bytes(variables):
    return sum(v.shape.num_elements() * v.dtype.base_dtype.size for v in variables)
