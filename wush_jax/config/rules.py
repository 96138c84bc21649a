"""Which layers a setting is for: `Rule`, and the first one that matches a layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

LAYER_OPTIONS = (
    "format",
    "act_format",
    "transform",
    "transform_block",
    "strength",
    "solver",
    "damping",
    "pad",
    "gauges",
    "scale_search",
    "objective",
    "refine",
    "candidates",
)


@dataclasses.dataclass(frozen=True, init=False)
class Rule:
    """Which layers, and how: ``Rule("mlp/down", format="nvfp4")``, ``Rule("lm_head", skip=True)``.

    Attributes:
      pattern: regular expression, searched for (`re.search`) in the module path, such as
        ``layer_0/attention/query``.
      skip: leave these layers in floating point.
      options: any per-layer fields of `Config` to override for these layers.

    Raises:
      ValueError: the pattern is no regular expression, or an option is none of a layer's.
    """

    pattern: str
    skip: bool
    options: tuple[tuple[str, Any], ...]

    def __init__(self, pattern: str, *, skip: bool = False, **options: Any):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rule {pattern!r} is not a regular expression: {error}") from error
        unknown = sorted(set(options) - set(LAYER_OPTIONS))
        if unknown:
            raise ValueError(
                f"rule {pattern!r} sets {', '.join(unknown)}; "
                f"a rule can set {', '.join(LAYER_OPTIONS)}, or skip=True"
            )
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "skip", skip)
        object.__setattr__(self, "options", tuple(sorted(options.items())))

    def matches(self, path: str) -> bool:
        """Whether the pattern is found anywhere in a layer's name."""
        return re.search(self.pattern, path) is not None


#: Output heads stay in floating point: logits decide the next token directly and cost little.
#: A user's rule comes first, so ``Rule("lm_head", skip=False)`` quantizes the head after all.
DEFAULT_RULES = (
    Rule(
        r"(^|/)(lm_head|mlm_head|output_head|head|logits(_dense)?|classifier|unembed)$", skip=True
    ),
)


def match(name: str, rules: Sequence[Rule]) -> Rule | None:
    """The first of ``rules``, then of `DEFAULT_RULES`, that matches a layer's name; else None."""
    return next((rule for rule in (*rules, *DEFAULT_RULES) if rule.matches(name)), None)
