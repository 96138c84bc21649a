"""Runs every `TestInterpreter` in a process in which Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import triton_interpreter

FILES = ("test_transform_quantize.py", "test_block_scaled.py")


@pytest.mark.skipif(triton_interpreter.ACTIVE, reason="already interpreting")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-k", "TestInterpreter"],
        env={**os.environ, **triton_interpreter.ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
