"""Flax front ends: capture a model's linear layers, and run them quantized."""
