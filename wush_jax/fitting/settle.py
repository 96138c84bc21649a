"""Waiting for LAPACK where it must be waited for."""

from __future__ import annotations

from typing import TypeVar

import jax

Tree = TypeVar("Tree")


def settle(tree: Tree) -> Tree:
    """``tree``, and on the CPU only once it is computed.

    XLA's CPU client can deadlock when LAPACK calls queue up behind other work. Nothing is copied,
    and other devices, whose work stays queued, are not waited for.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" else tree
