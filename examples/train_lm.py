"""Trains a small Llama-style language model on Python's standard library, byte by byte.

    python -m examples.train_lm                                  # 0.9 million parameters, a CPU
    python -m examples.train_lm --size gpu --minutes 4           # 38 million, one GPU

It learns from the source files of most modules; its held-out loss is that of some others. Losses
are printed in nats and in bits a byte; the weights are left in the file given as --out, for
`examples.quantize_lm`, which judges them on modules that are in neither. Training ends after the
size's number of steps, or after --steps, or when --minutes are over; the learning rate has come
down by then in each case.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from examples.lm import text, weights
from examples.lm.model import Decoder
from examples.lm.recipes import RECIPES, Recipe
from examples.lm.train import Snapshot, held_out_loss, train

REPORTS = 20  # lines printed in all
HELD_OUT_TOKENS = 32_768


def main() -> None:
    options = parse_options()
    out = options.out or Path("out") / f"lm-{options.size}.safetensors"
    console = Console(width=None if Console().is_terminal else 160)
    run(
        console,
        RECIPES[options.size],
        out,
        dtype=jnp.dtype(options.dtype),
        seed=options.seed,
        steps=options.steps,
        minutes=options.minutes,
    )
    console.print(f"weights: {out}, {out.stat().st_size / 1e6:.1f} MB")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(RECIPES), default="cpu")
    parser.add_argument("--steps", type=int, help="in place of the size's own number")
    parser.add_argument("--minutes", type=float, help="end after so many, by the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=default_dtype())
    parser.add_argument("--out", type=Path, help="file of weights (default: out/lm-SIZE)")
    return parser.parse_args()


def default_dtype() -> str:
    """Of products: bfloat16 where the device has it, float32 on a CPU, which would emulate it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def run(console: Console, recipe: Recipe, out: Path, *, dtype: Any, **options: Any) -> None:
    """Trains, prints how it goes, and writes the weights to ``out``.

    Args:
      dtype: of products.
      options: ``seed``, ``steps`` and ``minutes``, as `examples.lm.train.train` takes them.
    """
    model = Decoder(recipe.model, dtype)
    corpus = text.corpus("training")
    length = recipe.model.context + 1
    held_out = text.evaluation_batches(HELD_OUT_TOKENS, length, 32, "calibration")
    started = time.perf_counter()
    snapshot, printed, judged = None, 0, math.nan
    for snapshot in train(recipe, corpus, dtype=dtype, **options):
        if snapshot.step == recipe.chunk:
            count = sum(leaf.size for leaf in jax.tree.leaves(snapshot.params))
            console.print(
                f"{count / 1e6:.2f} million parameters, {len(corpus) / 1e6:.2f} MB of text, "
                f"{jax.devices()[0].device_kind}, products in {jnp.dtype(dtype).name}"
            )
        if snapshot.progress * REPORTS >= printed + 1 or snapshot.progress == 1.0:
            printed = int(snapshot.progress * REPORTS)
            judged = held_out_loss(model, snapshot.params, held_out)
            console.print(line(snapshot, judged, time.perf_counter() - started))
    assert snapshot is not None
    training = {
        "seed": options.get("seed"),
        "steps": snapshot.step,
        "batch_size": recipe.batch_size,
        "dtype": jnp.dtype(dtype).name,
        "train_loss": snapshot.loss,
        "held_out_loss": judged,
        "seconds": time.perf_counter() - started,
        "text": f"Python {platform.python_version()}, {len(corpus)} bytes",
        "device": jax.devices()[0].device_kind,
    }
    weights.save(out, recipe.model, snapshot.params, training)


def line(snapshot: Snapshot, held_out: float, seconds: float) -> str:
    losses = ", ".join(
        f"{name} {loss:.4f} nats = {loss / math.log(2):.3f} bits a byte"
        for name, loss in (("training", snapshot.loss), ("held out", held_out))
    )
    return f"{seconds:6.0f} s  step {snapshot.step:6d} {snapshot.progress:4.0%}  {losses}"


if __name__ == "__main__":
    main()
