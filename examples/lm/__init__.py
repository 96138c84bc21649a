"""A small Llama-style language model over bytes, with its text, training and weights."""
