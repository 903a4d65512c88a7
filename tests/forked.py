"""Run SE_ResNeXt.py in processes forked from one that has imported it: importing TensorFlow takes
longer than a tiny training."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import unittest.mock

from conftest import ROOT, default_signals

import SE_ResNeXt
from senet import compat

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["SE_ResNeXt"])
# As senet.compat sets it for a worker. TensorFlow reads it only once, so errors of its C++ code are
# hidden on a single host too; test_scripts.py checks the output of processes of their own.
LOG_LEVEL = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def _run(arguments, prepare, cwd, environment, output, errors):
    """Do in the new process what `python SE_ResNeXt.py arguments...` does, after `prepare`."""
    default_signals()
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
    sys.exit(SE_ResNeXt.main(arguments))


class ForkedScript:
    """A process that runs the script, with attributes and methods of `subprocess.Popen`."""

    def __init__(self, arguments, prepare, cwd, environment):
        pipes = [processes.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes)
        writers = [writer for _, writer in pipes]
        self._process = processes.Process(
            target=_run, args=(arguments, prepare, cwd, environment, *writers), daemon=True
        )
        with unittest.mock.patch.dict(os.environ, LOG_LEVEL):
            self._process.start()  # the first one starts the fork server
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
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Wait for the process to end; return what is left of (standard output, standard error).
        Kill it and raise TimeoutExpired after `timeout` seconds."""
        with concurrent.futures.ThreadPoolExecutor() as readers:
            contents = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # the readers wait for the end of its output
                raise
        self.stdout.close()
        self.stderr.close()
        return tuple(content.result() for content in contents)


def start_script(script, *arguments, prepare=(), cwd=ROOT, **environment):
    """Start `python SE_ResNeXt.py arguments...` in the folder `cwd`, after the call
    `prepare = (function, *values)` if there is one."""
    assert script == "SE_ResNeXt.py"
    return ForkedScript(list(map(str, arguments)), prepare, cwd, environment)


def run_script(*command, **options):
    """Return (exit status, standard output, standard error) of `start_script`."""
    process = start_script(*command, **options)
    output, errors = process.communicate()
    return process.returncode, output, errors
