"""4-bit weights and activations for Flax models, with WUSH transforms (arXiv 2512.00956).

qparams = wush_jax.quantize(params, calib_batches, model=model)
logits = jax.jit(lambda p, x: wush_jax.apply(model, p, x))(qparams, tokens)
"""

from wush_jax.config import DEFAULT_RULES, Config, Rule
from wush_jax.evaluation.evaluate import evaluate
from wush_jax.evaluation.layer_errors import layer_errors
from wush_jax.evaluation.result import Evaluations
from wush_jax.evaluation.rows import Evaluation
from wush_jax.frontends.linen.run import apply
from wush_jax.frontends.traced.run import quantized
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.layers.trees import dequantize
from wush_jax.ops.explain import explain
from wush_jax.ops.prepare import prepare, unprepare
from wush_jax.quantization.abstract import abstract_quantize
from wush_jax.quantization.calibrate import calibrate
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.quantize import quantize
from wush_jax.quantization.report.report import Report
from wush_jax.quantization.sequential.blocks import quantize_blocks
from wush_jax.sweeps.grid import Grid, grid
from wush_jax.sweeps.result import Sweep
from wush_jax.sweeps.score import Score, TokenScore
from wush_jax.sweeps.sweep import sweep

__all__ = [
    "DEFAULT_RULES",
    "Calibration",
    "Config",
    "Evaluation",
    "Evaluations",
    "Grid",
    "QuantizedKernel",
    "Report",
    "Rule",
    "Score",
    "Sweep",
    "TokenScore",
    "abstract_quantize",
    "apply",
    "calibrate",
    "dequantize",
    "evaluate",
    "explain",
    "grid",
    "layer_errors",
    "prepare",
    "quantize",
    "quantize_blocks",
    "quantized",
    "sweep",
    "unprepare",
]
