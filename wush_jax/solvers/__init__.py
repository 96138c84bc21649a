"""From a float kernel and a transform to a `QuantizedKernel`'s arrays."""
