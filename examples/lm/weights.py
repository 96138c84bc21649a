"""Weights as a safetensors file in bfloat16, with the sizes of the model in its metadata.

The format is a JSON header and the raw numbers: written and read here with NumPy alone, so that
the example needs no further package. Other readers of safetensors understand the files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from examples.lm.model import Decoder, LmConfig
from wush_jax.files import write_atomically

_BFLOAT16 = np.dtype(jnp.bfloat16)


def save(
    path: Path, config: LmConfig, params: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """Writes parameters, rounded to bfloat16; an existing file is replaced whole or not at all.

    Args:
      training: plain facts about where the weights come from, kept beside them.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(flat[name]).astype(_BFLOAT16) for name in sorted(flat)}
    metadata = {"config": json.dumps(dataclasses.asdict(config)), "training": json.dumps(training)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = [len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays.values())]
    write_atomically(path, lambda temporary: temporary.write_bytes(b"".join(parts)))


def load(path: Path, dtype: Any = jnp.float32) -> tuple[Decoder, dict[str, Any], dict[str, Any]]:
    """The model, its parameters (float32, of bfloat16 values), and what `save` was told.

    Args:
      dtype: of the model's products.

    Raises:
      ValueError: a file that `save` did not write, or whose tensors are not those of its config.
    """
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__")
        config = LmConfig(**json.loads(metadata["config"]))
        training = json.loads(metadata["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of weights that examples.train_lm wrote") from error
    flat = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[start:end], _BFLOAT16).reshape(entry["shape"])
        flat[name] = jnp.asarray(array.astype(np.float32))
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    model = Decoder(config, dtype)
    _check(path, model, params)
    return model, params, training


def _check(path: Path, model: Decoder, params: Mapping[str, Any]) -> None:
    window = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), window)["params"]
    want, found = _shapes(wanted), _shapes(params)
    for name in sorted(set(want) | set(found)):
        if want.get(name) != found.get(name):
            raise ValueError(
                f"{path}: {name} is {found.get(name)}; its config takes {want.get(name)}"
            )


def _shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}
