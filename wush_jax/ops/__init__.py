"""The online operations of a quantized layer, and which code runs them."""
