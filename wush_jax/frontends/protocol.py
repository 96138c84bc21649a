"""What a front end must answer: the contract between kinds of models and everything above.

Quantization, evaluation, sweeps and layer errors are written against `FrontEnd` and know of no kind
of model; a new kind is a folder beside this file and a line in `select`. The words:

* *params* are what the user holds and gets back; *variables* are the same as a tree of plain
  mappings from collection to tree, of which "params" is one.
* a *batch* is what the user passes; `FrontEnd.batch` makes arrays of it.
* a *name* is a layer's, see `wush_jax.layers.trees.layer_name`.

`discover`, `observe`, `run` and `layer_squares` are pure, and the last three are called under jit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Discovery:
    """What one batch reaches.

    Attributes:
      layers: name -> linear layer.
      refused: name of a weight that was read but not as a linear layer -> why.
    """

    layers: Mapping[str, Layer]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@runtime_checkable
class FrontEnd(Protocol):
    """One kind of model, bound to one model. Methods that trace raise the model's own errors."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        ...

    def variables(self, params: Any, rest: Variables | None = None) -> Variables:
        """``params`` as variables; collections that they lack are taken from ``rest``."""
        ...

    def holds(self, params: Any) -> frozenset[str]:
        """Names at the top of the params: by these they are told from another model's."""
        ...

    def replaced(self, params: Any, kernels: Mapping[str, QuantizedKernel]) -> Any:
        """``params`` in the form in which they came, with these layers' weights replaced."""
        ...

    def weights(self, variables: Variables) -> dict[str, Any]:
        """Name -> leaf, of every leaf with two or more axes: what a layer's weight can be.

        Arrays or `jax.ShapeDtypeStruct`, in their own axes.
        """
        ...

    def expected(self, variables: Variables) -> frozenset[str]:
        """Names of the weights that calibration must reach, or a rule must skip."""
        ...

    def batch(self, batch: Any) -> Any:
        """A batch as a pytree of arrays.

        Raises:
          ValueError: it is of a form that the model cannot take.
        """
        ...

    def signature(self, batch: Any) -> Hashable:
        """Batches with equal ones reach the same layers, and share one compiled function."""
        ...

    def discover(
        self, variables: Variables, batch: Any, wanted: Callable[[str], bool]
    ) -> Discovery:
        """The linear layers that a batch reaches; no arithmetic is done.

        Args:
          variables, batch: arrays or `jax.ShapeDtypeStruct`.
          wanted: whether a layer of this name is to be quantized; others are only listed.

        Raises:
          ValueError: naming a wanted layer that cannot be quantized as it is used.
        """
        ...

    def observe(
        self,
        variables: Variables,
        batch: Any,
        mask: Mask | None,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, int],
        sample: int,
    ) -> dict[str, Observation]:
        """Runs the float model and returns what enters the layers in ``blocks``.

        Args:
          mask: [*tokens], non-zero where a token counts.
          layers: from `discover`.
          blocks: name -> D.
          sample: how many tokens to draw.

        Returns:
          Name -> observation with leaves [*stack, *batch, ...].
        """
        ...

    def run(self, variables: Variables, batch: Any) -> Any:
        """The model's output; layers whose weight is a `QuantizedKernel` run quantized."""
        ...

    def layer_squares(
        self,
        variables: Variables,
        kernels: Mapping[str, QuantizedKernel],
        batch: Any,
        mask: Mask | None,
    ) -> dict[str, Array]:
        """Name -> float32 [2], ‖y - xW‖² and ‖xW‖², x being the layer's input in the float model.

        Args:
          kernels: name -> quantized kernel; layers that the batch does not reach are left out.

        Raises:
          NotImplementedError: a layer lies where nothing can be carried out of the model.
        """
        ...


@runtime_checkable
class Block(Protocol):
    """One block of a stack, as `wush_jax.quantize_blocks` runs it. Equal ones compute the same."""

    def at(self, path: str) -> FrontEnd:
        """A model of its own whose params lie at ``path``, and whose batches are (inputs, mask)."""
        ...

    def run(self, variables: Variables, inputs: tuple) -> Any:
        """The block's output on (x, *extras); ``variables`` are the block's own."""
        ...
