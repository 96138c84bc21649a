"""Text that every machine with Python has: the standard library's source files, in two splits.

Modules are split into calibration and evaluation by the hash of the top-level module's name, so
that no module is in both. The text depends on the Python version, and on nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from pathlib import Path
from typing import Literal

Split = Literal["calibration", "evaluation"]

_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "encodings",
    "lib-dynload",
    "site-packages",
    "dist-packages",
}


def split_of(module: str) -> Split:
    """The split a module belongs to; a package's modules all go where the package goes."""
    digest = hashlib.sha256(module.split(".")[0].encode()).digest()
    return "calibration" if digest[0] < 128 else "evaluation"


@functools.cache
def sources() -> dict[str, Path]:
    """The standard library's source files by dotted module name, in the order of the names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            found[".".join(parts)] = path
    return dict(sorted(found.items()))
