"""What tables of measured figures share: a figure with its error, text from a table."""

from __future__ import annotations

import math

from rich.console import Console, RenderableType
from rich.text import Text

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


def as_text(*parts: RenderableType, width: int = 160) -> str:
    """Tables, and lines that are shown as they are, as plain text."""
    console = Console(width=width, record=False, no_color=True)
    with console.capture() as capture:
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part, highlight=False)
    return capture.get()
