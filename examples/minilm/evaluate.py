"""What quantization does to the encoder: error layer by layer, embeddings end to end, bytes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

import wush_jax
from examples.minilm.model import BertEncoder, sentence_embedding
from examples.minilm.text import Batch
from wush_jax.ops import online as ops


def layer_inputs(
    model: BertEncoder, params: Mapping[str, Any], batches: Sequence[Batch], rows: int
) -> list[dict[str, jax.Array]]:
    """What enters each Dense layer of the float model, padding left out.

    Query, key and value read one array; they get one object here too, which is how
    `wush_jax.quantize` tells that they can share a transform.

    Args:
      batches: as `examples.minilm.text.batches` makes them.
      rows: tokens in each of the returned mappings; tokens beyond a multiple of it are left out.

    Returns:
      Mappings from module path to float32 [rows, K].
    """
    readers: dict[str, list[str]] = {}  # first layer to read an array -> all layers that do

    @jax.jit
    def run(params, batch):
        seen: dict[str, jax.Array] = {}
        readers.clear()

        def intercept(next_fun, args, kwargs, context):
            if isinstance(context.module, nn.Dense):
                path = "/".join(context.module.path)
                first = next((p for p, x in seen.items() if x is args[0]), path)
                seen.setdefault(first, args[0])
                readers.setdefault(first, []).append(path)
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(intercept):
            model.apply({"params": params}, **batch)
        return seen

    tokens: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        keep = batch["mask"] > 0
        for path, x in run(params, batch).items():
            tokens.setdefault(path, []).append(np.asarray(x)[keep])

    made: list[dict[str, jax.Array]] = []
    for path in readers:  # in the model's order, which jit's sorted mappings lose
        joined = np.concatenate(tokens.pop(path))
        chunks = [jnp.asarray(chunk) for chunk in np.split(joined, range(rows, len(joined), rows))]
        whole = [chunk for chunk in chunks if len(chunk) == rows]
        made = made or [{} for _ in whole]
        for layers, chunk in zip(made, whole, strict=True):
            layers.update(dict.fromkeys(readers[path], chunk))
    return made


def layer_errors(
    params: Mapping[str, Any], qparams: Mapping[str, Any], inputs: Mapping[str, jax.Array]
) -> dict[str, float]:
    """Module path -> ‖y - xW‖² / ‖xW‖², y from the quantized kernel (and quantized x)."""
    kernels, quantized = _kernels(params), _kernels(qparams)
    errors = {}
    for path, x in inputs.items():
        # Not told who shares its input, a kernel reuses the compilation of any of its shape.
        kernel = dataclasses.replace(quantized[path], shared_input=None)
        errors[path] = _relative_error(x, kernels[path], kernel)
    return {path: float(error) for path, error in errors.items()}


@jax.jit
def _relative_error(x: jax.Array, w: jax.Array, kernel: wush_jax.QuantizedKernel) -> jax.Array:
    exact = jnp.matmul(x, w, precision="highest")
    return jnp.sum((ops.linear(x, kernel) - exact) ** 2) / jnp.sum(exact**2)


class Judge:
    """Quantizes from one calibration, again and again, and compares the sentence embeddings."""

    def __init__(
        self,
        model: BertEncoder,
        params: Mapping[str, Any],
        calibration: wush_jax.Calibration,
        sentences: Batch,
        seed: int,
    ):
        self._model, self._params, self._calibration = model, params, calibration
        self._sentences, self._key = sentences, jax.random.key(seed)
        self._reference = embeddings(model, params, sentences)

    def quantized(self, config: wush_jax.Config) -> tuple[Any, wush_jax.Report, dict[str, float]]:
        """Quantized params, their report, and figures.

        These are "cosine" to the float model's embeddings, mean over sentences, and its standard
        error "cosine_se"; "linear_mb" and "model_mb", see `megabytes`; "seconds" to quantize.
        """
        clock = time.perf_counter()
        qparams, report = wush_jax.quantize(
            self._params,
            self._calibration,
            config=config,
            key=self._key,
            progress=False,
            return_report=True,
        )
        seconds = time.perf_counter() - clock
        cosines = (embeddings(self._model, qparams, self._sentences) * self._reference).sum(-1)
        linear_mb, model_mb = megabytes(qparams)
        return (
            qparams,
            report,
            {
                "cosine": float(cosines.mean()),
                "cosine_se": float(cosines.std(ddof=1) / np.sqrt(len(cosines))),
                "linear_mb": linear_mb,
                "model_mb": model_mb,
                "seconds": seconds,
            },
        )


def embeddings(model: BertEncoder, params: Mapping[str, Any], batch: Batch) -> np.ndarray:
    """Sentence embeddings [B, 384] of unit length, from float or quantized params."""

    @jax.jit
    def embed(params, ids, mask):
        return sentence_embedding(wush_jax.apply(model, params, ids, mask), mask)

    return np.asarray(embed(params, **batch))


def megabytes(params: Mapping[str, Any]) -> tuple[float, float]:
    """10⁶ bytes of the linear layers' kernels (transforms included), and of all parameters."""
    linear = sum(kernel.nbytes for kernel in _kernels(params).values())
    return linear / 1e6, sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6


def geometric_mean(values: Mapping[str, float]) -> float:
    return math.exp(sum(map(math.log, values.values())) / len(values))


def _kernels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Module path -> kernel."""
    flat = flax.traverse_util.flatten_dict(
        params, is_leaf=lambda _, x: isinstance(x, wush_jax.QuantizedKernel), sep="/"
    )
    return {p.removesuffix("/kernel"): k for p, k in flat.items() if p.endswith("/kernel")}
