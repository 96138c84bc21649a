"""What tables of measured figures share: a figure with its error, text from a table, JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wush_jax.reporting.files import write_atomically

_MOST_DECIMALS = 7


def plus_minus(value: float, error: float | None = None, digits: int = 4) -> str:
    """``value`` to two digits of its error, "12.34 ± 0.056"; to ``digits`` digits without one."""
    if not math.isfinite(value):
        return str(value)
    if error is None or not math.isfinite(error):
        return f"{value:.{digits}g}"
    if error <= 1e-12 * abs(value):  # zero but for rounding
        return f"{value:.{digits}g} ± 0"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), _MOST_DECIMALS)
    if float(f"{error:.{decimals}f}") == 0:  # smaller than what is shown
        return f"{value:.{digits}g} ± {error:.1g}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def as_text(table: Table, width: int = 160) -> str:
    """The table as plain text."""
    console = Console(width=width, record=False, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def plain_json(data: Any) -> Any:
    """``data`` with NaN and infinities as None: JSON has neither."""
    if isinstance(data, dict):
        return {str(name): plain_json(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_json(value) for value in data]
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    return data


def write_json(path: Path, data: Any) -> None:
    """Writes JSON; an existing file is replaced as a whole or not at all."""
    text = json.dumps(data, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))
