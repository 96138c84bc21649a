"""Blockwise transforms in closed form, and how good they are."""
