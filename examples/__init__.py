"""Worked examples: models the library is tried on, and scripts that try it."""
