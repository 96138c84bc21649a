"""Linear layers and the quantized kernels that stand in their place."""
