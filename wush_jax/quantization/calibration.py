"""`Calibration`: what one pass over the data leaves, enough to quantize in many ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from wush_jax.config import Config
from wush_jax.frontends.protocol import Discovery
from wush_jax.quantization.plan import Plan, planned
from wush_jax.statistics.running import Statistics


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Statistics of every input, made by `wush_jax.calibrate`.

    Attributes:
      found: what each kind of batch reached.
      statistics: name of an input's first reader -> what it read.
      sources: name of every layer -> name under which ``statistics`` has its input.
    """

    found: tuple[Discovery, ...]
    statistics: Mapping[str, Statistics]
    sources: Mapping[str, str]

    def plan(self, config: Config, expected: Collection[str]) -> Plan:
        """What ``config`` makes of these layers.

        Args:
          expected: names of the weights that must be accounted for, `FrontEnd.expected`.

        Raises:
          ValueError: a layer that no batch reached or that calibration skipped, or a K that does
            not split into blocks.
        """
        return planned(config, self.found, expected, self.sources)
