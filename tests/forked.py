"""Run SE_ResNet.py in processes forked from one that has already imported it, because importing
TensorFlow takes longer than a tiny training run."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import subprocess
import sys
import unittest.mock

from conftest import ROOT, restore_default_signals

import SE_ResNet
from senet.engine import compat

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["SE_ResNet"])
# The value that senet.engine.compat sets for a worker. TensorFlow reads it only once, so errors of
# its C++ code are hidden in runs on a single host too. test_scripts.py checks the output of
# separate processes.
LOG_LEVEL = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def _run(arguments, prepare, cwd, environment, output, errors):
    """Call `prepare` in the new process, then run the script as `python SE_ResNet.py arguments...`
    would."""
    restore_default_signals()
    os.chdir(cwd)
    os.environ.update(environment)
    for pipe, descriptors in (output, [1]), (errors, [2, compat.STANDARD_ERROR]):
        for descriptor in descriptors:
            os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    if prepare:
        function, *values = prepare
        function(*values)
    sys.exit(SE_ResNet.main(arguments))


class ForkedScript:
    """A process that runs the script, with the attributes and methods of `subprocess.Popen` that
    the tests use."""

    def __init__(self, arguments, prepare, cwd, environment):
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes)
        writers = [writer for _, writer in pipes]
        self._process = context.Process(
            target=_run, args=(arguments, prepare, cwd, environment, *writers), daemon=True
        )
        with unittest.mock.patch.dict(os.environ, LOG_LEVEL):
            self._process.start()  # the first process also starts the fork server
        self.pid = self._process.pid
        for pipe in pipes:
            for connection in pipe:
                connection.close()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    def send_signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Wait for the process to end; return the rest of (standard output, standard error). Kill
        it and raise TimeoutExpired after `timeout` seconds."""
        with concurrent.futures.ThreadPoolExecutor() as readers:
            contents = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # so that the readers reach the end of its output
                raise
        self.stdout.close()
        self.stderr.close()
        return tuple(content.result() for content in contents)


def start_script(script, *arguments, prepare=(), cwd=ROOT, **environment):
    """Start `python SE_ResNet.py arguments...` in the folder `cwd`. If
    `prepare = (function, *values)` is given, the new process makes this call first."""
    assert script == "SE_ResNet.py"
    return ForkedScript(list(map(str, arguments)), prepare, cwd, environment)


def run_script(*command, **options):
    """Call `start_script` and wait; return (exit status, standard output, standard error)."""
    process = start_script(*command, **options)
    output, errors = process.communicate()
    return process.returncode, output, errors
