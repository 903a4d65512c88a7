"""What the session runs on."""

import functools
import os
import pathlib
import re

import numpy as np

from senet.compat import tf, without_chatter

CPU_FLAGS = pathlib.Path("/proc/cpuinfo")  # on Linux


@functools.cache
def visible_gpus():
    """The GPUs that TensorFlow sees, as a tuple of physical devices."""
    with without_chatter():
        return tuple(tf.config.list_physical_devices("GPU"))


def describe_devices(strategy):
    """What training runs on, for the start-up lines."""
    count = strategy.num_replicas_in_sync
    if visible_gpus():
        names = [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in visible_gpus()
        ]
        return f"{count} GPUs, {names[0]}" if count > 1 else f"GPU {names[0]}"
    shared = f", shared out as {count} devices" if count > 1 else ""
    return f"{os.cpu_count()} CPU cores (TensorFlow sees no GPU){shared}"


def session_config(hyperparameters):
    """The `tf.ConfigProto` of a session for a script's `Hyperparameters`."""
    visible_gpus()  # looks for them now, quietly, rather than when the session starts
    hp = hyperparameters
    config = tf.ConfigProto(allow_soft_placement=hp.allow_soft_placement)
    config.gpu_options.allow_growth = True  # take what is needed, so that others can share the GPU
    if hp.xla:
        config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    return config


@functools.cache
def has_bfloat16():
    """Whether the device has instructions for bfloat16: NVIDIA GPUs from Ampere on (compute
    capability 8.0), x86 CPUs with AVX-512 BF16 or AMX."""
    if visible_gpus():
        details = map(tf.config.experimental.get_device_details, visible_gpus())
        return all(gpu.get("compute_capability", (0, 0)) >= (8, 0) for gpu in details)
    flags = CPU_FLAGS.read_text() if CPU_FLAGS.exists() else ""
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None


def compute_type(mixed_precision):
    """The type in which a network computes. Variables, the statistics of batch norm, the gates and
    the loss are float32 always: bfloat16 has float32's range, so gradients need no scaling."""
    return tf.bfloat16 if mixed_precision and has_bfloat16() else tf.float32


def describe_precision(mixed_precision):
    """What `mixed_precision` comes to here, for the start-up lines."""
    if compute_type(mixed_precision) == tf.bfloat16:
        return "mixed precision (bfloat16)"
    return "float32" + " (it has no bfloat16)" * mixed_precision


@functools.cache
def has_grouped_convolution():
    """Whether `tf.nn.conv2d` trains with grouped filters here.

    GPUs do it with cuDNN and x86 CPUs with oneDNN. Without oneDNN (ARM, macOS,
    TF_ENABLE_ONEDNN_OPTS=0) TensorFlow has no gradient of it on the CPU, and says so only when
    the gradient is run: so run one.
    """
    if visible_gpus():
        return True
    with tf.Graph().as_default(), without_chatter(re.compile("")):
        x, filters = tf.ones([1, 2, 2, 4]), tf.ones([1, 1, 2, 4])
        gradients = tf.gradients(tf.nn.conv2d(x, filters, 1, "SAME"), [x, filters])
        try:
            with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as session:
                return all(np.all(np.isfinite(g)) for g in session.run(gradients))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
