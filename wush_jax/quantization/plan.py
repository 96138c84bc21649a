"""Which layers will be quantized, with what settings, and which of them share a transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from wush_jax.config import Config, LayerConfig, Rule
from wush_jax.frontends.protocol import Discovery, FrontEnd, Variables
from wush_jax.layers.layer import Layer


@dataclasses.dataclass
class Plan:
    """Grows batch by batch, for a later batch may reach layers that earlier ones did not.

    Keys are layers' names, see `wush_jax.layers.trees.layer_name`.

    Attributes:
      config: what the user asked for.
      layers: the layers to quantize.
      configs: their settings.
      leaders: name -> the first layer that reads the same array with the same settings; its
        transform, fitted on all of them, serves all.
      skipped: name -> why it stays in floating point.
      refused: name of a weight that was read, but not as a linear layer -> why.
    """

    config: Config
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)
    configs: dict[str, LayerConfig] = dataclasses.field(default_factory=dict)
    leaders: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def groups(self) -> dict[str, list[str]]:
        """Leader's name -> names that share its transform, itself first."""
        grouped: dict[str, list[str]] = {}
        for name, leader in self.leaders.items():
            grouped.setdefault(leader, []).append(name)
        return grouped

    def shared_input(self, name: str) -> str | None:
        """The leader's name if the layer shares its transform with another one."""
        leader = self.leaders[name]
        return leader if list(self.leaders.values()).count(leader) > 1 else None

    def reach(self, front: FrontEnd, variables: Variables, batch: Any) -> Discovery:
        """Takes in, and returns, what a batch reaches. Raises: as `add` and `FrontEnd.discover`."""
        found = front.discover(variables, batch, lambda name: _skipping(self._rule(name)) is None)
        self.add(found)
        return found

    def add(self, found: Discovery) -> None:
        """Takes in what a batch reached.

        Raises:
          ValueError: a K that does not split, or batches that disagree on who shares an input.
        """
        self.refused |= found.refused
        first: dict[Any, str] = {}
        for name, layer in found.layers.items():
            rule = self._rule(name)
            if (reason := _skipping(rule)) is not None:
                self.skipped[name] = reason
                continue
            config = self.config.layer(rule)
            config.padded(layer.features, name)  # refuses a K that does not fit
            group = (layer.inputs, config) if self.config.share_inputs else name
            leader = first.setdefault(group, name)
            if self.leaders.setdefault(name, leader) != leader:
                raise ValueError(
                    f"{name}: shares its input with {self.leaders[name]} in one calibration batch "
                    f"and with {leader} in another; set share_inputs=False"
                )
            self.layers.setdefault(name, layer)
            self.configs[name] = config

    def close(self, expected: Collection[str]) -> None:
        """Accounts for every weight that a front end expects, once all batches are through.

        Raises:
          ValueError: a weight that no batch reached and no rule skips, or nothing to quantize.
        """
        for name in expected:
            if name in self.layers or name in self.skipped:
                continue
            reason = _skipping(self._rule(name)) or self.refused.get(name)
            if reason is None:
                raise ValueError(
                    f"{name}: this kernel was never seen in calibration: no batch reached its "
                    f"layer; feed it, or skip it with Rule({name!r}, skip=True)"
                )
            self.skipped[name] = reason
        if not self.layers:
            skipped = ", ".join(self.skipped) or "none"
            raise ValueError(f"no linear layer to quantize was found (kept in float: {skipped})")

    def unused_rules(self) -> tuple[str, ...]:
        """Patterns of the user's rules that were the first match of no layer."""
        used = {self._rule(name) for name in (*self.layers, *self.skipped)}
        return tuple(rule.pattern for rule in self.config.rules if rule not in used)

    def _rule(self, name: str) -> Rule | None:
        return self.config.rule(name)


def _skipping(rule: Rule | None) -> str | None:
    """Why a layer stays in floating point, if the rule that it falls under says so."""
    return f"rule {rule.pattern!r}" if rule is not None and rule.skip else None


def planned(
    config: Config,
    found: Collection[Discovery],
    expected: Collection[str],
    sources: Mapping[str, str],
) -> Plan:
    """What ``config`` makes of layers that were found before.

    Args:
      found: of each kind of batch.
      expected: see `Plan.close`.
      sources: names of the layers whose inputs were calibrated.

    Raises:
      ValueError: it wants a layer that was skipped in calibration, or as `Plan.add`, `Plan.close`.
    """
    plan = Plan(config)
    for discovery in found:
        plan.add(discovery)
    plan.close(expected)
    for name in plan.layers:
        if name not in sources:
            raise ValueError(
                f"{name}: a rule skipped this layer when its inputs were calibrated; calibrate "
                "with the rules that quantize will use"
            )
    return plan
