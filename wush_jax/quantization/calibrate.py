"""One pass over the calibration batches: `Statistics` of the input of every layer to quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from wush_jax.config import Config
from wush_jax.frontends.linen.discover import Layer
from wush_jax.frontends.linen.observe import observe, observe_rows
from wush_jax.frontends.linen.run import is_variables
from wush_jax.layers import trees
from wush_jax.quantization import plan
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.plan import Plan
from wush_jax.reporting.progress import track
from wush_jax.statistics import moments
from wush_jax.statistics.moments import Mask, Moments
from wush_jax.statistics.observation import Observation
from wush_jax.statistics.running import Statistics

Observe = Callable[[Any, Mask | None], dict[str, Observation]]


def calibrate(
    params: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    model: nn.Module | None = None,
    config: Config | None = None,
    mask: Callable[[Any], Mask] | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool | None = None,
    full: bool = True,
) -> Calibration:
    """Runs the float model over ``batches``, once, for any number of `wush_jax.quantize` calls.

        calibration = wush_jax.calibrate(params, batches, model=model)
        wush_jax.quantize(params, calibration, config=wush_jax.Config(solver="gptq"))

    Args:
      params, batches, model, mask, key, progress: as `wush_jax.quantize` takes them.
      config: which layers (its rules), and how many sample tokens.
      full: keep K x K numbers an input, which serve every configuration; else what ``config``
        itself needs.

    Raises:
      ValueError: no batch; a kernel in the params that no batch reached and no rule skips;
        a K that does not split into blocks; NaN or Inf on the way.
    """
    config = Config() if config is None else config
    key = jax.random.split(jax.random.key(0) if key is None else key)[0]
    variables = trees.plain(params if is_variables(params) else {"params": params})
    planned = Plan(config)
    found_in: dict[Any, Mapping[str, Layer]] = {}
    statistics: dict[str, Statistics] = {}
    observers: dict[Any, Observe] = {}  # one compiled function per shape of batch and grouping
    for i, batch in enumerate(track(batches, "calibrating", progress)):
        if model is None:
            found = plan.captured_layers(variables["params"], batch)
            signature = _signature(batch)
        else:
            batch = jax.tree.map(jnp.asarray, batch)
            signature = _signature(batch)
            found = {}
            if signature not in observers:
                found = planned.reached(model, variables, batch)
        planned.add(found)
        if signature not in observers:
            found_in[signature] = found
            observers[signature] = _observer(model, variables, planned, found, full)
        tokens = None if mask is None else mask(batch)
        batch_key = jax.random.fold_in(key, i)
        for j, (path, seen) in enumerate(observers[signature](batch, tokens).items()):
            fresh = _start(seen, jax.random.fold_in(batch_key, j))
            old = statistics.get(path)
            statistics[path] = fresh if old is None else _merge(old, fresh)
    if not observers:
        raise ValueError("calib_batches is empty: calibration needs at least one batch")
    planned.close(variables["params"])
    check_kernels(planned, trees.kernel_paths(variables["params"]))  # else blamed on the inputs
    sound = jax.device_get(_all_sound({p: s.moments for p, s in statistics.items()}))
    for leader in planned.groups():
        if not sound[leader]:
            moments.check(statistics[leader].moments, leader)
    found = tuple(found_in.values())
    return Calibration(found, frozenset(planned.called), statistics, dict(planned.leaders))


def check_kernels(planned: Plan, kernels: Mapping[str, Array]) -> None:
    """Raises ValueError naming the first module to be quantized whose kernel is not finite."""
    finite = jax.device_get(_all_finite({path: kernels[path] for path in planned.layers}))
    for path, good in finite.items():
        if not good:
            raise ValueError(f"{path}: the kernel holds NaN or Inf; it cannot be quantized")


@jax.jit
def _all_finite(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


@jax.jit
def _all_sound(sums: dict[str, Moments]) -> dict[str, Array]:
    return {p: jnp.isfinite(m.total).all() & (m.count > 0).all() for p, m in sums.items()}


_start = jax.jit(Statistics.start)
_merge = jax.jit(Statistics.merge, donate_argnums=0)


def _signature(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


def _observer(
    model: nn.Module | None,
    variables: Mapping[str, Any],
    planned: Plan,
    found: Mapping[str, Layer],
    full: bool,
) -> Observe:
    """A compiled function: a batch and its mask -> observations of the groups' leaders."""
    blocks = {}
    for path in planned.groups():
        if path in found:
            features = found[path].features
            blocks[path] = features if full else planned.configs[path].moment_block(features)
    sample = planned.config.sample_tokens

    @jax.jit
    def observe_model(variables, batch, tokens):
        assert model is not None
        return observe(model, variables, batch, tokens, blocks, sample, found)

    @jax.jit
    def observe_captured(inputs, tokens):
        return {
            path: observe_rows(found[path].contraction, x, blocks[path], sample, tokens)
            for path, x in inputs.items()
        }

    if model is not None:
        return lambda batch, tokens: observe_model(variables, batch, tokens)
    return lambda batch, tokens: observe_captured({p: batch[p] for p in blocks}, tokens)
