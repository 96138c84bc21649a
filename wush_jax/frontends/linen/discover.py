"""Finding a Flax Linen model's linear layers, without editing the model or running it.

The model is traced once on abstract values, under an interceptor that notes how each linear layer
contracts, which ones read the very same array, and where Flax stacks their variables (``nn.scan``,
``nn.vmap``). For the last, each layer writes probe variables of known sizes beside its kernel, and
the extra axis that Flax gives them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from wush_jax.frontends.linen import calls
from wush_jax.frontends.protocol import Discovery
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.layer import Layer
from wush_jax.layers.stacking import StackAxes
from wush_jax.layers.trees import FLAX_WEIGHT, flax_weights, join, plain

# Axis lengths that no real layer stack has: where an extra axis appears tells where Flax stacks.
_PRIMES = (10007, 10009, 10037)
_PROBE_RANKS = (2, 3)
_PROBE = "wush_probe_{}"


_REFUSED = "not a Dense, DenseGeneral or Einsum layer"


def discover(
    model: nn.Module,
    variables: Mapping,
    batch: Any,
    wanted: Callable[[str], bool] = lambda path: True,
) -> Discovery:
    """Traces the model once on abstract values; no arithmetic is done.

    Args:
      model, variables: the float model (arrays or `jax.ShapeDtypeStruct`).
      batch: one calibration batch (arrays or `jax.ShapeDtypeStruct`).
      wanted: whether a layer is to be quantized; others are listed without ``stack_axes``.

    Raises:
      ValueError: a wanted layer contracts its kernel in different ways, or lies where Flax shares
        one kernel among the steps of a scan or the lanes of a vmap.
    """
    trace = _Trace(model, wanted)
    try:
        changed = trace.run(variables, batch)
    except ValueError as error:
        raise _explained(error, trace, model, variables, batch) from error
    probes: dict[str, Any] = flatten_dict(plain(changed)["params"], sep="/")
    found = {}
    for path, seen in trace.calls.items():
        contraction, shape, _ = seen[0]
        if any(c.roles != contraction.roles or s != shape for c, s, _ in seen):
            raise ValueError(f"{path}: this module contracts its kernel differently at each call")
        axes: StackAxes = ()
        if wanted(path):
            axes = _stack_axes(*(probes[join(path, _PROBE.format(r))].shape for r in _PROBE_RANKS))
        identities = tuple(identity for *_, identity in seen)
        own = join(path, FLAX_WEIGHT)
        found[path] = Layer(own, contraction, shape, identities, axes)
    others = (flax_weights(variables["params"]).keys() & trace.called) - found.keys()
    return Discovery(found, dict.fromkeys(sorted(others), _REFUSED))


class _Trace:
    """One abstract run and what its interceptor notes.

    Attributes:
      calls: module path -> (contraction, kernel shape, identity of the input) of each call.
      called: paths of all modules that ran.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[str], bool]):
        self.model, self.wanted = model, wanted
        self.calls: dict[str, list[tuple[Contraction, tuple[int, ...], int]]] = {}
        self.called: set[str] = set()
        self._inputs: list[tuple] = []  # kept alive, so that no two are the same object

    def run(self, variables: Mapping, batch: Any) -> Any:
        """The abstract variables that the run leaves."""

        def abstract(variables, batch):
            with nn.intercept_methods(self._intercept):
                mutable = calls.mutable_anew()
                return calls.call_model(self.model, variables, batch, mutable=mutable)[1]

        return jax.eval_shape(abstract, plain(variables), batch)

    def _intercept(self, next_fun, args, kwargs, context):
        module = context.module
        if module.scope is not None:
            self.called.add(calls.path_of(module))
        call = calls.linear_call(context, args, kwargs)
        out = next_fun(*args, **kwargs)
        if call is None:
            return out
        path = calls.path_of(module)
        kernel = nn.meta.unbox(module.get_variable("params", FLAX_WEIGHT))
        identity = self._identify(call, calls.trace_of(module))
        self.calls.setdefault(path, []).append((call.contraction, kernel.shape, identity))
        if self.wanted(path):
            # Probes depend on the input, as moments will: what Flax cannot carry out fails here.
            zero = 0 * call.x.ravel()[0].astype(jnp.float32)
            for rank in _PROBE_RANKS:
                probe = jnp.broadcast_to(zero, _PRIMES[:rank])
                module.put_variable("params", _PROBE.format(rank), probe)
        return out

    def _identify(self, call: calls.Call, trace: Any) -> int:
        """Equal for the same array, contracted along the same axes, in the same trace."""
        axes = call.contraction.contracted_axes
        for i, (x, known_axes, known_trace) in enumerate(self._inputs):
            if x is call.x and known_axes == axes and known_trace == trace:
                return i
        self._inputs.append((call.x, axes, trace))
        return len(self._inputs) - 1


def _explained(
    error: ValueError, failed: _Trace, model: nn.Module, variables: Mapping, batch: Any
) -> ValueError:
    """Names the layers whose variables Flax could not carry out; any other error as it is."""
    culprits: Collection[str] = []
    if shares_weights(error):
        for path in filter(failed.wanted, failed.calls):
            try:
                _Trace(model, lambda other, path=path: other == path).run(variables, batch)
            except ValueError as alone:
                culprits = [*culprits, path] if shares_weights(alone) else culprits
    if not culprits:
        return error
    return ValueError(
        f"{', '.join(culprits)}: this layer's kernel is shared among the steps of an nn.scan (or "
        "RNN) or the lanes of an nn.vmap, where Flax lets no statistics out; skip it by a Rule, or "
        "capture its inputs yourself and call quantize without a model"
    )


def shares_weights(error: ValueError) -> bool:
    """Whether Flax says that a variable is shared among a scan's steps or a vmap's lanes."""
    text = str(error)
    return "broadcasted variable" in text or "got axis spec None" in text


def _stack_axes(shape: tuple[int, ...], deeper: tuple[int, ...]) -> StackAxes:
    """Where the extra axes are: counted from the front, or from the back if they move with rank."""
    extra, extra_deeper = (
        [i for i, n in enumerate(s) if n not in _PRIMES] for s in (shape, deeper)
    )
    pairs = zip(extra, extra_deeper, strict=True)
    return tuple(i if i == j else i - len(shape) for i, j in pairs)
