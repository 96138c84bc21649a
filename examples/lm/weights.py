"""Weights as a safetensors file in bfloat16, with the sizes of the model in its metadata."""

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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from examples.lm.model import Decoder, LmConfig
from wush_jax.reporting.files import write_atomically


def save(
    path: Path, config: LmConfig, params: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """Writes parameters, rounded to bfloat16; an existing file is replaced whole or not at all.

    Args:
      training: plain facts about where the weights come from, kept beside them.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(leaf).astype(jnp.bfloat16) for name, leaf in flat.items()}
    metadata = {"config": json.dumps(dataclasses.asdict(config)), "training": json.dumps(training)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def load(path: Path, dtype: Any = jnp.float32) -> tuple[Decoder, dict[str, Any], dict[str, Any]]:
    """The model, its parameters (float32, of bfloat16 values), and what `save` was told.

    Args:
      dtype: of the model's products.

    Raises:
      ValueError: a file that `save` did not write, or whose tensors are not those of its config.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            names = file.keys()
            flat = {name: file.get_tensor(name) for name in names}
        config = LmConfig(**json.loads(metadata["config"]))
        training = json.loads(metadata["training"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of weights that examples.train_lm wrote") from error
    flat = {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()}
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
