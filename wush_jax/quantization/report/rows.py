"""What quantization did to one layer, and means over layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from wush_jax.config import LayerConfig

COMPARED = {"error_identity": "identity", "error_hadamard": "Hadamard"}


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer (one slice of a stack of layers).

    Attributes:
      path: module path, with the index of the slice in brackets if it is one of a stack.
      shares: path of the layer whose transform it shares (itself if alone).
      shape: K, N.
      format, act_format, transform, block: as configured.
      tokens: calibration tokens that entered its second moments.
      predicted, predicted_hadamard: J of the group's transform, and of Hadamard.
      error: ‖y - xW‖² / ‖xW‖² of the quantized layer on the sample tokens.
      error_identity, error_hadamard: the same with those transforms and RTN; None: not asked for.
      condition: largest cond(T) of its blocks.
      weight_span, act_span: log2 of the largest over the smallest group scale, weights and sample.
      strength: as configured, or chosen.
      solver: "rtn", "gptq", with "+search" for a scale search.
      online: see `transform_cost`.
      candidates: for transform "auto", each one's score (`fitting.auto`); the least was chosen.
    """

    path: str
    shares: str
    shape: tuple[int, int]
    format: str
    act_format: str | None
    transform: str
    block: int
    tokens: int
    predicted: float
    predicted_hadamard: float
    error: float
    error_identity: float | None
    error_hadamard: float | None
    condition: float
    weight_span: float
    act_span: float
    strength: float = 1.0
    solver: str = "rtn"
    online: float = 0.0
    candidates: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def formats(self) -> str:
        """Both number formats as one text."""
        return both_formats(self.format, self.act_format)


def both_formats(weights: str, activations: str | None) -> str:
    """Number formats of weights and activations as one text: one name where they are the same."""
    return weights if activations == weights else f"{weights}, {activations or 'float'}"


def errors(layers: Sequence[LayerReport], field: str) -> list[float] | None:
    """One of the three errors of each layer; None if it was not asked for, of whichever layer.

    Args:
      field: "error", "error_identity" or "error_hadamard".
    """
    found = [getattr(layer, field) for layer in layers]
    return None if None in found else found


def mean_error(layers: Sequence[LayerReport], field: str = "error") -> float:
    """Geometric mean over layers of ``error``, ``error_identity`` or ``error_hadamard``.

    Raises:
      ValueError: that comparison was not asked for, or there is no layer.
    """
    if not layers:
        raise ValueError("no layer was quantized: there is no mean of their errors")
    values = errors(layers, field)
    if values is None:
        raise ValueError(
            f"there is no {field}: layers are compared with {COMPARED[field]} only for a report "
            "that is asked for, by wush_jax.quantize(..., return_report=True)"
        )
    return math.exp(sum(math.log(max(value, 1e-30)) for value in values) / len(values))


def transform_cost(config: LayerConfig, outputs: Sequence[int]) -> float:
    """Multiplications of the online transform, as a share of the products that follow it.

    Each of K features takes D of them for the transform, once for all layers that share it, and N
    for each layer's product: D / ΣN. The identity takes none; Hadamard, by additions, log2 D.
    """
    work = {"identity": 0, "hadamard": config.block.bit_length() - 1}
    return work.get(config.transform, config.block) / sum(outputs)
