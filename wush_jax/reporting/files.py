"""Files that are written whole or not at all, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path``, then renames it; a failure leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain_json(data: Any, digits: int | None = None) -> Any:
    """``data`` as JSON can hold it: NaN and infinities, which it lacks, as None.

    Keys become text, tuples lists, NumPy's scalars Python's; floats are rounded to ``digits``.
    """
    if isinstance(data, Mapping):
        return {str(name): plain_json(value, digits) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value, digits) for value in data]
    if isinstance(data, np.generic):
        return plain_json(data.item(), digits)
    if not isinstance(data, float):
        return data
    if not math.isfinite(data):
        return None
    return data if digits is None else float(f"{data:.{digits}g}")


def write_json(path: Path, data: Any, digits: int | None = None) -> None:
    """Writes `plain_json` of ``data``; an existing file is replaced as a whole or not at all."""
    text = json.dumps(plain_json(data, digits), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
