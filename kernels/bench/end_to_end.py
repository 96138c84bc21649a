"""A whole decoder layer of Llama-3.1-8B's size under jit: float bf16 beside the quantized one.

    python -m kernels.bench.end_to_end [--out FILE.json] [--model llama-3.1-8b] [--budget 240]
        [--prefill 4096] [--decode 1,8,16,64] [--cache 1024] [--blocks 32] [--attention cudnn]

Prefill is one sequence of that many tokens; decode one token of each of B sequences against a cache
of 1024 tokens, which is read and not copied. Attention, norms and rotary positions are the same
code in both. The quantized layer is `wush_jax.apply` on prepared synthetic kernels; the float one
has their dequantized weights, so that the difference of the outputs shows the activations' rounding
and nothing else. GPU time is the sum over kernels; the wall time of a queued call is beside it,
which at small batches shows launches and Python instead.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

import wush_jax
from kernels.bench import cli, data, timing
from kernels.bench.decoder import DecoderLayer
from kernels.bench.results import Results
from kernels.bench.shapes import MODELS, Architecture


def float_params(sizes: Architecture, key: Array) -> dict[str, Any]:
    """Random bf16 params of the layer."""
    params: dict[str, Any] = {
        name: {"scale": jnp.ones(sizes.hidden, jnp.bfloat16)}
        for name in ("attention_norm", "mlp_norm")
    }
    for i, (name, (K, N)) in enumerate(sizes.layers().items()):
        params[name] = {"kernel": data.float_weights(jax.random.fold_in(key, i), K, N)}
    return params


@functools.partial(jax.jit, static_argnums=0)
def dense_inputs(model: DecoderLayer, params: dict[str, Any], x: Array) -> dict[str, Array]:
    """What each `nn.Dense` of the float layer reads, as rows [m, K]."""
    seen: dict[str, Array] = {}

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen[str(context.module.name)] = args[0].reshape(-1, args[0].shape[-1])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        model.apply({"params": params}, x)
    return seen


def make_params(
    sizes: Architecture, D: int, format: str, act_format: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(float params, quantized params), the first the second's dequantized."""
    key = jax.random.key(0)
    params = float_params(sizes, key)
    x = data.tokens(jax.random.key(1), 64, sizes.hidden)[None]
    rows = dense_inputs(DecoderLayer(sizes), params, x)
    quantized = dict(params)
    for i, (name, (K, N)) in enumerate(sizes.layers().items()):
        one = jax.random.fold_in(key, 100 + i)
        kernel = data.make_kernel(one, K, N, D, format, act_format, rows=rows[name])
        params[name] = {"kernel": jax.jit(lambda kernel: kernel.dequantize())(kernel)}
        quantized[name] = {"kernel": kernel}
    return params, quantized


def inputs(sizes: Architecture, phase: str, size: int, cache: int) -> tuple:
    """(x, position, cache) of prefill of ``size`` tokens, or of decode of ``size`` sequences."""
    if phase == "prefill":
        return data.tokens(jax.random.key(2), size, sizes.hidden)[None], 0, None
    x = data.tokens(jax.random.key(3), size, sizes.hidden)[:, None]
    width = sizes.kv_heads * sizes.head_dim
    shape = (size, cache, sizes.kv_heads, sizes.head_dim)
    entries = [data.tokens(jax.random.key(i), size * cache, width).reshape(shape) for i in (4, 5)]
    return x, cache, tuple(entries)


def measure(
    run: Callable, params: dict[str, Any], args: tuple, cold: float
) -> tuple[dict[str, Any], Array]:
    """({"us", "wall_us", "kernels"}, y) of the jitted ``run(params, *args)``."""
    program = jax.jit(run)
    copies = [(leaf, *args) for leaf in data.copies(params, cold)]
    timed = timing.rotated(program, copies, iterations=12)
    wall = timing.wall(timing.Rotation(program, copies), 12)
    y, _ = program(params, *args)
    return {"us": timed.us, "wall_us": wall, "kernels": timed.kernels}, y


def row(
    models: dict[str, DecoderLayer], params: tuple[dict, dict], args: tuple, cold: float
) -> dict[str, Any]:
    """The figures of one row; a side that fails has its reason instead."""
    figures: dict[str, Any] = {"failed": {}}
    outputs = []
    for side, tree in zip(("bf16", "quantized"), params, strict=True):
        for attention, model in models.items():

            def run(tree, *args, model=model, side=side):
                if side == "bf16":
                    return model.apply({"params": tree}, *args)
                return wush_jax.apply(model, tree, *args)

            got, reason = timing.attempt(functools.partial(measure, run, tree, args, cold))
            if got is not None:
                figures[side], figures["attention"] = got[0], attention
                outputs.append(jnp.asarray(got[1], jnp.float32))
                break
            figures["failed"][f"{side} {attention}"] = reason
    if len(outputs) == 2:
        expected, y = outputs
        figures["difference"] = float(jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected))
    return figures


def line(row: dict[str, Any]) -> str:
    head = f"{row['model']} D={row['D']} {row['phase']:7s} {row['size']:5d}"
    if "bf16" not in row or "quantized" not in row:
        return f"{head} failed: " + "; ".join(f"{k}: {v[:200]}" for k, v in row["failed"].items())
    a, b = row["bf16"], row["quantized"]
    return (
        f"{head} {a['us']:9.1f} {b['us']:9.1f} us {a['us'] / b['us']:5.2f}x  "
        f"wall {a['wall_us']:9.1f} {b['wall_us']:9.1f} us {a['wall_us'] / b['wall_us']:5.2f}x  "
        f"{row['attention']} attention, outputs differ {row['difference']:.3f}"
    )


def run(options: argparse.Namespace) -> Results:
    """Runs the benchmark and prints its table."""
    budget = timing.Budget(options.budget)
    results = Results("end_to_end", options.out, fresh=True, cache=options.cache)
    print(f"{results.run['device']}, {results.run['timer']}, {results.run['versions']}", flush=True)
    sizes = MODELS[options.model]
    wanted = [("prefill", n) for n in options.prefill] + [("decode", n) for n in options.decode]
    for D in options.blocks:
        params, kernels = make_params(sizes, D, options.format, options.act_format)
        print(wush_jax.explain(kernels), flush=True)
        pair = (params, wush_jax.prepare(kernels))
        for phase, size in wanted:
            if not budget.allows():
                print(f"no time for {phase} {size}, D={D}")
                continue
            names = (options.attention, "xla") if phase == "prefill" else ("xla",)
            models = {name: DecoderLayer(sizes, name) for name in names}
            with budget.row():
                args = inputs(sizes, phase, size, options.cache)
                figures = row(models, pair, args, options.cold * 1e6)
            key = {"model": options.model, "D": D, "phase": phase, "size": size}
            print(f"{line(results.add(key, **figures))} [{budget.elapsed():.0f} s]", flush=True)
    print("\ndecoder layer: bf16, quantized, ratio (GPU time); the same by the wall clock")
    print("\n".join(line(r) for r in results.rows))
    for r in results.rows:
        if "quantized" in r and r["quantized"]["kernels"]:
            longest = sorted(r["quantized"]["kernels"], key=lambda kernel: -kernel[1])[:6]
            parts = ", ".join(f"{name[:32]} {us:.1f}" for name, us in longest)
            print(f"  {r['phase']} {r['size']}: {parts}")
    return results


def parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__, budget=240)
    p.add_argument("--model", choices=tuple(MODELS), default="llama-3.1-8b")
    p.add_argument("--prefill", type=cli.numbers, default=[4096], help="tokens of one sequence")
    p.add_argument("--decode", type=cli.numbers, default=[16, 1, 64, 8], help="sequences")
    p.add_argument("--cache", type=int, default=1024, help="earlier tokens, in decode")
    p.add_argument("--blocks", type=cli.numbers, default=[32], help="transform blocks D")
    p.add_argument("--attention", choices=("cudnn", "xla"), default="cudnn", help="of prefill")
    cli.add_formats(p)
    return p


if __name__ == "__main__":
    run(parser().parse_args())
