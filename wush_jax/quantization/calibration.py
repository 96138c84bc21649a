"""`Calibration`: what one pass over the data leaves, enough to quantize in many ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wush_jax.config import Config
from wush_jax.frontends.linen.discover import Layer
from wush_jax.quantization.plan import Plan
from wush_jax.statistics.running import Statistics


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Statistics of every input, made by `wush_jax.calibrate`.

    Attributes:
      found: the linear layers that each kind of batch reached.
      called: paths of the modules that ran.
      statistics: path of an input's first reader -> what it read.
      sources: path of every layer -> path under which ``statistics`` has its input.
    """

    found: tuple[Mapping[str, Layer], ...]
    called: frozenset[str]
    statistics: Mapping[str, Statistics]
    sources: Mapping[str, str]

    def plan(self, config: Config, params: Mapping[str, Any]) -> Plan:
        """What ``config`` makes of these layers.

        Raises:
          ValueError: it wants a layer that was skipped in calibration, or as `Plan.add`,
            `Plan.close`.
        """
        planned = Plan(config)
        planned.called |= self.called
        for found in self.found:
            planned.add(found)
        planned.close(params)
        for path in planned.layers:
            if path not in self.sources:
                raise ValueError(
                    f"{path}: a rule skipped this layer when its inputs were calibrated; calibrate "
                    "with the rules that quantize will use"
                )
        return planned
