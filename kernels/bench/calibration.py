"""What calibration costs: `wush_jax.quantize` beside the plain forward passes it contains.

    python kernels/bench/calibration.py [--tokens 32768] [--block 32] [--out calibration.json]

all-MiniLM-L6-v2, 36 linear layers. `quantize` runs the float model over the tokens, sums second
moments, fits the transforms, rounds the kernels and measures every layer. The first call of each
compiles; the later ones are warm, taken in turn, and the fastest counts. CPU seconds are those of
the whole process: where other programs compete for the cores they say more than the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # `examples` is not an installed package

import wush_jax
from examples.minilm import load, text
from wush_jax.quantization.calibrate import calibrate
from wush_jax.reporting.files import write_json


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU time in all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(tokens: int, block: int, repeats: int) -> dict[str, Any]:
    model, params, tokenizer = load.load()
    batches = text.batches(tokenizer, text.paragraphs("calibration"), tokens=tokens)
    config = wush_jax.Config(transform_block=block)

    @jax.jit
    def run(params, batch):
        return model.apply({"params": params}, **batch)

    def forward():
        for batch in batches:
            jax.block_until_ready(run(params, batch))

    def quantize():
        return wush_jax.quantize(
            params, batches, model=model, config=config, mask=lambda b: b["mask"], progress=False
        )

    cold = {"forward": timed(forward), "quantize": timed(quantize)}
    turns = [{"forward": timed(forward), "quantize": timed(quantize)} for _ in range(repeats)]
    warm = {name: tuple(map(min, zip(*(t[name] for t in turns), strict=True))) for name in cold}
    return {
        "tokens": sum(int(batch["mask"].sum()) for batch in batches),
        "device": jax.devices()[0].device_kind,
        "block": block,
        "seconds": {"cold": cold, "warm": warm},
        "ratio": {
            "cold": cold["quantize"][0] / cold["forward"][0],
            "warm": warm["quantize"][0] / warm["forward"][0],
            "warm_cpu": warm["quantize"][1] / warm["forward"][1],
        },
        "memory_bytes": memory(model, {"params": params}, batches[0], config),
    }


def memory(
    model: nn.Module, variables: Any, batch: text.Batch, config: wush_jax.Config
) -> dict[str, int]:
    """Bytes of what calibration keeps from batch to batch, after one batch."""
    statistics = calibrate(
        variables,
        [batch],
        model=model,
        config=config,
        mask=lambda b: b["mask"],
        progress=False,
        full=False,
    ).statistics
    moments = [seen.moments for seen in statistics.values()]
    return {
        "inputs": len(moments),
        "moments": sum(m.total.nbytes for m in moments),
        "full_moments": sum(4 * m.features**2 for m in moments),
        "sample": sum(seen.rows.nbytes for seen in statistics.values()),
    }


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{result['tokens']} tokens, D = {result['block']}, {result['device']}")
    for name in ("call", "seconds of", "forward", "quantize", "ratio"):
        table.add_column(name, justify="left" if name in ("call", "seconds of") else "right")
    for call, seconds in result["seconds"].items():
        for i, clock in enumerate(("wall clock", "CPU")):
            forward, quantize = seconds["forward"][i], seconds["quantize"][i]
            ratio = f"{quantize / forward:.2f}"
            table.add_row(call, clock, f"{forward:.2f}", f"{quantize:.2f}", ratio)
    console.print(table)
    held = result["memory_bytes"]
    console.print(
        f"calibration keeps {held['moments'] / 1e6:.2f} MB of second moments (K x D) of "
        f"{held['inputs']} distinct inputs; K x K would be {held['full_moments'] / 1e6:.1f} MB. "
        f"Sample tokens: {held['sample'] / 1e6:.1f} MB.",
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--block", type=int, default=32, help="D, the transforms' block size")
    parser.add_argument("--repeats", type=int, default=2, help="warm calls of each")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    result = measure(options.tokens, options.block, options.repeats)
    show(result)
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
