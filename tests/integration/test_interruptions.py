"""SIGKILL at random times, and the same command again."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_five_kills():
    script = Path(__file__).parents[2] / "benchmarks" / "interruptions.py"
    done = subprocess.run([sys.executable, script, "--kills", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 kills" in done.stdout
