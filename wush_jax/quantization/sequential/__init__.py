"""Quantizing a stack of blocks, each calibrated behind quantized ones."""
