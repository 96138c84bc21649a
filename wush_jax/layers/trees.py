"""Params trees by module path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax.core import meta

from wush_jax.layers.quantized_kernel import QuantizedKernel


def join(path: str, name: Any) -> str:
    """The path of a child; the root's path is the empty string."""
    return f"{path}/{name}" if path else str(name)


def plain(tree: Any) -> Any:
    """Plain dicts, without Flax's partitioning boxes."""
    return meta.unbox(_thaw(tree))


def _thaw(tree: Any) -> Any:
    return {k: _thaw(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def walk(params: Mapping, prefix: str = "") -> Iterator[tuple[str, Mapping]]:
    """Every sub-mapping with its module path, "layer_0/attention/query"; the root's is ""."""
    yield prefix, params
    for name, child in params.items():
        if isinstance(child, Mapping):
            yield from walk(child, join(prefix, name))


def kernel_paths(params: Mapping) -> dict[str, Any]:
    """Module path -> kernel, of every module with a kernel of two or more axes."""
    found = {}
    for path, module in walk(params):
        kernel = module.get("kernel")
        if kernel is not None and len(getattr(kernel, "shape", ())) >= 2:
            found[path] = kernel
    return found


def quantized_kernels(params: Mapping) -> dict[str, QuantizedKernel]:
    """Module path -> quantized kernel, of a params tree or a whole variables dict."""
    params = params["params"] if isinstance(params.get("params"), Mapping) else params
    return {p: k for p, k in kernel_paths(params).items() if isinstance(k, QuantizedKernel)}


def replace_kernels(params: Mapping, kernels: Mapping[str, Any], prefix: str = "") -> dict:
    """A new tree with the kernels of these module paths replaced; all else is the same object."""
    out = {}
    for name, child in params.items():
        if isinstance(child, Mapping):
            out[name] = replace_kernels(child, kernels, join(prefix, name))
        else:
            out[name] = kernels.get(prefix, child) if name == "kernel" else child
    return out
