"""The sentence encoder all-MiniLM-L6-v2 in plain Flax, with its weights and text to run it on."""
