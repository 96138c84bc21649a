"""`vmap` of operations on the rows of a matrix, which GPU kernels do not have by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap


def fold_rows(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``function(rows, other)`` with a rule for vmap.

    ``rows`` and the result are pytrees of arrays [M, ...] whose rows do not depend on one another.
    Where only the rows are mapped over, they are folded into M, and one kernel does them all;
    otherwise (experts, stacked layers) one kernel runs after another.
    """
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size: int, batched: Any, rows: Any, other: Any):
        leaves, tree = jax.tree.flatten((rows, other))
        flags = jax.tree.leaves(batched)
        count = len(jax.tree.leaves(rows))
        if all(flags[:count]) and not any(flags[count:]):
            folded = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
            out = mapped(folded, other)
            out = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        else:

            def one(sliced: list[Any]) -> Any:
                pieces = iter(sliced)
                full = [
                    next(pieces) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)
                ]
                return mapped(*jax.tree.unflatten(tree, full))

            out = jax.lax.map(one, [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag])
        return out, jax.tree.map(lambda _: True, out)

    return mapped
