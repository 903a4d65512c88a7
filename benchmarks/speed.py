"""Compare the training steps of the scripts with those of the same networks in PyTorch, on
the CPU.

    python benchmarks/speed.py                    images/s of each, on random images
    python benchmarks/speed.py --steps=1          the same, with one step per turn
    python benchmarks/speed.py --networks recipe  only one network
    python benchmarks/speed.py growth             time and memory by batch and image size, ours only
    python benchmarks/speed.py input              the input path only, including augmentation

Each candidate runs in its own process. The candidates take turns of a few steps, so that other load
on the machine affects all of them, and are compared by their median time per step. The first step,
which includes building and compiling, is timed separately.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# (script, hyperparameters that differ from its defaults). SE_ResNeXt is measured on 32x32 images,
# with a batch small enough for PyTorch to process whole. "recipe" is the first command in
# README.md; our step has Muon, PyTorch's only SGD.
SETTINGS = {
    "SE_ResNeXt": ("SE_ResNeXt", {"padding": 0, "batch_size": 32, "micro_batch_size": 0}),
    "SE_Inception_v4": ("SE_Inception_v4", {}),
    "SE_Inception_resnet_v2": ("SE_Inception_resnet_v2", {}),
    "recipe": ("SE_ResNet", {}),
}
CANDIDATES = ("ours", "ours, float32", "PyTorch eager", "PyTorch compile")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "mode", nargs="?", choices=["compare", "growth", "input"], default="compare"
    )
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each candidate")
    arguments = parser.parse_args()
    if arguments.mode == "input":
        input_path()
        arguments.networks = []
    if arguments.networks:
        peak = Worker("SE_ResNeXt", "peak", {}).end()
        print(f"matrix products reach {peak['flop_per_second'] / 1e12:.2f} TFLOP/s here")
    if arguments.mode == "growth":
        for network in arguments.networks:
            print(f"\n{network}", flush=True)
            growth(*SETTINGS[network], arguments.steps)
    else:
        for network in arguments.networks:
            print(f"\n{network}", flush=True)
            compare(*SETTINGS[network], arguments.steps, arguments.turns)


def compare(script, settings, steps, turns):
    """Print a table of all candidates for a network, and the convolutions' share of our step."""
    workers = [Worker(script, candidate, settings) for candidate in CANDIDATES]
    for _ in range(turns):
        for worker in workers:
            worker.run(steps)
    ours, *others = results = [worker.end() for worker in workers]
    limit = Worker(script, "limit", settings).end()
    batch, flop = limit["batch"], limit["flop"]
    print(f"\n{script}, {ours['parameters']:,} parameters, {settings or 'defaults'}, batch {batch}")
    print(
        "|  | images/s | TFLOP/s | time relative to ours | first step | peak memory |\n"
        + "|---" * 6
        + "|"
    )
    for candidate, result in zip(CANDIDATES, results, strict=True):
        assert result["parameters"] == ours["parameters"], candidate
        print(
            f"| {candidate} | {batch / result['seconds']:.1f}"
            f" | {flop / result['seconds'] / 1e12:.2f}"
            f" | {result['seconds'] / ours['seconds']:.2f} x | {result['first']:.0f} s"
            f" | {result['peak_bytes'] / 1e9:.1f} GB |"
        )
    best = min(result["seconds"] for result in others[1:])
    print(
        f"speed-up over the faster PyTorch candidate: {best / ours['seconds']:.2f} x; "
        f"all convolutions, each timed alone in its fastest form: {limit['seconds']:.3f} s "
        f"of {ours['seconds']:.3f} s, {limit['seconds'] / ours['seconds']:.0%}",
        flush=True,
    )


def growth(script, settings, steps):
    """Print a table of speed and memory for increasing batch and image sizes."""
    smallest = 24 if "Inception" in script else 0
    print("| image | batch | images/s | peak memory |\n" + "|---" * 4 + "|")
    cases = [(smallest, batch) for batch in (16, 32, 64, 128, 256)]
    cases += [(padding, 16) for padding in (16, 32) if padding > smallest]
    for padding, batch in cases:
        sizes = {"padding": padding, "batch_size": batch, "micro_batch_size": 0}
        worker = Worker(script, "ours", settings | sizes)
        worker.run(steps)
        result, side = worker.end(), 32 + 2 * padding
        print(
            f"| {side}x{side} | {batch} | {batch / result['seconds']:.1f}"
            f" | {result['peak_bytes'] / 1e9:.1f} GB |",
            flush=True,
        )


def input_path(images=50_000, batch_size=128, epochs=5):
    """Print the images/s of the input path (order, batches, feeding, normalisation, augmentation)
    on random images, as the median over `epochs` epochs."""
    sys.path[:0] = [str(ROOT)]
    from senet.augmentation import flip, shift
    from senet.data.datasets import batches, epoch_order
    from senet.data.inputs import image_inputs
    from senet.engine.compat import tf
    from senet.training import current_step

    data = noise(images)
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = image_inputs(data)
        step = current_step()
        augmented = flip(shift(inputs.normalised, 0, step), 0, step).op
        session.run(tf.global_variables_initializer())
        seconds = []
        for epoch in range(epochs + 1):
            started = time.perf_counter()
            order = epoch_order(data.train, 0, epoch)
            for batch in batches(data.train, batch_size, order):
                session.run(augmented, {inputs.images: batch.images})
            seconds.append(time.perf_counter() - started)
    print(f"input path only: {images / statistics.median(seconds[1:]):,.0f} images/s")


class Worker:
    """A candidate in its own process, idle between its turns."""

    def __init__(self, script, candidate, settings):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "worker", json.dumps([script, candidate, settings])],
            env={
                **os.environ,
                # PyTorch's first step includes compiling, so do not use an earlier run's cache.
                "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
                "CUDA_VISIBLE_DEVICES": "-1",  # compare on the CPU
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.result = self.answer()
        self.seconds = []

    def answer(self):
        """Return the next line that the process prints, decoded from JSON."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: a candidate failed: {self.process.args[-1]}; see the error above")
        return json.loads(line)

    def run(self, steps):
        """Run and time `steps` steps."""
        print(steps, file=self.process.stdin, flush=True)
        self.seconds += self.answer()

    def end(self):
        """End the process and return its measurements; `seconds` is the median over all steps."""
        self.process.stdin.close()
        if self.seconds:
            self.result["seconds"] = statistics.median(self.seconds)
        self.result |= self.answer()
        self.process.wait()
        return self.result


# ------------------------------------------------------------------- inside a worker


def work(script_name, candidate, settings):
    """Set up a candidate. For each number on standard input, run that many steps and print their
    times in seconds."""
    sys.path[:0] = [str(ROOT)]
    script = importlib.import_module(script_name)
    settings = settings | {"mixed_precision": candidate != "ours, float32"}
    hyperparameters = script.Hyperparameters(**settings)
    if candidate == "peak":
        print(json.dumps(matrix_peak(hyperparameters)))
    elif candidate == "limit":
        print(json.dumps(convolution_limit(script, hyperparameters)))
    else:
        prepare = prepare_torch if candidate.startswith("PyTorch") else prepare_ours
        started = time.perf_counter()
        step, parameters = prepare(script, hyperparameters, candidate)
        step()
        first = time.perf_counter() - started
        step()  # the second step still allocates buffers
        print(json.dumps({"first": first, "parameters": parameters}), flush=True)
        for steps in sys.stdin:
            seconds = []
            for _ in range(int(steps)):
                started = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - started)
            print(json.dumps(seconds), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_bytes": peak * 1024}), flush=True)


def noise(count):
    """Return a Dataset of random images in ten classes."""
    import numpy as np

    from senet.data.datasets import Dataset, Split

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    split = Split(images, rng.integers(0, 10, count).astype(np.int32))
    return Dataset("noise", split, split, [str(label) for label in range(10)])


def prepare_ours(script, hyperparameters, candidate):
    """Return the script's training step, including augmentation and epoch means, and the number of
    parameters."""
    from senet.engine.compat import tf
    from senet.engine.devices import session_config

    data = noise(hyperparameters.batch_size)
    graph = script.build_graph(data, hyperparameters)
    session = tf.Session(config=session_config(hyperparameters))
    session.run(tf.global_variables_initializer())

    def step():
        session.run(graph.train_step, graph.feed(data.train))

    return step, sum(v.shape.num_elements() for v in tf.trainable_variables())


def prepare_torch(script, hyperparameters, candidate):
    """Return a training step in PyTorch (channels_last, bfloat16 autocast if the CPU supports it)
    on one prepared batch, without augmentation, and the number of parameters."""
    import torch
    import torch_networks

    from senet.engine.devices import has_bfloat16

    data = noise(hyperparameters.batch_size)
    network = torch_networks.NETWORKS[script.__name__](hyperparameters)
    network = network.to(memory_format=torch.channels_last)
    trained = [p for p in network.parameters() if p.requires_grad]
    parameters = sum(p.numel() for p in trained)
    optimizer = torch.optim.SGD(
        trained,
        lr=hyperparameters.init_learning_rate,
        momentum=hyperparameters.momentum,
        weight_decay=hyperparameters.weight_decay,
        nesterov=True,
        fused=True,
    )
    images = torch.tensor(data.train.images).permute(0, 3, 1, 2).float() / 64 - 2
    images = images.to(memory_format=torch.channels_last)
    labels = torch.tensor(data.train.labels).long()
    loss = torch.nn.CrossEntropyLoss(label_smoothing=hyperparameters.label_smoothing)
    forward = torch.compile(network) if candidate == "PyTorch compile" else network

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            logits = forward(images)
        loss(logits.float(), labels).backward()
        optimizer.step()

    return step, parameters


def matrix_peak(hyperparameters, side=4096):
    """Multiply two large matrices ten times, in the data type of the networks, and return the
    floating-point operations per second of the fastest product."""
    from senet.engine.compat import tf
    from senet.engine.devices import compute_dtype

    with tf.Graph().as_default(), tf.Session() as session:
        noise = tf.random.stateless_normal([side, side], [0, 0])
        matrix = tf.get_variable("matrix", initializer=tf.cast(noise, compute_dtype(True)))
        product = tf.matmul(matrix, matrix).op
        session.run(tf.global_variables_initializer())
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            session.run(product)
            seconds.append(time.perf_counter() - started)
    return {"flop_per_second": 2 * side**3 / min(seconds)}


def convolution_limit(script, hyperparameters):
    """Return the seconds and the floating-point operations of all convolutions of a step, including
    the gradients of their filters and of their inputs (unless no trained layer comes before). Each
    is timed alone, in the faster of TensorFlow's implementation and ours. A frozen stem is not
    included."""
    from senet import layers
    from senet.engine.compat import tf
    from senet.engine.convolution import convolution
    from senet.engine.devices import has_grouped_convolution

    calls = {}

    def record(x, weights, *arguments):
        shapes = tuple(x.shape.as_list()), tuple(weights.shape.as_list())
        key = (*shapes, x.dtype, has_gradient(x.op), *arguments)
        calls[key] = calls.get(key, 0) + 1
        return convolution(x, weights, *arguments)

    @functools.cache
    def has_gradient(op):
        if op.type == "VarHandleOp":
            return any(variable.op.name == op.name for variable in tf.trainable_variables())
        return any(has_gradient(tensor.op) for tensor in op.inputs)

    def plain(x, weights, stride, padding, groups):
        return tf.nn.conv2d(x, weights, stride, padding)

    layers.convolution = record
    batch = hyperparameters.micro_batch_size or hyperparameters.batch_size
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [batch, 32, 32, 3])
        script.__dict__[script.__name__](x, False, hyperparameters)
    seconds = flop = 0
    for (shape, weights, dtype, inputs_too, stride, padding, groups), count in calls.items():
        best = [float("inf")] * 3
        forms = [convolution]
        if groups == 1 or has_grouped_convolution():
            forms.append(plain)
        for form in forms:
            with tf.Graph().as_default():
                times = time_alone(
                    form, shape, weights, dtype, stride, padding, groups, flops := []
                )
            best = list(map(min, best, times))
        forward, input_gradient, filter_gradient = best
        seconds += count * (forward + inputs_too * input_gradient + filter_gradient)
        flop += count * (2 + inputs_too) * flops[0]
    micro_batches = hyperparameters.batch_size / batch
    seconds, flop = seconds * micro_batches, flop * micro_batches
    return {"seconds": seconds, "flop": flop, "batch": hyperparameters.batch_size}


def time_alone(form, x_shape, weights_shape, dtype, stride, padding, groups, flops):
    """Return the seconds of a convolution, its input gradient and its filter gradient, each timed
    alone: the median of 9 runs after 3 warm-up runs. Append the number of floating-point
    operations of the convolution to `flops`."""
    from senet.engine.compat import tf

    def variable(name, shape):
        noise = tf.cast(tf.random.stateless_normal(shape, [0, 0]), dtype)
        return tf.get_variable(name, initializer=noise).read_value()

    x, weights = variable("x", x_shape), variable("weights", weights_shape)
    y = form(x, weights, stride, padding, groups)
    upstream = variable("upstream", y.shape.as_list())
    height, width, channels, _ = weights_shape
    flops.append(2 * y.shape.num_elements() * height * width * channels)
    operations = [y.op, *(g.op for g in tf.gradients(y, [x, weights], upstream))]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        times = []
        for operation in operations:
            seconds = []
            for _ in range(12):
                started = time.perf_counter()
                session.run(operation)
                seconds.append(time.perf_counter() - started)
            times.append(statistics.median(seconds[3:]))
    return times


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(*json.loads(sys.argv[2]))
    else:
        main()
