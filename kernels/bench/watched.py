"""Cases that may fail, hang or break the CUDA context: a child runs them, its parent watches.

The child writes a line of JSON to a file before and after each case. A case that fails is printed
and skipped; a child that dies, or is silent for too long, is started again and goes on behind the
case that it was at.
"""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PATIENCE = 45  # seconds without a word from the child
RESTARTS = 4


class Case(NamedTuple):
    """kind: what it may take of the budget goes by it; run: the record to keep."""

    kind: str
    name: str
    run: Callable[[], dict[str, Any]]

    @property
    def key(self) -> str:
        return f"{self.kind} | {self.name}"


def read(progress: Path) -> list[dict[str, Any]]:
    """The lines that children wrote: "key", "state" ("begun", "done", "failed"), and the record."""
    return [json.loads(line) for line in progress.read_text().splitlines()]


def run(
    cases: Iterable[Case],
    progress: Path,
    started: float,
    until: dict[str, float],
    show: Callable[[dict[str, Any]], str],
) -> None:
    """In the child: runs what ``progress`` does not name yet, and prints a line for each case.

    Args:
      started: `time.time` of the parent's start.
      until: seconds from then on after which no case of a kind begins.
      show: a record as text.
    """
    begun = {line["key"] for line in read(progress)}

    def note(**line: Any) -> None:
        with progress.open("a") as f:
            f.write(json.dumps(line) + "\n")

    for case in cases:
        if case.key in begun or time.time() - started > until[case.kind]:
            continue
        note(key=case.key, state="begun")
        try:
            line = case.run()
            note(key=case.key, state="done", kind=case.kind, name=case.name, **line)
            text = show(line)
        except Exception as error:
            trace = traceback.format_exc().splitlines()
            note(key=case.key, state="failed", error=repr(error)[:500], trace=trace)
            text = "ERROR " + repr(error)[:300] + "\n    " + "\n    ".join(trace[-15:])
        print(f"[{time.time() - started:5.1f}] {case.key:64s} {text}", flush=True)
        jax.block_until_ready(jnp.ones(8) + 1)  # raises, and ends this process, if CUDA is broken


def watch(command: list[str], progress: Path, deadline: float) -> int:
    """Runs command until it ends, is silent for too long, or the time is over; its exit status."""
    process = subprocess.Popen(command)
    last = time.time()
    while process.poll() is None:
        time.sleep(0.2)
        last = max(last, progress.stat().st_mtime)
        if time.time() - last > PATIENCE or time.time() > deadline:
            print("no progress, or out of time: ending the child", flush=True)
            process.kill()
            break
    return process.wait()


def restart(command: list[str], progress: Path, started: float, budget: float) -> None:
    """In the parent: the child, again and again until it ends well or the budget is spent."""
    for _ in range(RESTARTS + 1):
        if watch(command, progress, started + budget + 15) == 0:
            break
        if time.time() - started > budget * 0.9:
            break
