"""`LayerConfig`: how one layer is quantized, every default of `Config` resolved."""

from __future__ import annotations

import dataclasses

from wush_jax.formats import Format
from wush_jax.transforms import spec


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """How one layer is quantized, every default resolved.

    Attributes:
      format: weights' number format.
      act_format: activations' number format; None keeps them in floating point (weight-only).
      transform: one of `wush_jax.transforms.families.NAMES`, or "auto" before one is chosen.
      block: D, the transform's block size.
      strength: exponent of Λ in WUS and WUSH, 0 to 1.
      damping: share of the mean diagonal added to both second moments.
      pad: whether a K that the blocks do not divide is padded with zero features.
      gauges: how many equivalent transforms the quantizer chooses from, see `fitting.gauge`.
      solver: "rtn" or "gptq".
      scale_search: whether each group's scale is the best of several, `solvers.scale_search`.
      objective: "WA" or "W", see `wush_jax.solvers.objective`.
      refine: passes of `solvers.refine` after GPTQ.
      candidates: what transform "auto" chooses from, see `wush_jax.transforms.spec`.
    """

    format: Format
    act_format: Format | None
    transform: str
    block: int
    strength: float
    damping: float
    pad: bool
    gauges: int
    solver: str = "rtn"
    scale_search: bool = False
    objective: str = "WA"
    refine: int = 0
    candidates: tuple[str, ...] = ()

    @property
    def unit(self) -> int:
        """Features in the smallest piece of whole blocks and groups."""
        groups = [self.block, self.format.group_size]
        if self.act_format is not None:
            groups.append(self.act_format.group_size)
        return max(groups)  # all are powers of two

    def padded(self, features: int, path: str) -> int:
        """K after padding to whole blocks and groups.

        Raises:
          ValueError: K does not fit and ``pad`` is off.
        """
        unit = self.unit
        if features % unit and not self.pad:
            raise ValueError(
                f"{path}: K={features} in-features do not split into blocks of {unit} (transform "
                f"block {self.block}, {self.format} groups of {self.format.group_size}); "
                f"set pad=True, choose a smaller transform_block, or Rule({path!r}, skip=True)"
            )
        return -(-features // unit) * unit

    def moment_block(self, features: int) -> int:
        """How much of E[x xᵀ] is needed: blocks of so many features, K for all of it."""
        if self.solver == "gptq":
            return features
        widest = max((c.block for c in spec.parse_all(self.candidates)), default=0)
        if self.scale_search or self.transform == "auto":
            return max(self.unit, widest if features % max(widest, 1) == 0 else 0)
        return self.block
