"""The few things about programs that JAX does not document: their inner programs, and how to bind.

Everything else in this package reads `jax.extend.core` and the parameters of equations. Tested at
both ends of the supported versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# The parameter that holds the program, by the names that call-like operations have for it.
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_lin",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "jit",
        "pjit",
        "remat",
        "remat2",
        "xla_call",
    }
)
REMATERIALISED = frozenset({"checkpoint", "remat", "remat2"})


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that a call runs on its inputs as they are; None for any other operation."""
    if eqn.primitive.name not in _CALLS:
        return None
    program = next(eqn.params[name] for name in _PROGRAMS if name in eqn.params)
    return closed(program)


def closed(program: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """A program with its constants."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The operation on other inputs of the same shapes, as `jax.core.eval_jaxpr` binds it."""
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*functions, *inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def unchanged(program: ClosedJaxpr, position: int, result: int) -> bool:
    """Whether a program hands on its input at ``position`` as its result at ``result``."""
    return program.jaxpr.outvars[result] is program.jaxpr.invars[position]


def scanned(eqn: JaxprEqn) -> tuple[int, int]:
    """Of a scan's inputs, how many are constants and how many are carried; the rest are stacked."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.11
    return len(consts), len(carry)


def aval(variable: Any) -> Any:
    """Shape and dtype of an input or output of an operation."""
    return variable.aval
