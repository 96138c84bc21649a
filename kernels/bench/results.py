"""The file of figures: what ran on what, and every row as soon as it is measured.

{"runs": [{"bench", "date", "device", "timer", "versions", "ceilings", ...}],
 "rows": [{"bench", "run", ...}]}

One file may gather several runs: a row names its run, and
all figures that are compared in a row were measured in that run.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax

from kernels.bench import timing
from wush_jax.reporting.files import write_json

_PACKAGES = ("wush-jax", "jax", "jaxlib", "jax-triton", "triton", "flax", "qwix")


def versions() -> dict[str, str]:
    """Version of each package that takes part, "absent" if it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


class Results:
    """Rows of one benchmark, written to a JSON file after each."""

    def __init__(self, bench: str, path: Path | None, *, fresh: bool = False, **run: Any):
        """Begins a run.

        Args:
          bench: the benchmark's name, in every row.
          path: the file, or None to write nothing. What is there already is kept.
          fresh: forget this benchmark's rows in the file.
          run: more to record of the run.
        """
        self.bench, self.path = bench, path
        self.data: dict[str, list[dict[str, Any]]] = {"runs": [], "rows": []}
        if path is not None and path.exists():
            self.data = json.loads(path.read_text())
        if fresh:
            self.data["rows"] = [row for row in self.data["rows"] if row["bench"] != bench]
        self.run = {
            "bench": bench,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].client.platform_version.splitlines()[0],
            "timer": timing.timer(),
            "versions": versions(),
            **run,
        }
        self._index = len(self.data["runs"])
        self.data["runs"].append(self.run)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """This benchmark's rows, those of earlier runs in the same file included."""
        return [row for row in self.data["rows"] if row["bench"] == self.bench]

    def find(self, *, this_run: bool = False, **key: Any) -> dict[str, Any] | None:
        """The newest row with these values, or None."""
        for row in reversed(self.rows):
            if this_run and row["run"] != self._index:
                continue
            if all(row.get(k) == v for k, v in key.items()):
                return row
        return None

    def add(self, key: dict[str, Any], **figures: Any) -> dict[str, Any]:
        """Appends a row, in place of an earlier one with the same key, and writes the file."""
        old = self.find(**key)
        row = {"bench": self.bench, "run": self._index, **key, **figures}
        self.data["rows"] = [r for r in self.data["rows"] if r is not old] + [row]
        self.write()
        return row

    def write(self) -> None:
        """Writes the file; numbers that are not finite become null."""
        if self.path is not None:
            write_json(self.path, self.data, digits=6)
