"""Which layers will be quantized, with what settings, and which of them share a transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from wush_jax.config import Config, LayerConfig, rules
from wush_jax.frontends.linen.discover import Layer, discover
from wush_jax.layers import trees
from wush_jax.layers.contraction import Contraction


@dataclasses.dataclass
class Plan:
    """Grows batch by batch, for a later batch may reach layers that earlier ones did not.

    Attributes:
      config: what the user asked for.
      layers: module path -> layer, of the layers to quantize.
      configs: module path -> its settings.
      leaders: module path -> the first layer that reads the same array with the same settings;
        its transform, fitted on all of them, serves all.
      skipped: module path -> why it stays in floating point.
      called: paths of the modules that ran, linear or not.
    """

    config: Config
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)
    configs: dict[str, LayerConfig] = dataclasses.field(default_factory=dict)
    leaders: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    called: set[str] = dataclasses.field(default_factory=set)

    def groups(self) -> dict[str, list[str]]:
        """Leader's path -> paths that share its transform, itself first."""
        grouped: dict[str, list[str]] = {}
        for path, leader in self.leaders.items():
            grouped.setdefault(leader, []).append(path)
        return grouped

    def shared_input(self, path: str) -> str | None:
        """The leader's path if ``path`` shares its transform with another layer."""
        leader = self.leaders[path]
        return leader if list(self.leaders.values()).count(leader) > 1 else None

    def reached(self, model: nn.Module, variables: Mapping, batch: Any) -> Mapping[str, Layer]:
        """The linear layers that a batch reaches in a model."""
        discovery = discover(model, variables, batch, lambda path: not self._skips(path))
        self.called |= discovery.called
        return discovery.layers

    def _skips(self, path: str) -> bool:
        rule = rules.match(path, self.config)
        return rule is not None and rule.skip

    def add(self, found: Mapping[str, Layer]) -> None:
        """Takes in the layers that a batch reached.

        Raises:
          ValueError: a K that does not split, or batches that disagree on who shares an input.
        """
        first: dict[Any, str] = {}
        for path, layer in found.items():
            rule = rules.match(path, self.config)
            if rule is not None and rule.skip:
                self.skipped[path] = f"rule {rule.pattern!r}"
                continue
            config = self.config.layer(rule)
            config.padded(layer.features, path)  # refuses a K that does not fit
            group = (layer.inputs, config) if self.config.share_inputs else path
            leader = first.setdefault(group, path)
            if self.leaders.setdefault(path, leader) != leader:
                raise ValueError(
                    f"{path}: shares its input with {self.leaders[path]} in one calibration batch "
                    f"and with {leader} in another; set share_inputs=False"
                )
            self.layers.setdefault(path, layer)
            self.configs[path] = config

    def close(self, params: Mapping) -> None:
        """Accounts for every kernel in the params, once all batches are through.

        Raises:
          ValueError: a kernel that no batch reached and no rule skips, or nothing to quantize.
        """
        for path in trees.kernel_paths(params):
            if path in self.layers or path in self.skipped:
                continue
            rule = rules.match(path, self.config)
            if rule is not None and rule.skip:
                self.skipped[path] = f"rule {rule.pattern!r}"
            elif path in self.called:
                self.skipped[path] = "not a Dense, DenseGeneral or Einsum layer"
            else:
                raise ValueError(
                    f"{path}: this kernel was never seen in calibration: no batch reached its "
                    f"layer; feed it, or skip it with Rule({path!r}, skip=True)"
                )
        if not self.layers:
            skipped = ", ".join(self.skipped) or "none"
            raise ValueError(f"no linear layer to quantize was found (kept in float: {skipped})")

    def unused_rules(self) -> tuple[str, ...]:
        """Patterns of the user's rules that were the first match of no layer."""
        seen = (*self.layers, *self.skipped)
        used = {rules.match(path, self.config) for path in seen}
        return tuple(rule.pattern for rule in self.config.rules if rule not in used)


def captured_layers(params: Mapping, batch: Any) -> dict[str, Layer]:
    """The layers of a model-free batch: a mapping from module path to that module's input.

    Raises:
      ValueError: not a mapping, a path without a kernel, or an input that does not fit its kernel.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            "without a model each calibration batch maps module paths to their inputs, "
            f"not {type(batch).__name__}; or pass model="
        )
    kernels = trees.kernel_paths(params)
    found = {}
    for name, x in batch.items():
        path = str(name)
        if path not in kernels:
            some = ", ".join(list(kernels)[:6])
            raise ValueError(
                f"{path}: the params hold no kernel of this path; they hold {some}, ..."
            )
        found[path] = _captured_layer(path, x, tuple(kernels[path].shape))
    return found


def _captured_layer(path: str, x: Any, shape: tuple[int, ...]) -> Layer:
    """The layer whose kernel's leading axes are the trailing axes of x."""
    for axes in range(min(x.ndim, len(shape) - 1), 0, -1):
        if tuple(x.shape[x.ndim - axes :]) == shape[:axes]:
            contracted = tuple(range(x.ndim - axes, x.ndim))
            contraction = Contraction.dense_general(x.ndim, contracted, (), len(shape) - axes)
            return Layer(path, contraction, shape, (id(x),))
    raise ValueError(
        f"{path}: a captured input of shape {tuple(x.shape)} does not fit the kernel {shape}; "
        "its trailing axes must be the kernel's leading ones"
    )
