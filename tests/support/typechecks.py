"""Checks annotations of `wush_jax` and `wush_kernels`, shapes and dtypes included, at each call.

jaxtyping's import hook puts beartype under every function and every dataclass's ``__init__`` that
is imported after `install`. A name such as ``K`` means one number within a call.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jax
import jaxtyping

KERNELS = Path(__file__).parents[2] / "kernels"

# Triton compiles the source of the functions in these, which a wrapper would hide, and reads their
# annotations (tl.constexpr) itself.
UNCHECKED = frozenset(
    {
        "wush_kernels.expand.triton_kernel",
        "wush_kernels.quantized_matmul.block_scaled_kernel",
        "wush_kernels.quantized_matmul.decode_kernel",
        "wush_kernels.transform_quantize.e2m1",
        "wush_kernels.transform_quantize.groups",
        "wush_kernels.transform_quantize.rotate",
        "wush_kernels.transform_quantize.triton_kernel",
    }
)

_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # an int where a float is asked for


def install() -> None:
    """Has checked what is imported from here on."""
    files = (KERNELS / "wush_kernels").rglob("*.py")
    modules = {".".join(file.relative_to(KERNELS).with_suffix("").parts) for file in files}
    jaxtyping.install_import_hook(["wush_jax", *(modules - UNCHECKED)], f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker, as jaxtyping wants it: a decorator.

    JAX builds pytrees through ``__init__`` from whatever leaves a `jax.tree.map` returned (shapes,
    shardings, axes, tangents of integers): a dataclass registered with JAX is checked where all its
    leaves are arrays of numbers.
    """
    check = beartype.beartype(conf=_CONF)(function)
    if not function.__qualname__.endswith(".__init__"):
        return check
    signature = inspect.signature(function)

    @functools.wraps(check)
    def check_init(*args, **kwargs):
        self, *_ = args
        if jax.tree_util.default_registry.is_node(type(self)):
            given = signature.bind(*args, **kwargs).arguments
            fields = (f.name for f in dataclasses.fields(self) if not f.metadata.get("static"))
            leaves = jax.tree.leaves([given.get(name) for name in fields])
            if not leaves or not all(_is_numbers(leaf) for leaf in leaves):
                return None
        return check(*args, **kwargs)

    return check_init


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.dtype != jax.dtypes.float0
