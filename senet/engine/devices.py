"""Select the devices of this process (`use_devices`), and describe them and what they support."""

import functools
import os
import pathlib
import re

import numpy as np

from senet.engine.compat import tf, without_chatter
from senet.engine.errors import Failure

CPU_FLAGS = pathlib.Path("/proc/cpuinfo")  # on Linux
NVIDIA_DRIVER = pathlib.Path("/proc/driver/nvidia")
_chosen = "all"


@functools.cache
def visible_gpus():
    """Return the GPUs that TensorFlow sees, a tuple of physical devices."""
    with without_chatter():
        return tuple(tf.config.list_physical_devices("GPU"))


def use_devices(devices):
    """Select the devices of this process. Return their TensorFlow names."""
    global _chosen
    gpus = [str(number) for number in range(len(visible_gpus()))]
    names = gpus if devices == "all" else devices.split(",")
    if "cpu" not in devices and not set(names) <= set(gpus):
        raise Failure(
            f"--devices={devices} names a GPU that TensorFlow does not see (it sees "
            f"{', '.join(gpus) or 'none'}); use different devices, or --devices=all"
        )
    _chosen = devices
    return [f"/{n}" if "cpu" in n else f"/gpu:{n}" for n in names] or ["/cpu:0"]


def chosen_gpus():
    """Return the GPUs in use, a tuple of physical devices; () on the CPU."""
    if _chosen == "all":
        return visible_gpus()
    numbers = [] if "cpu" in _chosen else _chosen.split(",")
    return tuple(visible_gpus()[int(number)] for number in numbers)


def _details():
    return [tf.config.experimental.get_device_details(gpu) for gpu in chosen_gpus()]


def describe_devices(strategy):
    """Return a description of the devices, str, for the startup lines."""
    count = strategy.num_replicas_in_sync
    if chosen_gpus():
        names = [gpu.get("device_name", "of unknown name") for gpu in _details()]
        different = ", ".join(dict.fromkeys(names))
        return f"{count} GPUs ({different})" if count > 1 else f"GPU {different}"
    # Count cores as TensorFlow does: `taskset` can allow fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hint = "; TF_CPP_MIN_LOG_LEVEL=0 shows why" if NVIDIA_DRIVER.exists() else ""
    no_gpu = "" if visible_gpus() else f" (TensorFlow sees no GPU{hint})"
    split = f", split into {count} devices" if count > 1 else ""
    return f"{cores} CPU core{'s' * (cores != 1)}{no_gpu}{split}"


def session_config(hyperparameters):
    """Return the `tf.ConfigProto` of a session on the chosen devices."""
    config = tf.ConfigProto(allow_soft_placement=hyperparameters.allow_soft_placement)
    config.gpu_options.allow_growth = True  # allocate on demand: processes can share a GPU
    config.device_count["CPU"] = max(1, _chosen.count("cpu"))
    if not chosen_gpus():
        config.device_count["GPU"] = 0
    if hyperparameters.xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    # A second pass of the graph optimizer takes as long and changes neither results nor speed.
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    return config


def has_bfloat16():
    """Return whether the devices have instructions for bfloat16."""
    if chosen_gpus():
        return all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in _details())  # Ampere
    flags = CPU_FLAGS.read_text() if CPU_FLAGS.exists() else ""
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None


def compute_dtype(mixed_precision):
    """Return the dtype of feature maps, tf.bfloat16 or tf.float32. Variables, batch norm's
    statistics, gates and the loss are always float32. Gradients need no scaling."""
    return tf.bfloat16 if mixed_precision and has_bfloat16() else tf.float32


def describe_precision(mixed_precision):
    """Return a description of the precision in use, str, for the startup lines."""
    if compute_dtype(mixed_precision) == tf.bfloat16:
        return "mixed precision (bfloat16)"
    return "float32" + " (no bfloat16 support)" * mixed_precision


def has_grouped_convolution():
    """Return whether the devices can compute the gradients of a grouped `tf.nn.conv2d`."""
    return bool(chosen_gpus()) or _cpu_has_grouped_convolution()


@functools.cache
def _cpu_has_grouped_convolution():
    # Without oneDNN (macOS, TF_ENABLE_ONEDNN_OPTS=0), the gradients fail, but only when they run.
    with tf.Graph().as_default(), tf.device("/cpu:0"), without_chatter():
        x = tf.ones([1, 2, 2, 4])
        filters = tf.ones([1, 1, 2, 4])
        gradients = tf.gradients(tf.nn.conv2d(x, filters, 1, "SAME"), [x, filters])
        try:
            with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as session:
                return all(np.all(np.isfinite(g)) for g in session.run(gradients))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
