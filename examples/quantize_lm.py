"""Perplexity of a small language model, quantized to 4 bits in every way there is here.

    python -m examples.quantize_lm                               # the weights that come along
    python -m examples.quantize_lm --size gpu                    # trains that size first
    python -m examples.quantize_lm --weights out/lm-cpu.safetensors --formats mxfp4 --seeds 1

The model reads Python source byte by byte. It is calibrated on windows of the text it was trained
on, other windows for each seed, and judged on source files of modules that are in neither. The
model runs over a seed's windows once: `wush_jax.calibrate` keeps what all configurations need.

The table shows perplexity a byte; the loss added to the float model's, with its standard error;
the divergence from the float model; and how often both choose the same next byte. It leaves
lm.json and lm.png in the folder given as --out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import wush_jax
from examples import train_lm
from examples.lm import results, text, weights
from examples.lm.grid import FORMATS, SOLVERS, TRANSFORMS, Row, grid
from examples.lm.recipes import RECIPES
from wush_jax.progress import track
from wush_jax.tables import write_json

SHIPPED = Path(__file__).parent / "lm" / "weights" / "small.safetensors"


def main() -> None:
    options = parse_options()
    console = Console(width=None if Console().is_terminal else 160)
    started = time.perf_counter()
    rows = grid(
        options.formats, options.transforms, options.solvers, best=options.best, auto=options.auto
    )
    path = find_weights(options, console)
    model, params, training = weights.load(path, jnp.dtype(options.dtype))
    length = model.config.context
    held_out = text.evaluation_batches(options.eval_tokens, length, options.batch_size)

    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    candidates: dict[str, Any] = {}
    for seed in range(options.seeds):
        batches = text.calibration_batches(options.tokens, length, options.batch_size, seed)
        calibration = wush_jax.calibrate(params, batches, model=model, key=jax.random.key(seed))
        for row in track(rows, f"quantizing, seed {seed}"):
            clock = time.perf_counter()
            qparams = wush_jax.quantize(
                params, calibration, config=row.config, key=jax.random.key(seed), progress=False
            )
            candidates[key_of(row, seed)] = jax.block_until_ready(qparams)
            seconds[row.name].append(time.perf_counter() - clock)
        console.print(f"{time.perf_counter() - started:6.0f} s  seed {seed} quantized")

    # All of them at once: the float model then runs once a batch.
    found = wush_jax.evaluate(model, params, candidates, held_out)
    collected = [
        results.collect(
            row, [found[key_of(row, seed)] for seed in range(options.seeds)], seconds[row.name]
        )
        for row in rows
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    title = f"{size / 1e6:.1f} million parameters, 4-bit weights and activations"
    console.print(results.table(title, options.dtype, found["float"], collected))
    facts = {
        "weights": path.name,
        "parameters": size,
        "training": training,
        "calibration_tokens": options.tokens,
        "seeds": options.seeds,
        "dtype": options.dtype,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": time.perf_counter() - started,
    }
    write_json(options.out / "lm.json", results.as_dict(found["float"], collected, **facts))
    console.print(f"the same as JSON: {options.out / 'lm.json'}")
    try:
        results.plot(title, collected, options.out / "lm.png")
        console.print(f"as a plot: {options.out / 'lm.png'}")
    except ImportError:
        console.print("no plot: it needs matplotlib")
    console.print(f"{facts['seconds']:.0f} seconds in all")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, help="a file that examples.train_lm wrote")
    source.add_argument("--size", choices=list(RECIPES), help="train this size, unless in --out")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT")
    parser.add_argument("--transforms", nargs="+", default=TRANSFORMS, metavar="TRANSFORM")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, metavar="SOLVER")
    parser.add_argument("--no-best", dest="best", action="store_false", help="skip those rows")
    parser.add_argument("--auto", action="store_true", help="rows with transform='auto' as well")
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration text")
    parser.add_argument("--tokens", type=int, default=65_536, help="for calibration")
    parser.add_argument("--eval-tokens", type=int, default=131_072, help="held out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default=train_lm.default_dtype()
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    return parser.parse_args()


def find_weights(options: argparse.Namespace, console: Console) -> Path:
    """The file asked for, trained now where it is a size that ``--out`` does not hold yet."""
    if options.size is None:
        return options.weights or SHIPPED
    path = options.out / f"lm-{options.size}.safetensors"
    if not path.is_file():
        train_lm.run(console, RECIPES[options.size], path, dtype=jnp.dtype(options.dtype), seed=0)
    return path


def key_of(row: Row, seed: int) -> str:
    """The name of a row's candidate for one seed."""
    return f"{row.name} seed {seed}"


if __name__ == "__main__":
    main()
