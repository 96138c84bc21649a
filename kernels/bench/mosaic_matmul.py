"""Checks and times the Mosaic GPU FP8 product over its configurations.

    python -m kernels.bench.mosaic_matmul [--out FILE.json] [--budget 95] [--only check,time,xla]

(from the repository's root; `wush_kernels` installed or on PYTHONPATH.) `mosaic_cases` has what is
tried, `mosaic_products` how it is checked. GPU time by CUPTI, median of 15 calls. Cases run in a
child process: one that fails is printed and skipped, one that hangs or breaks the CUDA context
costs a restart (`watched`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from kernels.bench import watched
from kernels.bench.mosaic_cases import SECTIONS, SHAPES, UNTIL
from kernels.bench.mosaic_products import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures there, as JSON")
    parser.add_argument("--budget", type=float, default=95, help="seconds for everything")
    parser.add_argument("--only", default="check,time,xla")
    parser.add_argument("--progress", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.progress is not None:
        child(o.progress, o.started, o.budget, o.only.split(","))
        return
    with tempfile.TemporaryDirectory() as folder:
        progress = pathlib.Path(folder) / "progress"
        progress.touch()
        command = [sys.executable, "-m", "kernels.bench.mosaic_matmul", "--only", o.only]
        command += ["--budget", str(o.budget), "--progress", str(progress)]
        command += ["--started", str(o.started)]
        watched.restart(command, progress, o.started, o.budget)
        lines = watched.read(progress)
    report(lines)
    if o.out is not None:
        o.out.write_text(json.dumps(lines, indent=1))


def child(progress: pathlib.Path, started: float, budget: float, only: list[str]) -> None:
    """Runs the cases of the sections ``only`` that have not begun yet."""
    print("jax", jax.__version__, jax.devices()[0].device_kind, "weights", jnp.dtype(WEIGHTS).name)
    until = {kind: budget * part for kind, part in UNTIL.items()}
    cases = (case for name in only for case in SECTIONS[name]())
    watched.run(cases, progress, started, until, show)


def show(line: dict[str, Any]) -> str:
    if "us" in line:
        return f"{line['us']:8.1f} us"
    verdict = "PASS" if line["pass"] else "FAIL"
    return f"{verdict} error {line['error']:.3g} (limit {line['limit']:.2g}), {line['note']}"


def report(lines: list[dict[str, Any]]) -> None:
    done = [line for line in lines if line["state"] == "done"]
    ended = {line["key"] for line in lines if line["state"] != "begun"}
    tested = [line for line in done if line["kind"] == "check"]
    print(f"\n{len(tested)} checks, failed: {[c['name'] for c in tested if not c['pass']]}")
    print("errors:", [line["key"] for line in lines if line["state"] == "failed"])
    print("hung or crashed:", [line["key"] for line in lines if line["key"] not in ended])
    for i, (M, N, K) in enumerate(SHAPES):
        print(f"\n-- M, N, K = {M} {N} {K}")
        rows = [x for x in done if x["kind"] == f"time {i}" or x["name"].endswith(f"factor {i}")]
        for x in sorted(rows, key=lambda x: x["us"]):
            rate = 2 * M * N * K / x["us"] / 1e6
            print(f"{x['name']:48s} {x['us']:8.1f} us {rate:6.0f} TFLOP/s")


if __name__ == "__main__":
    main()
