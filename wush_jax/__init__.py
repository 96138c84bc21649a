"""4-bit weights and activations for Flax models, with WUSH transforms (arXiv 2512.00956).

qparams = wush_jax.quantize(params, calib_batches, model=model)
logits = jax.jit(lambda p, x: wush_jax.apply(model, p, x))(qparams, tokens)
"""

from collections.abc import Mapping
from typing import Any

from wush_jax import trees as _trees
from wush_jax.abstract import abstract_quantize
from wush_jax.calibrate import calibrate
from wush_jax.calibration import Calibration
from wush_jax.config import Config, Rule
from wush_jax.evaluate import evaluate
from wush_jax.evaluation import Evaluation, Evaluations
from wush_jax.explain import explain
from wush_jax.flax.layer_errors import layer_errors
from wush_jax.flax.linen import apply
from wush_jax.kernel import QuantizedKernel
from wush_jax.prepare import prepare, unprepare
from wush_jax.quantize import quantize
from wush_jax.report import Report
from wush_jax.rules import DEFAULT_RULES
from wush_jax.sequential import quantize_blocks
from wush_jax.sweep import sweep
from wush_jax.sweep_result import Sweep

__all__ = [
    "DEFAULT_RULES",
    "Calibration",
    "Config",
    "Evaluation",
    "Evaluations",
    "QuantizedKernel",
    "Report",
    "Rule",
    "Sweep",
    "abstract_quantize",
    "apply",
    "calibrate",
    "dequantize",
    "evaluate",
    "explain",
    "layer_errors",
    "prepare",
    "quantize",
    "quantize_blocks",
    "sweep",
    "unprepare",
]


def dequantize(qparams: Mapping[str, Any]) -> dict[str, Any]:
    """Float kernels in the ORIGINAL basis, Tᵀ Q(T⁻ᵀ W), in the tree's own shape and dtypes.

    Runs with the plain ``model.apply``; activations are then not quantized.
    """
    inner = qparams["params"] if isinstance(qparams.get("params"), Mapping) else qparams
    kernels = {path: k.dequantize() for path, k in _trees.quantized_kernels(qparams).items()}
    replaced = _trees.replace_kernels(inner, kernels)
    return {**qparams, "params": replaced} if inner is not qparams else replaced
