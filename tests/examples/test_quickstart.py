"""The quickstart runs as it is typed, and its figures rank the transforms as they should."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="the example model reads safetensors")
pytest.importorskip("tokenizers", reason="the example model needs tokenizers")
pytest.importorskip("matplotlib", reason="the example plots")

from examples.minilm import load

if importlib.util.find_spec(load.PACKAGE) is None:
    pytest.skip(f"needs weights: {load.INSTALL}", allow_module_level=True)


def test_quickstart_ranks_wush_before_hadamard(tmp_path):
    arguments = ["--tokens", "4096", "--formats", "mxfp4", "--transforms", "hadamard", "wush"]
    run = subprocess.run(
        [sys.executable, "-m", "examples.quantize_encoder", *arguments, "--out", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "mxfp4" in run.stdout
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")

    summary = json.loads((tmp_path / "quickstart.json").read_text())
    rows = {row["transform"]: row for row in summary["rows"]}
    assert list(rows) == ["", "hadamard", "wush"]
    assert rows["wush"]["layer_error"] < 0.8 * rows["hadamard"]["layer_error"]
    assert rows["wush"]["cosine"] > rows["hadamard"]["cosine"]
    assert len(rows["wush"]["layers"]) == 36
    # 4 bits and a scale byte for 32 of them; and 16 bits of T for each of D = 32 rows of a block
    assert rows["hadamard"]["linear_mb"] == pytest.approx(42.5 * 4.25 / 32, rel=0.01)
    assert rows[""]["linear_mb"] / rows["wush"]["linear_mb"] > 6
