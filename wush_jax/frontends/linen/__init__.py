"""Flax Linen models, by `flax.linen.intercept_methods`."""
