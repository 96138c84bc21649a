"""Which rule a layer falls under: ordered, first match wins."""

from __future__ import annotations

from wush_jax.config import Config, Rule

# Logits decide the next token directly and cost little: keep them in floating point.
# A user's rule comes first, so Rule("lm_head", skip=False) quantizes the head after all.
DEFAULT_RULES = (
    Rule(
        r"(^|/)(lm_head|mlm_head|output_head|head|logits(_dense)?|classifier|unembed)$", skip=True
    ),
)


def match(path: str, config: Config) -> Rule | None:
    """The first of ``config.rules``, then of `DEFAULT_RULES`, that matches ``path``; else None."""
    return next((rule for rule in (*config.rules, *DEFAULT_RULES) if rule.matches(path)), None)
