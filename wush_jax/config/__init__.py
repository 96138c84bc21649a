"""What to quantize and how."""

from wush_jax.config.config import Config
from wush_jax.config.layer_config import LayerConfig
from wush_jax.config.rules import DEFAULT_RULES, Rule

__all__ = ["DEFAULT_RULES", "Config", "LayerConfig", "Rule"]
