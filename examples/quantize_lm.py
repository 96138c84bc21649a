"""Perplexity of a small language model, quantized to 4 bits in every way there is here.

    python -m examples.quantize_lm                               # the weights that come along
    python -m examples.quantize_lm --size gpu                    # trains that size first
    python -m examples.quantize_lm --formats mxfp4 --seeds 1     # a ninth of it, for a CPU

The model reads Python source byte by byte. It is calibrated on windows of source files that it was
not trained on, other windows for each seed, and judged on files of further modules. The model runs
over a seed's windows once: `wush_jax.calibrate` keeps what all configurations need.

The table shows perplexity a byte; the loss added to the float model's, with its standard error;
the divergence from the float model; and how often both choose the same next byte. Below it stands
whether the methods come in the order expected of them, and by how many standard errors. It leaves
lm.json and lm.png in the folder given as --out. Formats can be run side by side, each with an --out
of its own, and shown together afterwards:

    python -m examples.quantize_lm --show out/mxfp4/lm.json out/nvfp4/lm.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import wush_jax
from examples import train_lm
from examples.lm import order, results, text, weights
from examples.lm.grid import FORMATS, SOLVERS, TRANSFORMS, grid
from examples.lm.model import Decoder, Layer
from examples.lm.recipes import RECIPES
from wush_jax.reporting.files import write_json
from wush_jax.reporting.progress import track

SHIPPED = Path(__file__).parent / "lm" / "weights" / "small.safetensors"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    data = joined(options.show) if options.show else measure(options, console)
    show(data, console)
    write_json(options.out / "lm.json", data)
    console.print(f"the same as JSON: {options.out / 'lm.json'}")
    try:
        rows = [results.from_dict(row) for row in data["rows"]]
        results.plot(title(data), rows, options.out / "lm.png")
        console.print(f"as a plot: {options.out / 'lm.png'}")
    except ImportError:
        console.print("no plot: it needs matplotlib")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, help="a file that examples.train_lm wrote")
    source.add_argument("--size", choices=list(RECIPES), help="train this size, unless in --out")
    source.add_argument("--show", nargs="+", type=Path, help="lm.json files to show as one table")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT")
    parser.add_argument("--transforms", nargs="+", default=TRANSFORMS, metavar="TRANSFORM")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, metavar="SOLVER")
    parser.add_argument("--no-ours", dest="ours", action="store_false", help="skip those rows")
    parser.add_argument("--auto", action="store_true", help="rows with transform='auto' as well")
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration text")
    parser.add_argument("--tokens", type=int, default=65_536, help="for calibration")
    parser.add_argument("--eval-tokens", type=int, default=131_072, help="held out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default=train_lm.default_dtype()
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Quantizes and judges every row with every seed: what lm.json holds."""
    started = time.perf_counter()
    rows = grid(
        options.formats, options.transforms, options.solvers, ours=options.ours, auto=options.auto
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
            how = {"config": row.config, "key": jax.random.key(seed), "progress": False}
            if row.sequential:
                qparams = wush_jax.quantize_blocks(params, batches, **stack(model), **how)
            else:
                qparams = wush_jax.quantize(params, calibration, **how)
            candidates[key_of(row.name, seed)] = jax.block_until_ready(qparams)
            seconds[row.name].append(time.perf_counter() - clock)
        console.print(f"{time.perf_counter() - started:6.0f} s  seed {seed} quantized")

    # All of them at once: the float model then runs once a batch.
    found = wush_jax.evaluate(model, params, candidates, held_out)
    collected = [
        results.collect(
            row, [found[key_of(row.name, seed)] for seed in range(options.seeds)], seconds[row.name]
        )
        for row in rows
    ]
    comparisons = order.compare(
        collected, lambda a, b, seed, of: found.difference(key_of(a, seed), key_of(b, seed), of)
    )
    return {
        "weights": path.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training": training,
        "calibration_tokens": options.tokens,
        "seeds": options.seeds,
        "dtype": options.dtype,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": time.perf_counter() - started,
        "float": results.reference_dict(found["float"]),
        "rows": [results.as_dict(result) for result in collected],
        "order": [comparison.as_dict() for comparison in comparisons],
    }


def stack(model: Decoder) -> dict[str, Any]:
    """The model as `wush_jax.quantize_blocks` takes it: what embeds, and the layers in order."""
    layers = {f"layer_{i}": Layer(model.config, model.dtype) for i in range(model.config.layers)}

    def embed(params: Any, ids: jax.Array) -> jax.Array:
        return params["embed"]["embedding"][ids].astype(model.dtype)

    return {"embed": embed, "blocks": layers}


def find_weights(options: argparse.Namespace, console: Console) -> Path:
    """The file asked for, trained now where it is a size that ``--out`` does not hold yet."""
    if options.size is None:
        return options.weights or SHIPPED
    path = options.out / f"lm-{options.size}.safetensors"
    if not path.is_file():
        train_lm.run(console, RECIPES[options.size], path, dtype=jnp.dtype(options.dtype), seed=0)
    return path


def key_of(name: str, seed: int) -> str:
    """The name of a row's candidate for one seed; the float model has none."""
    return name if name == order.FLOAT else f"{name} seed {seed}"


def joined(paths: Sequence[Path]) -> dict[str, Any]:
    """What several lm.json hold, as one.

    Raises:
      ValueError: they are not of the same model, text, seeds, or machine.
    """
    parts = [json.loads(path.read_text()) for path in paths]
    for part in parts:  # its loss may differ in the last bits from one process to another
        part["held_out"] = [part["float"][name] for name in ("tokens", "sequences")]
    lists = ("rows", "order")
    for path, part in zip(paths, parts, strict=True):
        for name in set(part) - {*lists, "seconds", "float"}:
            if part[name] != parts[0].get(name):
                raise ValueError(f"{path} and {paths[0]} differ in {name!r}: not one table")
    rows, comparisons = ([entry for part in parts for entry in part[name]] for name in lists)
    seconds = sum(part["seconds"] for part in parts)
    return {**parts[0], "seconds": seconds, "rows": rows, "order": comparisons}


def show(data: dict[str, Any], console: Console) -> None:
    """Prints the table, and the statement of the order."""
    rows = [results.from_dict(row) for row in data["rows"]]
    console.print(results.table(title(data), data["dtype"], data["float"], rows))
    comparisons = [order.from_dict(entry) for entry in data["order"]]
    console.print(order.statement(comparisons), highlight=False)
    console.print(f"{data['seconds']:.0f} seconds in all, on {data['device']}")


def title(data: dict[str, Any]) -> str:
    return f"{data['parameters'] / 1e6:.1f} million parameters, 4-bit weights and activations"


if __name__ == "__main__":
    main()
