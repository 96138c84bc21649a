"""Training: whole chunks of steps in one compiled call, cut by a count of steps or by the clock.

The text lies on the device as bytes and windows are cut there, so that a step needs nothing from
the host. Which windows step i sees depends on the seed and on i alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from examples.lm.model import Decoder
from examples.lm.recipes import Recipe
from examples.lm.text import random_windows

Params = Mapping[str, Any]


class State(NamedTuple):
    """What a step changes."""

    params: Params
    optimizer: optax.OptState


@dataclass(frozen=True)
class Snapshot:
    """Where training stands after a chunk of steps.

    Attributes:
      step: optimizer steps so far.
      progress: share of the steps or of the time that is used up, whichever is larger; 1 at the
        end.
      loss: mean over the chunk's steps, nats a byte.
      params: the parameters. The next chunk takes their buffers: use them before it, or copy.
    """

    step: int
    progress: float
    loss: float
    params: Params


def loss_fn(
    model: Decoder, params: Params, windows: Int[Array, "B T"], key: PRNGKeyArray | None = None
) -> Float[Array, ""]:
    """Mean negative log-likelihood of each byte after the first, nats; float32.

    Args:
      key: for dropout; None leaves it out.
    """
    rngs = None if key is None else {"dropout": key}
    inputs = windows[:, :-1]
    logits: Any = model.apply({"params": params}, inputs, train=key is not None, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def held_out_loss(
    model: Decoder, params: Params, batches: Iterable[Int[np.ndarray, "B T"]]
) -> float:
    """`loss_fn` without dropout over equal batches, nats a byte."""
    return float(np.mean([_loss(model, params, batch) for batch in batches]))


_loss = jax.jit(loss_fn, static_argnums=0)


def optimizer() -> optax.GradientTransformation:
    """AdamW without its learning rate, which `train` multiplies in."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95),
        optax.add_decayed_weights(
            0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
    )


def learning_rate(recipe: Recipe, step: Array, progress: Array) -> Float[Array, ""]:
    """Up over the first steps, down along a cosine of the progress."""
    warmup = jnp.minimum((step + 1).astype(jnp.float32) / recipe.warmup, 1.0)
    return warmup * optax.cosine_decay_schedule(recipe.learning_rate, 1, alpha=0.02)(progress)


def train(
    recipe: Recipe,
    text: UInt8[np.ndarray, " L"],
    *,
    dtype: Any = jnp.float32,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
) -> Iterator[Snapshot]:
    """Trains a fresh model; one `Snapshot` for every chunk of steps.

    Args:
      recipe: the model, and how to train it.
      text: bytes to learn from.
      dtype: of products; parameters and optimizer state are float32.
      seed: of the initial parameters, the windows and dropout.
      steps: in place of the recipe's; made up to whole chunks.
      minutes: the wall-clock time after which to end, compilation included. The learning rate
        follows the time where that is what ends first, and comes down all the same; the number
        of steps, and so the result, then depends on the machine.
    """
    started = time.perf_counter()
    model = Decoder(recipe.model, dtype)
    steps = recipe.steps if steps is None else steps
    init_key, key = jax.random.split(jax.random.key(seed))
    device_text = jnp.asarray(text)
    window = jnp.zeros((1, recipe.model.context), jnp.int32)
    params = jax.jit(model.init)(init_key, window)["params"]
    state = State(params, jax.jit(optimizer().init)(params))
    run = _chunk(model, recipe).lower(state, device_text, key, 0, 0.0, 0.0).compile()

    def used(seconds: float) -> float:
        return 0.0 if minutes is None else seconds / (60 * minutes)

    step, start, duration = 0, used(time.perf_counter() - started), 0.0
    while start < 1.0:
        clock = time.perf_counter()
        end = max((step + recipe.chunk) / steps, used(clock - started + duration))
        if end >= 1.0 or used(clock - started + 2 * duration) > 1.0:  # another would be too late
            end = 1.0
        state, loss = run(state, device_text, key, step, start, end)
        step += recipe.chunk
        yield Snapshot(step, end, float(loss), state.params)
        duration, start = time.perf_counter() - clock, end


def _chunk(model: Decoder, recipe: Recipe) -> Any:
    """A jitted function: ``recipe.chunk`` steps from a state, the progress running between two."""
    update = optimizer().update

    def run(
        state: State,
        text: UInt8[Array, " L"],
        key: PRNGKeyArray,
        first: Array,
        start: Array,
        end: Array,
    ) -> tuple[State, Array]:
        def step(state: State, i: Array) -> tuple[State, Array]:
            window_key, dropout_key = jax.random.split(jax.random.fold_in(key, first + i))
            length = recipe.model.context + 1
            windows = random_windows(text, window_key, recipe.batch_size, length)
            loss, gradient = jax.value_and_grad(loss_fn, argnums=1)(
                model, state.params, windows, dropout_key
            )
            updates, moments = update(gradient, state.optimizer, state.params)
            progress = start + (end - start) * i.astype(jnp.float32) / recipe.chunk
            rate = learning_rate(recipe, first + i, progress)
            params: Any = optax.apply_updates(state.params, optax.tree.scale(-rate, updates))
            return State(params, moments), loss

        state, losses = jax.lax.scan(step, state, jnp.arange(recipe.chunk))
        return state, losses.mean()

    return jax.jit(run, donate_argnums=0)
