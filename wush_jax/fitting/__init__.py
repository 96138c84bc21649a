"""From statistics and float kernels to a transform and a quantized kernel."""
