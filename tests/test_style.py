import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    # By default, pyright would use the python on PATH.
    pytest.param(["pyright", "--pythonpath", sys.executable], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_the_code_passes_ruff_and_pyright(command):
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
