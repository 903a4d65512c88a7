import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config):
    """Return the number of worker processes: three for the whole suite, since many tests wait, and
    none for tests named on the command line, which then start at once and can be debugged."""
    return 0 if config.args_source is config.ArgsSource.ARGS else 3


# The files that take longest; starting with them keeps all worker processes busy until the end.
LONGEST = ["test_cluster.py", "test_faults.py", "test_run.py", "test_scripts.py", "test_style.py"]


def pytest_collection_modifyitems(items):
    """Move the tests of the LONGEST files to the front."""
    first = dict(zip(LONGEST, range(-len(LONGEST), 0), strict=True))
    items.sort(key=lambda item: first.get(item.path.name, 0))


# TensorFlow is imported in the fixtures: the process that distributes the tests does not need it.


@pytest.fixture
def graph():
    """Provide a new default graph."""
    from senet.compat import tf

    with tf.Graph().as_default() as graph:
        tf.set_random_seed(0)
        yield graph


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def default_signals():
    """Restore the signals that `nohup python -m pytest &` ignores: runs would inherit that."""
    for number in signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)


def start_python(*arguments, cwd=ROOT, **environment):
    """Start `python arguments...` in the folder `cwd`, with pipes for its output and errors."""
    # senet.compat has set this variable here; the new process sets it itself.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def run_python(*arguments, cwd=ROOT, **environment):
    """Return (exit status, standard output, standard error) of `python arguments...`."""
    process = start_python(*arguments, cwd=cwd, **environment)
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the folder of a run of two epochs, with an SE block in each of three stages."""
    from tiny_run import arguments

    from SE_ResNeXt import main

    folder = tmp_path_factory.mktemp("trained")
    assert main(arguments(folder, "run", "--total_epochs=2")) == 0
    return folder / "run"
