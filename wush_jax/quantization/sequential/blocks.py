"""Sequential calibration: each block on what the quantized blocks before it really put out.

In one pass (`wush_jax.quantize`) every layer is calibrated on the float model's activations. Here a
model is a stack of blocks: a block is quantized on the activations that reach it, then runs
quantized to give those that reach the next one. Only one block's input activations exist at a time,
on the host unless asked otherwise, and only one block runs, so that memory is bounded whatever the
depth. Inside a block all layers are calibrated in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from wush_jax.config import Config
from wush_jax.frontends import select
from wush_jax.frontends.protocol import Block
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.quantization.calibrate import calibrate
from wush_jax.quantization.quantize import run as run_pipeline
from wush_jax.quantization.report.report import Report
from wush_jax.quantization.report.rows import LayerReport
from wush_jax.quantization.sequential import paths as block_paths
from wush_jax.quantization.sequential.offload import Activations
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask

Call = Callable[..., Any]  # (module, x, *extras) -> the block's output


def quantize_blocks(
    params: Mapping[str, Any],
    calib_batches: Iterable[Any],
    *,
    embed: Callable[[Any, Any], Any],
    blocks: Mapping[str, Any],
    call: Call | None = None,
    config: Config | None = None,
    mask: Callable[[Any], Mask] | None = None,
    key: PRNGKeyArray | None = None,
    offload: bool = True,
    quantized_inputs: bool = True,
    donate: bool = False,
    progress: bool | None = None,
    return_report: bool = False,
) -> Any:
    """Quantizes a stack of blocks one after another, each calibrated behind quantized ones.

    Args:
      params: the params, or the whole variables dict (the same comes back). Leaves may be NumPy
        arrays: only one block of them is then on the device at a time.
      calib_batches: any iterable of pytrees of arrays, consumed once.
      embed: (params, batch) -> what enters the first block: x, or a tuple (x, *extras). Jitted.
        Each block's output replaces x ([batch, length, features], say; any pytree); extras (an
        attention mask, positions) reach every block as they are.
      blocks: module path in the params -> the Flax Linen module that runs there, in the order in
        which they run: ``{f"decoder/layer_{i}": Layer(config) for i in range(6)}``.
      call: (module, x, *extras) -> x, how a block is called; default ``module(x, *extras)``. For
        constants and for blocks that return more: ``lambda m, x, *extras: m(x, train=False)[0]``.
      config: what to do, as for `wush_jax.quantize`; rules see full paths, "layer_0/mlp/up".
      mask: from a batch to an array, non-zero where a token counts ([batch, length]).
      key: for what is random; default ``jax.random.key(0)``.
      offload: keep activations between blocks on the host, each batch on the device only while it
        is used. False keeps all batches on the device: faster if they fit.
      quantized_inputs: False runs the float blocks instead, so that calibration is that of
        `wush_jax.quantize`, in bounded memory.
      donate: delete a block's float kernels once the next block's inputs exist, so that memory
        peaks at the model plus one quantized block. The caller's ``params`` are then unusable.
      progress: a progress bar on stderr; None shows it on a terminal only.
      return_report: also return the `Report`.

    Returns:
      The quantized params (or variables), or a pair with the report.

    Raises:
      ValueError: as `wush_jax.quantize`; and naming the path: a block that the params do not hold
        or that lies inside another, a kernel in no block that no rule skips, an output that is not
        of the structure of x.
    """
    config = Config() if config is None else config
    key = jax.random.key(0) if key is None else key
    front = select.front_end(None)
    variables = front.variables(params)
    weights, expected = front.weights(variables), front.expected(variables)
    names = [name for name in weights if name in expected]
    block_paths.check(variables["params"], blocks)
    skipped = block_paths.skipped(names, blocks, config)
    xs, rest = _embedded(params, calib_batches, embed, mask, offload, progress)

    runners: list[tuple[Block, Callable]] = []
    replaced: dict[str, QuantizedKernel] = {}
    rows: list[LayerReport] = []
    for i, (path, module) in enumerate(track(blocks.items(), "quantizing blocks", progress)):
        own = {name: block_paths.at(tree, path) for name, tree in variables.items()}
        own = jax.tree.map(jnp.asarray, own)  # on the device
        block, last = select.block(module, call), i == len(blocks) - 1
        run = _runner(block, runners)
        if not last:
            _check_output(jax.eval_shape(run, own, xs[0], rest[0][0]), xs[0], path)
        fresh: dict[str, QuantizedKernel] = {}
        if any(block_paths.inside(name, path) for name in names if name not in skipped):
            nested = {name: block_paths.nest(tree, path) for name, tree in own.items()}
            batches = (((x, *extras), tokens) for x, (extras, tokens) in zip(xs, rest, strict=True))
            rules = block_paths.relevant(config, names, path)
            own_key = jax.random.fold_in(key, i)
            fresh, report = _quantized(
                nested, block.at(path), batches, rules, mask is not None, own_key, return_report
            )
            rows.extend(report.layers)
            skipped |= report.skipped
        if not last:
            behind = fresh if quantized_inputs else {}
            own = {**own, "params": block_paths.with_kernels(own["params"], behind, path)}
            for n in range(len(xs)):
                xs[n] = run(own, xs[n], rest[n][0])
        replaced |= fresh
        if donate:
            trees.delete([weights[name] for name in fresh], after=fresh)

    report = Report(tuple(rows), skipped, block_paths.unused_rules(names, config))
    report.warn()
    out = front.replaced(params, replaced)
    return (out, report) if return_report else out


def _quantized(
    variables: Any,
    model: Any,
    batches: Iterable[Any],
    config: Config,
    masked: bool,
    key: PRNGKeyArray,
    compare: bool,
) -> tuple[dict[str, QuantizedKernel], Report]:
    """One block's quantized kernels by their full names, calibrated on what enters the block."""
    calibration = calibrate(
        variables,
        batches,
        model=model,
        config=config,
        mask=(lambda batch: batch[1]) if masked else None,
        key=key,
        progress=False,  # the bar counts blocks
        full=False,
    )
    out, report = run_pipeline(
        variables,
        calibration,
        model=model,
        config=config,
        key=key,
        progress=False,
        compare=compare,
    )
    return trees.quantized_kernels(out), report


def _embedded(
    params: Any,
    batches: Iterable[Any],
    embed: Callable[[Any, Any], Any],
    mask: Callable[[Any], Mask] | None,
    offload: bool,
    progress: bool | None,
) -> tuple[Activations, Activations]:
    """Batch by batch x, which each block replaces, and (extras, mask or None), which stay."""
    xs, rest, embed = Activations(offload), Activations(offload), jax.jit(embed)
    for batch in track(batches, "embedding", progress):
        batch = jax.tree.map(jnp.asarray, batch)
        out = embed(params, batch)
        x, *extras = out if isinstance(out, tuple) else (out,)
        xs.append(x)
        rest.append((extras, None if mask is None else mask(batch)))
    if not len(xs):
        raise ValueError("calib_batches is empty: calibration needs at least one batch")
    return xs, rest


def _runner(block: Block, runners: list[tuple[Block, Callable]]) -> Callable:
    """A compiled (own variables, x, extras) -> output, one for equal blocks, in ``runners``."""
    run = next((run for known, run in runners if known == block), None)
    if run is None:
        run = jax.jit(lambda own, x, extras: block.run(own, (x, *extras)))
        runners.append((block, run))
    return run


def _check_output(out: Any, x: Any, path: str) -> None:
    found, wanted = jax.tree.structure(out), jax.tree.structure(x)
    if found != wanted:
        raise ValueError(
            f"{path}: the block returns {found} (* is an array) where {wanted} entered it; its "
            "output enters the next block, so pick it: call=lambda m, x, *extras: m(x, *extras)[0]"
        )
