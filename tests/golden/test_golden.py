"""Every verb leaves what it left when the golden digests were made."""

import subprocess
import sys
from pathlib import Path

import pytest

REMAKE = Path(__file__).with_name("remake.py")


@pytest.mark.golden
def test_nothing_has_changed():
    done = subprocess.run([sys.executable, REMAKE, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
