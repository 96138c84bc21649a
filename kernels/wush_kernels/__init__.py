"""GPU kernels behind `wush_jax.ops`, one subpackage an operation; private to it, see README.md."""
