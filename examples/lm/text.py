"""The standard library's source files as bytes: windows to train, calibrate and judge on.

Each has modules of its own. Calibration must not read what was trained on: a model knows that text
too well, and other activations would be seen than those of text that is new to it. Training also
prints its held-out loss on the calibration split, so that nothing is chosen by the text which
quantized models are judged on.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from examples.stdlib import sources

Split = Literal["training", "calibration", "evaluation"]

END = b"\0"  # between files; no source file holds it


def split_of(module: str) -> Split:
    """The split a module belongs to; a package's modules all go where the package goes."""
    digest = hashlib.sha256(module.split(".")[0].encode()).digest()
    splits: dict[int, Split] = {5: "calibration", 7: "evaluation"}
    return splits.get(digest[0] // 32, "training")  # 3/4 of the modules, 1/8 for each other


@functools.cache
def corpus(split: Split) -> UInt8[np.ndarray, " L"]:
    """Every source file of a split, in the order of the modules' names."""
    files = [path.read_bytes() for module, path in sources().items() if split_of(module) == split]
    return np.frombuffer(END.join([b"", *files, b""]), np.uint8)


def random_windows(
    text: UInt8[Array, " L"], key: PRNGKeyArray, count: int, length: int
) -> Int[Array, "B T"]:
    """Windows that start anywhere, cut on the device that holds ``text``: int32."""
    starts = jax.random.randint(key, (count,), 0, text.shape[0] - length + 1)
    cut = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(text, start, length))
    return cut(starts).astype(jnp.int32)


def calibration_batches(
    tokens: int, length: int, batch_size: int, seed: int
) -> list[Int[np.ndarray, "B T"]]:
    """Random windows of the calibration split, ``tokens`` bytes or a little more: int32."""
    text = corpus("calibration")
    count = -(-tokens // (length * batch_size))
    starts = np.random.default_rng(seed).integers(0, len(text) - length + 1, (count, batch_size))
    return [_windows(text, row, length) for row in starts]


def evaluation_batches(
    tokens: int, length: int, batch_size: int, split: Split = "evaluation"
) -> list[Int[np.ndarray, "B T"]]:
    """Windows spread evenly over a split, ``tokens`` bytes or a little more: int32.

    Raises:
      ValueError: the windows would overlap.
    """
    text = corpus(split)
    count = -(-tokens // (length * batch_size))
    if count * batch_size * length > len(text):
        raise ValueError(f"the {split} text has {len(text)} bytes; {tokens} were asked for")
    starts = np.linspace(0, len(text) - length, count * batch_size).astype(int)
    return [_windows(text, row, length) for row in starts.reshape(count, batch_size)]


def _windows(text: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(length)].astype(np.int32)
