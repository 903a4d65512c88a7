import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

# The tests use only localhost, and expect no GPU.
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return the number of worker processes: four for the whole suite, because many tests mostly
    wait for other processes; none if tests are named on the command line, so that they start
    immediately and can be debugged."""
    return 0 if config.args_source is config.ArgsSource.ARGS else 4


# The files that take longest; starting with them keeps all worker processes busy until the end.
LONGEST = [
    "test_cluster.py",
    "test_networks.py",
    "test_run.py",
    "test_run_files.py",
    "test_commands.py",
    "test_training.py",
    "test_examples.py",
    "test_readme.py",
    "test_style.py",
]


def pytest_collection_modifyitems(items):
    """Move the tests of the LONGEST files to the front."""
    first = dict(zip(LONGEST, range(-len(LONGEST), 0), strict=True))
    items.sort(key=lambda item: first.get(item.path.name, 0))


# TensorFlow is imported inside the fixtures, since the process that distributes the tests does not
# need it.


@pytest.fixture
def graph():
    """Provide a new default graph."""
    from senet.engine.compat import tf

    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        yield graph


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@contextlib.contextmanager
def full_disk(size):
    """Simulate a full disk: in this process, no file can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def load_values(session, values):
    """Set variables to `values`, {variable: array}. Loading them one by one would take longer,
    because TensorFlow optimises the graph for each call."""
    session.run(
        [variable.initializer for variable in values],
        {variable.initializer.inputs[1]: value for variable, value in values.items()},
    )


def flip_a_bit(path):
    """Corrupt the file `path` by inverting one bit in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def restore_default_signals():
    """Restore the default signal handlers. Under `nohup python -m pytest &`, a child process would
    inherit ignored signals."""
    for number in signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)


def start_python(*arguments, cwd=ROOT, **environment):
    """Start `python arguments...` in the folder `cwd`, with pipes for its standard output
    and standard error."""
    # senet.engine.compat set this variable in this process; the new process must set it itself.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_default_signals,
    )


def run_python(*arguments, cwd=ROOT, **environment):
    """Run `python arguments...`; return (exit status, standard output, standard error)."""
    process = start_python(*arguments, cwd=cwd, **environment)
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture
def call(capsys):
    """Return a function that runs a command line of SE_ResNet.py in this process and returns (exit
    status, standard output, standard error)."""
    from SE_ResNet import main

    def call(*argv):
        status = main([str(argument) for argument in argv])
        return status, *capsys.readouterr()

    return call


def assert_one_line_error(result, status, start):
    """Check what `call` returned: the exit status, no output, and an error of one line."""
    assert result[:2] == (status, "")
    assert result[2].startswith(f"error: {start}")
    assert result[2].count("\n") == 1


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the folder of a finished run of two epochs. Its network has three stages with one SE
    block each."""
    from tiny_run import arguments

    from SE_ResNet import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(arguments(folder, "run", "--total_epochs=2")) == 0
    return folder / "run"
