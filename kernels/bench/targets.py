"""What the project set out to reach: ratios to XLA's bf16 dot in the same run, whole layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A regime of rows and the least ratio wanted there.

    Attributes:
      regime: in words.
      holds: whether a row belongs to it.
      against: the implementation that ``ours`` is compared with.
      must, stretch: ratios.
    """

    regime: str
    holds: Callable[[Row], bool]
    against: str
    must: float
    stretch: float


def _large(row: Row) -> bool:
    return row["N"] * row["K"] >= 4096 * 14336


def _prefill(row: Row) -> bool:
    return row["M"] >= 4096 and min(row["N"], row["K"]) >= 4096


TARGETS = (
    Target("prefill M>=4096, K,N>=4096", _prefill, "bf16", 1.6, 1.8),
    Target("prefill M=1024", lambda r: r["M"] == 1024, "bf16", 1.4, 1.65),
    Target("decode M<=16, NK>=4096*14336", lambda r: r["M"] <= 16 and _large(r), "bf16", 2.2, 3.0),
    Target("decode M=64", lambda r: r["M"] == 64, "bf16", 1.5, 2.2),
    Target("prefill vs tl.dot_scaled", _prefill, "block_scaled", 4.0, 6.0),
)


WIDE_MOST = 1.08  # times that D = 128 may take of D = 32, in prefill


def verdicts(rows: Iterable[Row]) -> list[str]:
    """One line a target: the least and the largest ratio among its rows, those with D = 32."""
    lines, rows = [], list(rows)
    narrow = [row for row in rows if row["D"] == 32]
    for target in TARGETS:
        ratios = [
            (row["us"][target.against] / row["us"]["ours"], row)
            for row in narrow
            if target.holds(row) and row["us"].get("ours") and row["us"].get(target.against)
        ]
        if not ratios:
            lines.append(f"{target.regime:30s} not measured")
            continue
        least, row = min(ratios, key=lambda pair: pair[0])
        verdict = "MISSED" if least < target.must else "must"
        verdict = "stretch" if least >= target.stretch else verdict
        lines.append(
            f"{target.regime:30s} {least:5.2f}x ({row['layer']}, M={row['M']}) to "
            f"{max(ratios, key=lambda pair: pair[0])[0]:.2f}x, {len(ratios)} rows; "
            f"must {target.must}x, stretch {target.stretch}x: {verdict}"
        )
    return [*lines, wide(rows)]


def wide(rows: Iterable[Row]) -> str:
    """The line of D = 128 beside D = 32, for M >= 1024."""
    times = {
        tuple(row[name] for name in ("D", "M", "K", "N", "run")): row["us"]["ours"]
        for row in rows
        if row["M"] >= 1024 and row["us"].get("ours")
    }
    pairs = [(us, times.get((32, *rest))) for (D, *rest), us in times.items() if D == 128]
    ratios = [wide / narrow for wide, narrow in pairs if narrow]
    if not ratios:
        return f"{'time of D=128 to D=32, prefill':30s} not measured"
    verdict = "must" if max(ratios) <= WIDE_MOST else "MISSED"
    return (
        f"{'time of D=128 to D=32, prefill':30s} {min(ratios):.3f} to {max(ratios):.3f}, "
        f"{len(ratios)} rows; at most {WIDE_MOST}: {verdict}"
    )
