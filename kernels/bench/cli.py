"""Command-line options that the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernels.bench import ceilings, data


def parser(doc: str | None, budget: float) -> argparse.ArgumentParser:
    """A parser that prints the module's docstring as help, with --out, --budget, --cold."""
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, help="JSON file; may hold other benchmarks too")
    p.add_argument("--budget", type=float, default=budget, help="seconds for all rows")
    cold = "MB that copies of an argument exceed together, so that its reads miss the cache"
    p.add_argument("--cold", type=float, default=data.COLD_BYTES / 1e6, help=cold)
    return p


def add_ceilings(p: argparse.ArgumentParser) -> None:
    p.add_argument("--ceilings", choices=tuple(ceilings.SIZES), default="full")


def add_formats(p: argparse.ArgumentParser) -> None:
    p.add_argument("--format", default="mxfp4", help="of the weights")
    p.add_argument("--act-format", type=_format, default="mxfp4", help="none: weight-only")


def words(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"]."""
    return [part for part in text.split(",") if part]


def numbers(text: str) -> list[int]:
    """ "1,2" -> [1, 2]."""
    return [int(part) for part in words(text)]


def sizes(text: str) -> list[tuple[int, ...]]:
    """ "4096x14336,8x64" -> [(4096, 14336), (8, 64)]."""
    return [tuple(int(n) for n in part.split("x")) for part in words(text)]


def _format(text: str) -> str | None:
    return None if text == "none" else text
