"""Benchmarks: every figure is one command, see README.md."""
