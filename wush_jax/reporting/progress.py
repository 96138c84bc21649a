"""Progress on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

_T = TypeVar("_T")


def track(items: Iterable[_T], what: str, enabled: bool | None = None) -> Iterator[_T]:
    """Iterates with a progress bar on stderr; ``enabled=None`` shows it on a terminal only."""
    console = Console(stderr=True)
    if not (console.is_terminal if enabled is None else enabled):
        yield from items
        return
    yield from _track(items, description=what, console=console, transient=True)
