"""Any JAX function, by reading and rewriting the products in its traced program."""
