"""Check output that cannot be written, and Ctrl-C during imports. Each test runs its own
process."""

import shlex
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_python
from tiny_run import command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("streams", [">/dev/full", ">&- 2>&-"])
def test_a_run_continues_when_its_output_cannot_be_written(tmp_path, streams):
    line = shlex.join([sys.executable, *command(tmp_path, "run", "--total_epochs=1")])
    result = subprocess.run(
        f"{line} {streams}", shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "run" / "logs.txt").read_text().startswith("epoch: 1/1, ")
    assert (tmp_path / "run" / "model" / "model.ckpt-10.index").exists()


DURING = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == 'tensorflow.python.framework.ops':
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
import senet.engine.compat
"""
AFTER = "import os, signal, senet.engine.compat; os.kill(os.getpid(), signal.SIGINT); input()"


@pytest.mark.parametrize("code", [DURING, AFTER], ids=["during", "after"])
def test_ctrl_c_around_the_import_of_tensorflow_ends_quietly(code):
    # A shell reports this as 130.
    assert run_python("-c", code) == (-signal.SIGINT, "", "")
