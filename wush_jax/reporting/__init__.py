"""Tables, files, progress and figures: helpers that know nothing of quantization."""
