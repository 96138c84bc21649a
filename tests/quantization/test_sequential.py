"""Sequential calibration of a stack of blocks, against one pass and against doing it by hand."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support.smallest_stack import CONFIG, KEY, MIX, PAIR, Mixing, X
from wush_jax import Config, Report, Rule
from wush_jax.layers import trees
from wush_jax.quantization.sequential.blocks import quantize_blocks


class Layer(nn.Module):
    """A gated residual block; like many it returns something beside its output."""

    @nn.compact
    def __call__(self, x):
        normed = nn.LayerNorm()(x)
        gate, up = (nn.Dense(32, name=name)(normed) for name in ("gate", "up"))
        return x + nn.Dense(32, name="down")(nn.silu(gate) * up), None


class Decoder(nn.Module):
    """The stack by itself, one path deeper."""

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = Layer(name=f"layer_{i}")(x)
        return x


class Model(nn.Module):
    """The stack between an embedding and a head."""

    @nn.compact
    def __call__(self, tokens):
        x = Decoder(name="decoder")(nn.Embed(50, 32, name="embed")(tokens))
        return nn.Dense(50, name="lm_head")(x)


def first(module, x):
    return module(x)[0]


run_layer, run_mixing = (
    jax.jit(functools.partial(wush_jax.apply, module)) for module in (Layer(), Mixing())
)


TOKENS = jax.random.randint(KEY, (3, 4, 16), 0, 50)
PARAMS: Any = jax.jit(Model().init)(KEY, TOKENS[0])["params"]
STACK = {
    "embed": lambda params, tokens: params["embed"]["embedding"][tokens],
    "blocks": {f"decoder/layer_{i}": Layer() for i in range(2)},
    "call": first,
    "config": CONFIG,
}


@pytest.fixture(scope="module")
def one_pass():
    return wush_jax.quantize(PARAMS, TOKENS, model=Model(), config=CONFIG, return_report=True)


def mismatch(some: Any, others: Any) -> float:
    """Fraction of the codes' bytes that differ, over all layers."""
    pairs = zip(*(trees.quantized_kernels(q).values() for q in (some, others)), strict=True)
    return float(np.mean([np.mean(np.asarray(a.codes != b.codes)) for a, b in pairs]))


def test_behind_float_blocks_it_is_the_one_pass(one_pass):
    expected, expected_report = one_pass
    q, report = quantize_blocks(
        PARAMS, TOKENS, **STACK, quantized_inputs=False, offload=False, return_report=True
    )
    assert jax.tree.structure(q) == jax.tree.structure(expected)
    assert mismatch(q, expected) < 5e-3  # float rounding in another order
    assert q["embed"]["embedding"] is PARAMS["embed"]["embedding"]
    for row, wanted in zip(report.layers, expected_report.layers, strict=True):
        assert (row.path, row.shares, row.tokens) == (wanted.path, wanted.shares, 3 * 4 * 16)
    assert set(report.skipped) == {"lm_head"}
    assert report.skipped == expected_report.skipped


def test_each_block_is_calibrated_behind_the_quantized_ones(one_pass):
    q = quantize_blocks(PARAMS, iter(TOKENS), **STACK)
    layers, before = q["decoder"], one_pass[0]["decoder"]
    assert mismatch(layers["layer_0"], before["layer_0"]) < 5e-3  # both see the float embedding
    assert mismatch(layers["layer_1"], before["layer_1"]) > 0.02

    inputs = (STACK["embed"](PARAMS, tokens) for tokens in TOKENS)
    behind = [run_layer(layers["layer_0"], x)[0] for x in inputs]
    alone = PARAMS["decoder"]["layer_1"]
    by_hand = wush_jax.quantize(alone, behind, model=Layer(), config=CONFIG)
    assert mismatch(layers["layer_1"], by_hand) < 5e-3


def test_fits_what_really_reaches_a_block():
    """The first block rounds its quiet channels away: its float outputs mislead the second one."""
    loud = jnp.arange(32) % 8 == 0
    kernel = PAIR["a"]["mix"]["kernel"] * jnp.where(loud, 1 / 12, 1)[:, None]
    params, x = (
        {**PAIR, "a": {"mix": {"kernel": kernel}}},
        X * jnp.where(loud, 60, 1)[None, None, None],
    )
    config = Config(gauges=1, sample_tokens=32, rules=(Rule("^a/", transform="identity"),))
    sequential, one_pass = (
        quantize_blocks(params, x, **{**MIX, "config": config}, quantized_inputs=behind)
        for behind in (True, False)
    )
    reaches = run_mixing(sequential["a"], x)
    exact = run_mixing(PAIR["b"], reaches)

    def error(q):
        return float(jnp.sum((run_mixing(q["b"], reaches) - exact) ** 2))

    assert error(sequential) < 0.6 * error(one_pass)


def test_masks_and_extras_go_with_their_batch():
    real = jnp.arange(16)[None, None] < jnp.array([3, 7])[:, None, None]
    mask = jnp.broadcast_to(real, (2, 4, 16)).astype(jnp.float32)
    clean = [{"x": x, "mask": m} for x, m in zip(X, mask, strict=True)]
    garbage = [{**b, "x": jnp.where(b["mask"][..., None] == 0, 1e3, b["x"])} for b in clean]
    options = {
        **MIX,
        "embed": lambda params, batch: (batch["x"], batch["mask"]),
        "call": lambda module, x, extra: module(x) * extra[..., None],
        "mask": lambda batch: batch["mask"],
        "return_report": True,
    }
    q, report = quantize_blocks(PAIR, clean, **options)
    same, _ = quantize_blocks({"params": PAIR}, garbage, **options)
    assert [(row.path, row.tokens) for row in report.layers] == [("a/mix", 40), ("b/mix", 40)]
    jax.tree.map(np.testing.assert_array_equal, {"params": q}, same)


def test_rules_see_full_paths_and_only_unused_ones_are_reported(monkeypatch):
    # the check of annotations is a frame more, and the warning is to name the caller's
    monkeypatch.setattr(Report, "warn", inspect.unwrap(Report.warn))
    rules = (Rule("^b/mix$", transform="hadamard"), Rule("^a/", skip=True), Rule("no_such"))
    config = Config(gauges=1, sample_tokens=32, rules=rules)
    with pytest.warns(UserWarning, match="'no_such' matched no layer") as caught:
        q, report = inspect.unwrap(quantize_blocks)(
            PAIR, X, **{**MIX, "config": config}, return_report=True
        )
    assert [warning.filename for warning in caught] == [__file__]
    assert report.unused_rules == ("no_such",)
    assert report.skipped == {"a/mix": "rule '^a/'"}
    assert q["a"]["mix"]["kernel"] is PAIR["a"]["mix"]["kernel"]
    assert q["b"]["mix"]["kernel"].transform_name == "hadamard"


def test_equal_blocks_share_one_program():
    """Though each quantized kernel names the full path of the layer that it shares T with."""
    traced = []

    def call(module, x):
        if module.name is None:  # the block by itself, run for the next one's inputs
            traced.append(module)
        return module(x)[0]

    names = [f"layer_{i}" for i in range(3)]
    params = dict.fromkeys(names, PARAMS["decoder"]["layer_0"])
    stack = {**MIX, "blocks": {name: Layer(name=name) for name in names}}
    q = quantize_blocks(params, X, **stack, call=call)
    assert [q[n]["up"]["kernel"].shared_input for n in names] == [f"{n}/gate" for n in names]
    assert len(traced) == 2  # once in floating point, for shapes, and once quantized


def _refused(params: Any = PAIR, batches: Any = X, **changes: Any):
    return lambda: quantize_blocks(params, batches, **{**MIX, **changes})


EXTRA = PAIR["a"]["mix"]
REFUSED = {
    "no batch": (_refused(batches=[]), "at least one batch"),
    "no block": (_refused(blocks={}), "blocks is empty"),
    "missing path": (
        _refused(PARAMS, blocks={"decoder/layer_7": Layer()}),
        "'decoder/layer_7': the params hold no module .* they hold decoder/layer_0, decoder/layer",
    ),
    "block in a block": (
        _refused(PARAMS, blocks={"decoder": Decoder(), "decoder/layer_0": Layer()}),
        "decoder/layer_0: this block lies inside the block decoder",
    ),
    "kernel in no block": (
        _refused({**PAIR, "proj": EXTRA}),
        r"proj: this kernel lies in none of the blocks \(a, b\).* Rule\('proj', skip=True\)",
    ),
    "all skipped": (
        _refused(config=Config(rules=(Rule("mix", skip=True),))),
        r"no linear layer to quantize was found \(kept in float: a/mix, b/mix\)",
    ),
    "output is a pair": (_refused(call=lambda m, x: (m(x), x)), "a: the block returns .* call="),
    "unseen layer": (
        _refused({**PAIR, "a": {"mix": EXTRA, "idle": EXTRA}}),
        "a/idle: this kernel was never seen",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_path(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
