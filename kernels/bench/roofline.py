"""Draws the rows of `layers` under their roofs: TFLOP/s against FLOPs per byte that must move.

python -m kernels.bench.roofline kernels/bench/results/h200-DATE.json [--out FILE.png] [--block 32]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

_NUMBERS = {"format": "mxfp4", "act_format": "mxfp4", "transform": "wush"}
_STYLES = {"bf16": ("tab:gray", "o", "XLA bf16"), "ours": ("tab:blue", "^", "wush_jax W4A4")}


def points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float, int]]:
    """(FLOPs per byte, TFLOP/s, M) of each row that timed ``name``."""
    return [
        (row["flops"] / row["bytes"][name], row["flops"] / row["us"][name] / 1e6, row["M"])
        for row in rows
        if row["us"].get(name)
    ]


def draw(content: dict[str, Any], out: Path, block: int = 32) -> Path:
    """Draws the figure.

    Args:
      content: what `results.Results` wrote.
      out: PNG to write.
      block: the transform block D whose rows are drawn; layers of equal size once.

    Raises:
      ValueError: there are no such rows, or no ceilings.
    """
    wanted = {"bench": "layers", "D": block, **_NUMBERS}
    rows = [
        row
        for row in content["rows"]
        if "same_as" not in row and all(row.get(k) == v for k, v in wanted.items())
    ]
    if not rows:
        raise ValueError(f"this file has no rows with {wanted}; run kernels.bench.layers first")
    run = content["runs"][rows[-1]["run"]]
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    _roofs(axes, run["ceilings"], rows)
    for name, (color, marker, label) in _STYLES.items():
        found = points(rows, name)
        if not found:
            continue
        x, y, M = (np.array(column) for column in zip(*found, strict=True))
        axes.scatter(x, y, s=18, c=color, marker=marker, label=label, zorder=3, linewidths=0)
        for tokens in np.unique(M):  # one label below the layers of equal M
            same = tokens == M
            text = f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
            place = float(np.exp(np.log(x[same]).mean())), float(y[same].min())
            style = {"fontsize": 7, "color": color, "ha": "center", "va": "top"}
            axes.annotate(text, place, (0, -5), textcoords="offset points", **style)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="TFLOP/s")
    axes.set_title(
        f"Layers of {', '.join(sorted({row['model'] for row in rows}))} on {run['device']}, "
        f"{run['date']}\nMXFP4, D = {block}, labels: tokens M",
        fontsize=10,
    )
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out


def _roofs(axes: Any, ceilings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    copy, roofs = ceilings["copy_bytes"], {}
    for name, key in (("bf16", "bf16_flops"), ("FP8", "fp8_flops")):
        if ceilings[key]:
            roofs[name] = ceilings[key]
    if not copy or not roofs:
        raise ValueError(f"a ceiling was not measured, so there is no roof: {ceilings['reasons']}")
    intensity = [row["flops"] / moved for row in rows for moved in row["bytes"].values()]
    left, right = 0.6 * min(intensity), 2.0 * max(*intensity, *(r / copy for r in roofs.values()))
    for name, rate in roofs.items():
        style, label = "-" if name == "FP8" else "--", f"{name} dot {rate / 1e12:.4g} TFLOP/s"
        axes.plot([rate / copy, right], [rate / 1e12] * 2, style, c="black", lw=1, label=label)
    slope = np.array([left, max(roofs.values()) / copy])
    label = f"copy {copy / 1e12:.3g} TB/s"
    axes.plot(slope, slope * copy / 1e12, ":", c="black", lw=1.2, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON that layers wrote")
    parser.add_argument("--out", type=Path, help="PNG; default: beside the JSON")
    parser.add_argument("--block", type=int, default=32, help="transform block D")
    options = parser.parse_args()
    out = options.out or options.results.with_suffix(".png")
    draw(json.loads(options.results.read_text()), out, options.block)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
