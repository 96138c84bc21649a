"""How accurate each method is on a sentence encoder: the paper's, ours, and ours chosen per layer.

    python -m examples.encoder_accuracy                    # or: make accuracy
    python -m examples.encoder_accuracy --formats nvfp4 --tokens 16384

all-MiniLM-L6-v2 is calibrated on docstrings of Python's standard library and judged on two texts
of other modules: docstrings, and comments, which are another domain. For each method it prints

* some, all: ‖y - xW‖² / ‖xW‖² on docstrings, geometric mean over 12 layers (query, output and both
  MLP layers of blocks 0, 2 and 4) and over all 36; the second also on comments;
* / paper: the error of all layers as a share of the paper's best method, WUSH in blocks of the
  quantization group by GPTQ;
* worst: the largest ratio, over all layers, to Hadamard's error by the same solver, on both texts;
* cosine: of sentence embeddings to the float32 model's, mean and standard error over sentences;
* MB of the linear layers (transforms included), and seconds to quantize.

"published" is GPTQ as in the paper: its objective counts the weights' rounding alone, nothing is
refined, T is the closed form as it is. "ours" has this library's defaults in place of these. Each
layer has a transform of its own, but for the last row: there layers that read the same input share
one, the default, whose online cost is paid once. It leaves accuracy.json in the folder --out.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

import wush_jax
from examples.minilm import evaluate, load, text
from wush_jax.reporting.files import write_json
from wush_jax.reporting.progress import track
from wush_jax.reporting.tables import plus_minus

SOME = tuple(
    f"layer_{i}/{name}"
    for i in (0, 2, 4)
    for name in ("attention/query", "attention/output", "mlp/up", "mlp/down")
)
PUBLISHED: dict[str, Any] = {"objective": "W", "refine": 0, "gauges": 1}
OURS = {"solver": "gptq", "scale_search": True}
METHODS: dict[tuple[str, str], dict[str, Any]] = {
    ("identity", "rtn"): {"transform": "identity"},
    ("hadamard", "rtn"): {"transform": "hadamard"},
    ("wush", "rtn, published"): {"gauges": 1},
    ("wush", "rtn"): {},
    ("wush-128", "rtn"): {"transform_block": 128},
    ("wush-128", "rtn + search"): {"transform_block": 128, "scale_search": True},
    ("identity", "gptq, published"): {"transform": "identity", "solver": "gptq", **PUBLISHED},
    ("hadamard", "gptq, published"): {"transform": "hadamard", "solver": "gptq", **PUBLISHED},
    ("wush", "gptq, published"): {"solver": "gptq", **PUBLISHED},
    ("wush", "gptq, published, best gauge"): {"solver": "gptq", **PUBLISHED, "gauges": 16},
    ("wush-128", "gptq, published"): {"transform_block": 128, "solver": "gptq", **PUBLISHED},
    ("hadamard", "gptq + search, ours"): {"transform": "hadamard", **OURS},
    ("wush", "gptq, ours"): {"solver": "gptq"},
    ("wush-128", "gptq, ours"): {"transform_block": 128, "solver": "gptq"},
    ("wush-128", "gptq + search, ours"): {"transform_block": 128, **OURS},
    ("auto", "gptq + search, ours"): {"transform": "auto", **OURS},
    ("auto", "gptq + search, ours, shared"): {"transform": "auto", "share_inputs": True, **OURS},
}
PAPER = ("wush", "gptq, published")
HADAMARD = {  # what "worst" compares with
    "rtn": ("hadamard", "rtn"),
    "published": ("hadamard", "gptq, published"),
    "ours": ("hadamard", "gptq + search, ours"),
}
COLUMNS = ("some", "all", "/ paper", "comments", "worst", "worst, comments", "cosine", "MB", "s")

CALIBRATION_TOKENS, HELD_OUT_TOKENS = 32_768, 2_048
SENTENCES, SENTENCE_LENGTH = 512, 32


def main() -> None:
    options = parse_options()
    console = Console(width=None if Console().is_terminal else 160)
    started = time.perf_counter()
    model, params, tokenizer = load.load()
    batches = text.batches(tokenizer, text.paragraphs("calibration"), tokens=options.tokens)
    calibration = wush_jax.calibrate(
        params, batches, model=model, mask=lambda b: b["mask"], key=jax.random.key(options.seed)
    )
    held_out = {domain: _inputs(model, params, tokenizer, domain) for domain in text.DOMAINS}
    paragraphs = text.paragraphs("evaluation")
    sentences = text.sentences(tokenizer, paragraphs, SENTENCES, SENTENCE_LENGTH)
    judge = evaluate.Judge(model, params, calibration, sentences, options.seed)

    rows: list[dict[str, Any]] = []
    for fmt in options.formats:
        for (transform, solver), settings in track(METHODS.items(), fmt):
            config = wush_jax.Config(**{"format": fmt, "share_inputs": False, **settings})
            qparams, report, found = judge.quantized(config)
            errors = {
                domain: evaluate.layer_errors(params, qparams, inputs)
                for domain, inputs in held_out.items()
            }
            chosen = collections.Counter(f"{row.transform} {row.block}" for row in report.layers)
            method = {"format": fmt, "transform": transform, "solver": solver}
            rows.append({**method, **found, "layers": errors, "chosen": chosen})
            console.print(f"{time.perf_counter() - started:5.0f} s  {fmt} {transform} {solver}")
    console.print(_table(rows))
    for row in rows:
        if row["transform"] == "auto":
            chosen = ", ".join(f"{n} x {name}" for name, n in row["chosen"].most_common())
            console.print(f"{row['format']} {row['solver']}: auto chose {chosen}")
    summary = {"device": jax.devices()[0].device_kind, "seed": options.seed, "rows": rows}
    write_json(options.out / "accuracy.json", summary)
    console.print(f"the same by layer as JSON: {options.out / 'accuracy.json'}")
    console.print(f"{time.perf_counter() - started:.0f} seconds in all")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=CALIBRATION_TOKENS, help="for calibration")
    parser.add_argument("--formats", nargs="+", default=["mxfp4", "nvfp4"], metavar="FORMAT")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _inputs(model: Any, params: Any, tokenizer: Any, domain: text.Domain) -> dict[str, jax.Array]:
    """What enters each layer on held-out text, `HELD_OUT_TOKENS` rows."""
    paragraphs = text.paragraphs("evaluation", domain)
    batches = text.batches(tokenizer, paragraphs, tokens=HELD_OUT_TOKENS)
    return evaluate.layer_inputs(model, params, batches, HELD_OUT_TOKENS)[0]


def figures(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """The table's figures of one row, some of them relative to others of its format."""
    found = {(r["transform"], r["solver"]): r for r in rows if r["format"] == row["format"]}
    family = next(name for name in ("ours", "published", "rtn") if name in row["solver"])
    family = "rtn" if row["solver"].startswith("rtn") else family
    hadamard, here = found[HADAMARD[family]]["layers"], row["layers"]
    docs, comments = here["docstrings"], here["comments"]
    paper = found[PAPER]["layers"]["docstrings"]
    worst = {d: max(here[d][p] / hadamard[d][p] for p in here[d]) for d in here}
    return {
        "some": evaluate.geometric_mean({path: docs[path] for path in SOME}),
        "all": evaluate.geometric_mean(docs),
        "/ paper": evaluate.geometric_mean(docs) / evaluate.geometric_mean(paper),
        "comments": evaluate.geometric_mean(comments),
        "worst": worst["docstrings"],
        "worst, comments": worst["comments"],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="all-MiniLM-L6-v2, 4-bit weights and activations, on held-out text")
    for name in ("format", "transform", "solver"):
        table.add_column(name, no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        cells = []
        for name, value in figures(row, rows).items():
            cells.append(f"{value:.5f}" if name in ("some", "all", "comments") else f"{value:.3f}")
        cells.append(plus_minus(row["cosine"], row["cosine_se"]))
        cells += [f"{row['linear_mb']:.1f}", f"{row['seconds']:.0f}"]
        last = i + 1 < len(rows) and rows[i + 1]["format"] != row["format"]
        table.add_row(row["format"], row["transform"], row["solver"], *cells, end_section=last)
    return table


if __name__ == "__main__":
    main()
