"""Quantizes a sentence encoder to 4 bits, weights and activations, in every way there is here.

    python -m examples.quantize_encoder

all-MiniLM-L6-v2 is calibrated on docstrings of Python's standard library and judged on other
modules' docstrings. For each number format and transform (rounded to nearest, but for the last
row) it prints

* layer error: ‖y - xW‖² / ‖xW‖² on held-out text, geometric mean over the 36 linear layers;
* cosine: of the sentence embeddings to those of the float32 model, mean over held-out sentences;
* size: of the linear layers' weights, and of the whole model (the embeddings stay in float32).

It leaves quickstart.json and a plot, layer by layer, in the folder given as --out.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.live import Live
from rich.table import Table

import wush_jax
from examples.minilm import evaluate, load, text
from wush_jax.reporting.files import write_json

FORMATS = ("mxfp4", "nvfp4", "int4")
TRANSFORMS = ("identity", "hadamard", "wus", "wush", "unshared", "best")

CALIBRATION_TOKENS = 32_768
HELD_OUT_TOKENS = 2_048
SENTENCES, SENTENCE_LENGTH = 256, 32


def main() -> None:
    options = parse_options()
    console = Console()
    started = time.perf_counter()

    with console.status("loading the encoder and the text"):
        model, params, tokenizer = load.load()
        batches = text.batches(tokenizer, text.paragraphs("calibration"), tokens=options.tokens)
        held_out = text.paragraphs("evaluation")
        held_out_batches = text.batches(tokenizer, held_out, tokens=HELD_OUT_TOKENS)
        sentences = text.sentences(tokenizer, held_out, SENTENCES, SENTENCE_LENGTH)

    # One line is enough to quantize a model:
    #
    #     qparams = wush_jax.quantize(params, batches, model=model, mask=lambda b: b["mask"])
    #
    # It runs the float model over the batches. Here many configurations follow one another, so the
    # model runs once, and `quantize` is given what `calibrate` kept instead of the batches.
    with console.status(f"running the float model over {options.tokens} tokens"):
        calibration = wush_jax.calibrate(params, batches, model=model, mask=lambda b: b["mask"])
        (inputs,) = evaluate.layer_inputs(model, params, held_out_batches, HELD_OUT_TOKENS)[:1]
        judge = evaluate.Judge(model, params, calibration, sentences, options.seed)

    rows = measure(options, console, judge, params, inputs)
    summary = {
        "calibration_tokens": sum(int(batch["mask"].sum()) for batch in batches),
        "held_out_tokens": HELD_OUT_TOKENS,
        "sentences": SENTENCES,
        "seed": options.seed,
        "seconds": time.perf_counter() - started,
        "rows": rows,
    }
    write_json(options.out / "quickstart.json", summary)
    console.print(f"the same as JSON: {options.out / 'quickstart.json'}")
    console.print(f"{summary['seconds']:.0f} seconds in all")


def measure(
    options: argparse.Namespace,
    console: Console,
    judge: evaluate.Judge,
    params: Any,
    inputs: dict[str, jax.Array],
) -> list[dict[str, Any]]:
    """The table's rows, printed as they come.

    Args:
      inputs: what enters each layer on held-out text.
    """
    linear_mb, model_mb = evaluate.megabytes(params)
    float_row = {
        "format": "float32",
        "transform": "",
        "layer_error": 0.0,
        "cosine": 1.0,
        "linear_mb": linear_mb,
        "model_mb": model_mb,
        "seconds": 0.0,
    }
    rows, table = [float_row], new_table()
    add_row(table, float_row)
    with Live(table, console=console) if console.is_terminal else contextlib.nullcontext():
        for fmt, transform, config in configurations(options.formats, options.transforms):
            qparams, report, found = judge.quantized(config)
            errors = evaluate.layer_errors(params, qparams, inputs)
            mean = evaluate.geometric_mean(errors)
            row = {"format": fmt, "transform": transform, "layer_error": mean, **found}
            rows.append({**row, "layers": errors})
            add_row(table, row)
            if not console.is_terminal:
                console.print("  ".join(cells(row)), highlight=False)
            if config == wush_jax.Config():
                report.plot(options.out / "layers.png")
                console.print(f"error of every layer: {options.out / 'layers.png'}")
    if not console.is_terminal:
        console.print(table)
    return rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=CALIBRATION_TOKENS, help="for calibration")
    parser.add_argument("--formats", nargs="+", default=FORMATS, metavar="FORMAT")
    parser.add_argument("--transforms", nargs="+", default=TRANSFORMS, metavar="TRANSFORM")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def configurations(
    formats: list[str], transforms: list[str]
) -> Iterator[tuple[str, str, wush_jax.Config]]:
    """Format, name of the row, and configuration."""
    for fmt in formats:
        for transform in transforms:
            if transform == "best":
                best = wush_jax.Config(
                    format=fmt, transform_block=128, solver="gptq", scale_search=True
                )
                yield fmt, "wush-128, gptq", best
            elif transform != "unshared":
                yield fmt, transform, wush_jax.Config(format=fmt, transform=transform)
            elif fmt == "mxfp4":  # WUSH, with one transform each for query, key and value
                yield fmt, "wush unshared", wush_jax.Config(format=fmt, share_inputs=False)


def new_table() -> Table:
    table = Table(title="all-MiniLM-L6-v2, 4-bit weights and activations, on held-out text")
    for name in ("format", "transform"):
        table.add_column(name, no_wrap=True)
    for name in ("layer error", "cosine", "linear MB", "model MB", "seconds"):
        table.add_column(name, justify="right")
    return table


def add_row(table: Table, row: dict[str, Any]) -> None:
    new_format = table.row_count and row["transform"] in ("identity", "")
    if new_format:
        table.add_section()
    table.add_row(*cells(row), style="bold" if row["transform"] == "wush" else None)


def cells(row: dict[str, Any]) -> list[str]:
    return [
        row["format"],
        row["transform"],
        f"{row['layer_error']:.4f}",
        f"{row['cosine']:.4f}",
        f"{row['linear_mb']:.1f}",
        f"{row['model_mb']:.1f}",
        f"{row['seconds']:.1f}",
    ]


if __name__ == "__main__":
    main()
