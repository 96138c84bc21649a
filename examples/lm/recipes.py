"""Sizes of model that can be trained here, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass

from examples.lm.model import LmConfig


@dataclass(frozen=True)
class Recipe:
    """A model and its training.

    Attributes:
      model: sizes.
      batch_size: windows of ``model.context`` bytes a step.
      steps: optimizer steps, unless fewer are asked for or the time is up.
      learning_rate: its peak; it rises over ``warmup`` steps and falls along a cosine.
      chunk: steps in one call of the compiled function.
    """

    model: LmConfig
    batch_size: int
    steps: int
    learning_rate: float
    warmup: int
    chunk: int


RECIPES = {
    # 0.9 million parameters: minutes on two CPU cores.
    "cpu": Recipe(
        LmConfig(hidden_size=128, mlp_size=384, layers=4, heads=4, kv_heads=2, context=256),
        batch_size=16,
        steps=800,
        learning_rate=4e-3,
        warmup=50,
        chunk=10,
    ),
    # 3.9 million parameters, 7.8 MB in bfloat16: the weights that come with the example.
    "small": Recipe(
        LmConfig(
            hidden_size=256, mlp_size=768, layers=5, heads=8, kv_heads=2, context=256, dropout=0.05
        ),
        batch_size=128,
        steps=8000,
        learning_rate=3e-3,
        warmup=200,
        chunk=50,
    ),
    # 38 million parameters: minutes on one GPU.
    "gpu": Recipe(
        LmConfig(
            hidden_size=512, mlp_size=2048, layers=10, heads=8, kv_heads=2, context=512, dropout=0.2
        ),
        batch_size=64,
        steps=4000,
        learning_rate=1.5e-3,
        warmup=200,
        chunk=25,
    ),
}
