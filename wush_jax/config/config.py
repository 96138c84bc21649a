"""`Config`: what to quantize and how, for a whole model."""

from __future__ import annotations

import dataclasses
from typing import Literal

from wush_jax.config.layer_config import LayerConfig
from wush_jax.config.rules import LAYER_OPTIONS, Rule, match
from wush_jax.formats import Format, get_format
from wush_jax.transforms import families, hadamard, spec

DEFAULT_CANDIDATES = (
    "hadamard",
    "identity",
    "diagonal_hadamard",
    "wus",
    "wush",
    "wush@0.75",
    "hadamard-128",
    "wush-128",
    "wush-128@0.75",
)
_CHOICES = {
    "transform": (*families.NAMES, "auto"),
    "solver": ("rtn", "gptq"),
    "objective": ("WA", "W"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How `wush_jax.quantize` treats a model.

    Attributes:
      format: "mxfp4", "nvfp4", "int4", "int8", with a scale rule after a slash ("mxfp4/ocp").
      act_format: the activations' format; "same" as the weights, or None for weight-only.
      transform: "wush", "wus", "hadamard", "diagonal_hadamard", "diagonal", "random", "identity";
        or "auto", per layer the one of ``candidates`` with the least output error on held-back
        tokens.
      transform_block: D, a power of two from 2 to 128 and up; None takes the format's group size.
      strength: WUSH's exponent, T ∝ Λ^(-strength/4).
      solver: "rtn", round to nearest; "gptq", whose roundings make up for one another: more
        accurate, slower to quantize, K x K numbers an input in calibration, and no cost at
        inference.
      scale_search: choose each weight group's scale among several by what it does to the output.
      objective: what scale search and GPTQ minimise: "WA" reckons with the rounding of activations
        too, "W" (arXiv 2512.00956) does not. The same for weight-only.
      refine: passes of coordinate descent after GPTQ.
      candidates: what transform "auto" chooses from: names, with D and strength where they are not
        the defaults ("wush-128", "wush-128@0.75").
      damping: share of the mean diagonal added to both second moments.
      share_inputs: layers that read the very same array share one transform.
      rules: tried in order, first match wins; `DEFAULT_RULES` (output heads stay float) follow.
      pad: pad a K that the blocks do not divide with zero features, instead of refusing it.
      gauges: how many equivalent transforms the quantizer chooses from (`fitting.gauge`); 1: none.
      sample_tokens: calibration tokens kept per layer to measure its error with the true quantizer.

    Raises:
      ValueError: an unknown name, or a value out of range, here or in a rule.
    """

    format: str | Format = "mxfp4"
    act_format: str | Format | Literal["same"] | None = "same"
    transform: str = "wush"
    transform_block: int | None = None
    strength: float = 1.0
    solver: str = "rtn"
    scale_search: bool = False
    damping: float = 1e-2
    share_inputs: bool = True
    rules: tuple[Rule, ...] = ()
    pad: bool = False
    gauges: int = 16
    objective: Literal["WA", "W"] = "WA"
    refine: int = 4
    candidates: tuple[str, ...] = DEFAULT_CANDIDATES
    sample_tokens: int = 512

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "candidates", tuple(self.candidates))
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise ValueError(f"rules holds {rule!r}; each one must be a wush_jax.Rule")
        if self.sample_tokens < 1:
            raise ValueError(f"sample_tokens={self.sample_tokens}; keep at least one token")
        self.layer()  # refuses bad values now rather than after calibration
        for rule in self.rules:
            self.layer(rule)

    def rule(self, name: str) -> Rule | None:
        """The rule that a layer falls under: the first of ``rules``, then of `DEFAULT_RULES`."""
        return match(name, self.rules)

    def layer(self, rule: Rule | None = None) -> LayerConfig:
        """The settings of a layer that ``rule`` matched.

        Raises:
          ValueError: an unknown name or a value out of range.
        """
        options = {name: getattr(self, name) for name in LAYER_OPTIONS}
        options |= dict(rule.options) if rule is not None else {}
        for name, known in _CHOICES.items():
            if options[name] not in known:
                raise ValueError(f"unknown {name} {options[name]!r}; there are {', '.join(known)}")
        if not 0 <= options["strength"] <= 1:
            raise ValueError(f"strength={options['strength']}; it lies between 0 and 1")
        if not options["damping"] >= 0:
            raise ValueError(f"damping={options['damping']}; it is zero or positive")
        if options["refine"] < 0:
            raise ValueError(f"refine={options['refine']} passes; zero or more")
        auto = options["transform"] == "auto"
        candidates = tuple(options["candidates"]) if auto else ()
        if auto and not spec.parse_all(candidates):  # refuses what it cannot read
            raise ValueError("transform='auto' needs candidates to choose from; there are none")
        if options["gauges"] < 1:
            raise ValueError(f"gauges={options['gauges']}; at least 1 (the transform as it is)")
        weight_format = get_format(options["format"])
        act_format = options["act_format"]
        if act_format == "same":
            act_format = weight_format
        elif act_format is not None:
            act_format = get_format(act_format)
        block = options["transform_block"]
        block = weight_format.group_size if block is None else block
        hadamard.signs(block)  # refuses a D that is not a power of two
        return LayerConfig(
            format=weight_format,
            act_format=act_format,
            transform=options["transform"],
            block=block,
            strength=options["strength"],
            damping=options["damping"],
            pad=options["pad"],
            gauges=options["gauges"],
            solver=options["solver"],
            scale_search=bool(options["scale_search"]),
            objective=options["objective"],
            refine=options["refine"],
            candidates=candidates,
        )
