"""Params trees by path: their leaves, the layers' names, and the quantized kernels in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax.core import meta

from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized

# What Flax's own linear modules call their weight. It says nothing, and names leave it out.
FLAX_WEIGHT = "kernel"


def join(path: str, name: Any) -> str:
    """The path of a child; the root's path is the empty string."""
    return f"{path}/{name}" if path else str(name)


def layer_name(path: str) -> str:
    """A parameter's path as rules and reports have it: "layer_0/mlp/up/kernel" is "layer_0/mlp/up".

    Any other last name stays, "layer_0/mlp/gating_einsum". Names are as unique as paths are.
    """
    head, _, leaf = path.rpartition("/")
    return head if leaf == FLAX_WEIGHT else path


def is_variables(params: Any) -> bool:
    """Whether ``params`` is a whole variables dict rather than a bare params tree."""
    return isinstance(params, Mapping) and isinstance(params.get("params"), Mapping)


def as_variables(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """``params`` itself if it is a whole variables dict, else ``{"params": params}``."""
    return params if is_variables(params) else {"params": params}


def top_names(params: Any) -> frozenset[str]:
    """Names at the top of the params, of a whole variables dict or a bare tree; none of others."""
    return frozenset(as_variables(params)["params"]) if isinstance(params, Mapping) else frozenset()


def plain(tree: Any) -> Any:
    """Plain dicts, without Flax's partitioning boxes."""
    return meta.unbox(_thaw(tree))


def _thaw(tree: Any) -> Any:
    return {k: _thaw(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def walk(params: Mapping, prefix: str = "") -> Iterator[tuple[str, Mapping]]:
    """Every sub-mapping with its path, "layer_0/attention/query"; the root's is ""."""
    yield prefix, params
    for name, child in params.items():
        if isinstance(child, Mapping):
            yield from walk(child, join(prefix, name))


def leaves(params: Any) -> dict[str, Any]:
    """Path -> leaf, of any pytree; a `QuantizedKernel` is one."""
    if not isinstance(params, Mapping):
        return dict(_below("", params))
    return {
        path: leaf
        for parent, node in walk(params)
        for name, child in node.items()
        if not isinstance(child, Mapping)
        for path, leaf in _below(join(parent, name), child)
    }


def _below(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of what is no mapping: of a list, a tuple, a module; or the leaf itself."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(node, is_leaf=is_quantized)[0]:
        yield (join(path, path_of(keys)) if keys else path), leaf


def path_of(keys: tuple[Any, ...]) -> str:
    """JAX's key path as a path, "layers/0/w"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def matrices(params: Mapping) -> dict[str, Any]:
    """Layer's name -> leaf, of every leaf with two or more axes."""
    found = leaves(params).items()
    return {layer_name(p): leaf for p, leaf in found if len(getattr(leaf, "shape", ())) >= 2}


def flax_weights(params: Mapping) -> dict[str, Any]:
    """Layer's name -> weight, of everything that looks like one of Flax's own linear modules."""
    return {
        layer_name(path): leaf
        for path, leaf in leaves(params).items()
        if path.rpartition("/")[2] == FLAX_WEIGHT and len(getattr(leaf, "shape", ())) >= 2
    }


def quantized_kernels(params: Any) -> dict[str, QuantizedKernel]:
    """Layer's name -> quantized kernel, of a params tree or a whole variables dict."""
    inner = params["params"] if is_variables(params) else params
    return {layer_name(p): k for p, k in leaves(inner).items() if is_quantized(k)}


def replace_kernels(params: Mapping, kernels: Mapping[str, Any], prefix: str = "") -> dict:
    """A new tree with the leaves of these layers replaced; every other leaf is the same object."""
    out = {}
    for name, child in params.items():
        path = join(prefix, name)
        if isinstance(child, Mapping):
            out[name] = replace_kernels(child, kernels, path)
        else:
            out[name] = kernels.get(layer_name(path), child)
    return out


def dequantize(qparams: Any) -> Any:
    """Float kernels in the ORIGINAL basis, Tᵀ Q(T⁻ᵀ W), in the tree's own shape and dtypes.

    The model then runs as it is; activations are not quantized.

    Args:
      qparams: what `wush_jax.quantize` returned, or any other pytree with `QuantizedKernel`s.

    Returns:
      The same tree with an array [*stack, *kernel] in the place of each of them.
    """
    return jax.tree.map(
        lambda leaf: leaf.dequantize() if is_quantized(leaf) else leaf,
        qparams,
        is_leaf=is_quantized,
    )


def delete(arrays: Iterable[Any], *, after: Any) -> None:
    """Frees the device arrays among ``arrays`` once the tree ``after`` has been computed."""
    jax.block_until_ready(after)
    for array in arrays:
        if isinstance(array, jax.Array):
            array.delete()
