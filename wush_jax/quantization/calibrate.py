"""One pass over the calibration batches: `Statistics` of the input of every layer to quantize."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from wush_jax.config import Config
from wush_jax.frontends import select
from wush_jax.frontends.protocol import Discovery, FrontEnd, Variables
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.plan import Plan
from wush_jax.reporting.progress import track
from wush_jax.statistics import moments
from wush_jax.statistics.moments import Mask, Moments
from wush_jax.statistics.observation import Observation
from wush_jax.statistics.running import Statistics

Observe = Callable[[Variables, Any, Mask | None], dict[str, Observation]]


def calibrate(
    params: Any,
    batches: Iterable[Any],
    *,
    model: Any = None,
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
    front = select.front_end(model)
    variables = front.variables(params)
    plan = Plan(config)
    found: dict[Hashable, Discovery] = {}
    observers: dict[Hashable, Observe] = {}  # one compiled function for all batches that are alike
    statistics: dict[str, Statistics] = {}
    for i, batch in enumerate(track(batches, "calibrating", progress)):
        batch = front.batch(batch)
        signature = front.signature(batch)
        if signature not in observers:
            found[signature] = plan.reach(front, variables, batch)
            observers[signature] = _observer(front, plan, found[signature], full)
        seen = observers[signature](variables, batch, None if mask is None else mask(batch))
        batch_key = jax.random.fold_in(key, i)
        for j, (name, observation) in enumerate(seen.items()):
            fresh = _start(observation, jax.random.fold_in(batch_key, j))
            old = statistics.get(name)
            statistics[name] = fresh if old is None else _merge(old, fresh)
    if not observers:
        raise ValueError("calib_batches is empty: calibration needs at least one batch")
    plan.close(front.expected(variables))
    check_finite(plan, front.weights(variables))  # else blamed on the inputs
    sound = jax.device_get(_all_sound({name: s.moments for name, s in statistics.items()}))
    for leader in plan.groups():
        if not sound[leader]:
            moments.check(statistics[leader].moments, leader)
    return Calibration(tuple(found.values()), statistics, dict(plan.leaders))


def check_finite(plan: Plan, weights: Mapping[str, Array | np.ndarray]) -> None:
    """Raises ValueError naming the first layer to be quantized whose kernel is not finite."""
    finite = jax.device_get(_all_finite({name: weights[name] for name in plan.layers}))
    for name, good in finite.items():
        if not good:
            raise ValueError(f"{name}: the kernel holds NaN or Inf; it cannot be quantized")


@jax.jit
def _all_finite(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


@jax.jit
def _all_sound(sums: dict[str, Moments]) -> dict[str, Array]:
    return {p: jnp.isfinite(m.total).all() & (m.count > 0).all() for p, m in sums.items()}


_start = jax.jit(Statistics.start)
_merge = jax.jit(Statistics.merge, donate_argnums=0)


def _observer(front: FrontEnd, plan: Plan, found: Discovery, full: bool) -> Observe:
    """A compiled function: a batch and its mask -> observations of the groups' leaders."""
    layers = found.layers
    blocks = {}
    for name in plan.groups():
        if name in layers:
            features = layers[name].features
            blocks[name] = features if full else plan.configs[name].moment_block(features)
    sample = plan.config.sample_tokens

    @jax.jit
    def observe(variables: Variables, batch: Any, mask: Mask | None) -> dict[str, Observation]:
        return front.observe(variables, batch, mask, layers, blocks, sample)

    return observe
