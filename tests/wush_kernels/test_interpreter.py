"""Runs every `TestInterpreter` in a process in which Triton interprets its kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import triton_interpreter
from tests.support.transform_quantize_base import TransformQuantize

_OUTCOME = re.compile(r"(\w+)\.py::TestInterpreter::(\w+)(?:\[.*\])? (PASSED|SKIPPED)")


def comparing() -> dict[str, set[str]]:
    """File -> its tests that compare codes or values, without what the interpreter cannot do."""
    rotations = {name for name in dir(TransformQuantize) if name.startswith("test_")}
    products = {"test_product", "test_nan_stays_in_its_row"}
    return {
        "test_transform_quantize": rotations - {"test_no_format_rounds_to_bfloat16_first"},
        "test_block_scaled": products if triton_interpreter.has_dot_scaled() else set(),
    }


@pytest.mark.skipif(triton_interpreter.ACTIVE, reason="already interpreting")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    expected = comparing()
    files = [str(Path(__file__).with_name(f"{name}.py")) for name in expected]
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-k", "TestInterpreter"],
        env={**os.environ, **triton_interpreter.ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed: dict[str, set[str]] = {name: set() for name in expected}
    for file, test, outcome in _OUTCOME.findall(done.stdout):
        passed[file] |= {test} if outcome == "PASSED" else set()
    assert passed == expected
