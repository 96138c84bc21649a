"""GPU kernels behind `wush_jax.ops`. None yet: every layer runs the XLA reference."""
