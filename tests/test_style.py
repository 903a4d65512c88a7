import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "command",
    [
        "ruff check .",
        "ruff format --check .",
        # By default, pyright would use the python on PATH.
        pytest.param(f"pyright --pythonpath={sys.executable}", marks=pytest.mark.slow),
    ],
)
def test_the_code_passes_ruff_and_pyright(command):
    line = [sys.executable, "-m", *command.split()]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
