"""The layer shapes that are benchmarked, and the order in which they are.

Sizes from the models' public configs (config.json of meta-llama/Llama-3.1-8B and Qwen/Qwen3-8B on
huggingface.co). Query, key and value are one layer, and so are gate and up: N is their sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder layer with grouped-query attention and SwiGLU."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    def layers(self) -> dict[str, tuple[int, int]]:
        """Name -> (K in-features, N out-features)."""
        attention = self.heads * self.head_dim
        return {
            "gate_up": (self.hidden, 2 * self.intermediate),
            "down": (self.intermediate, self.hidden),
            "qkv": (self.hidden, attention + 2 * self.kv_heads * self.head_dim),
            "o": (attention, self.hidden),
        }


MODELS = {
    "llama-3.1-8b": Architecture(4096, 32, 8, 128, 14336),
    "qwen3-8b": Architecture(4096, 32, 8, 128, 12288),
    "tiny": Architecture(128, 4, 2, 32, 256),  # a size for trying the benchmarks without a GPU
}
TOKENS = (4096, 16, 1024, 1, 64, 16384, 8, 256)  # the most telling first
WIDE_LAYERS = ("gate_up", "down")  # with D = 128 too, from WIDE_TOKENS tokens up
WIDE_BLOCK, WIDE_TOKENS = 128, 1024


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: M tokens through a layer with transform blocks of D."""

    model: str
    layer: str
    M: int
    K: int
    N: int
    D: int

    def __str__(self) -> str:
        return f"{self.model} {self.layer} M={self.M} K={self.K} N={self.N} D={self.D}"

    @property
    def flops(self) -> int:
        """Of the product; the transform's 2 M K D are not counted."""
        return 2 * self.M * self.N * self.K

    def bytes(self, weight_bits: float, transform: bool = True) -> float:
        """What the layer must move: x and y in bf16, the weights, and the bf16 transform."""
        weights = self.N * self.K * weight_bits / 8
        return 2 * self.M * (self.K + self.N) + weights + (2 * self.K * self.D if transform else 0)


def cases(
    models: Sequence[str],
    tokens: Sequence[int] = TOKENS,
    layers: Sequence[str] | None = None,
    blocks: Sequence[int] = (32, WIDE_BLOCK),
) -> Iterator[Case]:
    """Rows, the most important first: model by model, all its layers at the first M, and so on.

    D = 128 follows D = 32 for two layers and M >= 1024 only; any other D runs everywhere.

    Raises:
      ValueError: an unknown model or layer.
    """
    for model in models:
        if model not in MODELS:
            raise ValueError(f"unknown model {model!r}; there are {', '.join(MODELS)}")
        sizes = MODELS[model].layers()
        for name in set(layers or ()) - set(sizes):
            raise ValueError(f"unknown layer {name!r}; there are {', '.join(sizes)}")
        for M in tokens:
            for layer, (K, N) in sizes.items():
                for D in blocks:
                    wide = layer in WIDE_LAYERS and M >= WIDE_TOKENS
                    if (layers is None or layer in layers) and (wide or D != WIDE_BLOCK):
                        yield Case(model, layer, M, K, N, D)
