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


def plain_json(data: Any) -> Any:
    """``data`` as JSON can hold it: NaN and infinities, which it lacks, as None.

    Keys become text, tuples lists, NumPy's scalars Python's.
    """
    if isinstance(data, Mapping):
        return {str(name): plain_json(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value) for value in data]
    if isinstance(data, np.generic):
        return plain_json(data.item())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def write_json(path: Path, data: Any) -> None:
    """Writes `plain_json` of ``data``; an existing file is replaced as a whole or not at all."""
    text = json.dumps(plain_json(data), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
