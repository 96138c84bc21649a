"""What quantization did, layer by layer."""
