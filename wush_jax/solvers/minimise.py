"""From transformed weights to rounded ones: round to nearest, scale search, GPTQ, refinement."""

from __future__ import annotations

from jaxtyping import Array, BFloat16, Float32

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.solvers import scale_search
from wush_jax.solvers.gptq import gptq
from wush_jax.solvers.objective import Objective, losses
from wush_jax.solvers.refine import refine
from wush_jax.solvers.rounded import Rounded
from wush_jax.solvers.rtn import Solution, round_to_nearest


def minimise(
    a: Float32[Array, "K N"],
    stored: BFloat16[Array, "C D D"] | None,
    objective: Objective | None,
    config: LayerConfig,
) -> Solution:
    """Quantizes A as ``config.solver`` and ``config.scale_search`` say.

    GPTQ's result is kept for the outputs on which it has the smaller objective than rounding to
    nearest, which is kept for all others.

    Args:
      a: A = T⁻ᵀ W, float32 [K, N], padded.
      stored: T as stored.
      objective: None for plain rounding to nearest; for GPTQ one block of K.
    """
    plain = round_to_nearest(a, stored, config.format)
    if objective is None:
        return plain
    fmt, g = config.format, plain.global_scale.reshape(())
    values = formats.codes_to_values(plain.codes, fmt)
    rounded = Rounded(values, plain.scales)
    if config.scale_search:
        rounded = scale_search.nearest(a, objective, fmt, g)
    if config.solver == "gptq":
        hessian = objective.hessian[0]
        swept = gptq(objective.target, hessian, fmt, g, search=config.scale_search)
        if config.refine:
            swept = refine(swept, objective.target, hessian, fmt, g, passes=config.refine)
        before, after = (losses(objective, r.weights(fmt, g)) for r in (rounded, swept))
        rounded = swept.where(after < before, rounded)
    return Solution(rounded.codes(fmt), rounded.scales, plain.global_scale, stored)
