"""The table of implementations: who is asked first, and who answers to which name."""

from __future__ import annotations

from wush_jax.ops.implementations.base import Implementation
from wush_jax.ops.implementations.bf16 import Bf16
from wush_jax.ops.implementations.block_scaled import BlockScaled
from wush_jax.ops.implementations.fp8 import Fp8, Fp8Mosaic, Fp8Precise
from wush_jax.ops.implementations.xla import Xla

REFERENCE = Xla()
_PREFERRED = (BlockScaled(), Fp8(), Bf16(), Fp8Mosaic(), Fp8Precise(), REFERENCE)

# Name -> implementation; of those that can run, the first one that runs unasked is taken.
IMPLEMENTATIONS: dict[str, Implementation] = {each.name: each for each in _PREFERRED}
