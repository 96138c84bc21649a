"""What to quantize and how."""

from wush_jax.config.config import Config, LayerConfig, Rule

__all__ = ["Config", "LayerConfig", "Rule"]
