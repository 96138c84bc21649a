"""Every public name says what it takes, what it raises and where it comes from, and has a place.

The criteria:

* names in ``wush_jax.__all__``, and the public methods of the classes among them, have docstrings;
* a parameter or field whose annotation holds an array has an entry that states a shape in brackets,
  or that refers to the public name which does;
* an exception that the code raises, in the function or in what it calls of `wush_jax`, stands under
  "Raises:", or the docstring refers to the public name that has it;
* what comes from a paper or a specification names it (`SOURCES`);
* the reference in docs/api has each name once, and the rooms that one extends (`ROOMS`).
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import wush_jax
from tests.support.docstrings import REFERENCE, SHAPE, arrays, doc_of, entries, methods, raised
from tests.support.docstrings import section as section_of

DOCS = Path(__file__).parents[2] / "docs"
PUBLIC = {name: getattr(wush_jax, name) for name in wush_jax.__all__}

# Where a public name's method or format comes from, as its docstring must say; None: it is our own.
SOURCES: dict[str, str | None] = {
    "DEFAULT_RULES": None,
    "Calibration": None,
    "Config": "arXiv 2512.00956",
    "Evaluation": None,
    "Evaluations": "Efron",
    "Grid": None,
    "QuantizedKernel": "OCP Microscaling Formats",
    "Report": "arXiv 2512.00956",
    "Rule": None,
    "Score": None,
    "Sweep": None,
    "TokenScore": None,
    "abstract_quantize": None,
    "apply": None,
    "calibrate": None,
    "dequantize": None,
    "evaluate": "Efron",
    "explain": None,
    "grid": None,
    "layer_errors": None,
    "prepare": None,
    "quantize": "arXiv 2512.00956",
    "quantize_blocks": None,
    "quantized": None,
    "sweep": None,
    "unprepare": None,
}
# What raises in principle and cannot here, and why.
NEVER = {
    "QuantizedKernel.dequantize": "its codes, scales and format were made together",
    "QuantizedKernel.values": "the same",
    "Report.rules": "the patterns are escaped paths, the options those of a `Config`",
}
MODULE_SOURCES = {
    "wush_jax": "arXiv 2512.00956",
    "wush_jax.formats.format": "OCP Microscaling Formats (MX) v1.0",
    "wush_jax.formats.elements": "OCP Microscaling Formats (MX) v1.0",
    "wush_jax.formats.scales": "OCP Microscaling Formats (MX) v1.0",
    "wush_jax.transforms.wush": "arXiv 2512.00956",
    "wush_jax.transforms.loss": "arXiv 2512.00956",
    "wush_jax.solvers.gptq": "arXiv 2210.17323",
    "wush_jax.statistics.running": "Efraimidis & Spirakis 2006",
    "wush_jax.evaluation.bootstrap": "Efron",
}
ROOMS = (
    "wush_jax.formats.format",
    "wush_jax.formats.codec",
    "wush_jax.formats.elements",
    "wush_jax.formats.scales",
    "wush_jax.transforms.blocks",
    "wush_jax.transforms.families",
    "wush_jax.transforms.wush",
    "wush_jax.transforms.loss",
    "wush_jax.solvers.objective",
    "wush_jax.solvers.minimise",
    "wush_jax.solvers.rounded",
    "wush_jax.ops.implementations.base",
    "wush_jax.ops.implementations.table",
    "wush_jax.ops.dispatch",
    "wush_jax.ops.online",
    "wush_jax.frontends.protocol",
    "wush_jax.frontends.select",
    "wush_jax.layers.layer",
)

DOCUMENTED = {name: value for name, value in PUBLIC.items() if callable(value)}
for _cls in [value for value in PUBLIC.values() if inspect.isclass(value)]:
    DOCUMENTED |= dict(methods(_cls))


def _directives() -> list[tuple[str, str]]:
    text = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    return re.findall(r"^\.\. auto(\w+):: ([\w.]+)", text, re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_has_a_docstring_of_its_own(name):
    doc = doc_of(DOCUMENTED[name])
    assert doc
    assert not doc.startswith(f"{name}(")  # what dataclasses write themselves


@pytest.mark.parametrize("name", DOCUMENTED)
def test_states_the_shapes_of_arrays(name):
    documented = DOCUMENTED[name]
    stated = entries(doc_of(documented))
    for parameter in arrays(documented):
        assert parameter in stated, f"no entry for {parameter}"
        entry = stated[parameter]
        others = [DOCUMENTED[n] for n in REFERENCE.findall(entry) if n in DOCUMENTED]
        referred = any(SHAPE.search(entries(doc_of(o)).get(parameter, "")) for o in others)
        assert SHAPE.search(entry) or referred, f"{parameter}: {entry}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_states_what_it_raises(name):
    documented = DOCUMENTED[name]
    parameters = inspect.signature(documented).parameters
    # without a name that the caller gives, the choice of an implementation cannot fail
    found = raised(documented, "" if "implementation" in parameters else "wush_jax.ops.dispatch")
    section = section_of(doc_of(documented), "Raises")
    others = [doc_of(DOCUMENTED[n]) for n in REFERENCE.findall(section) if n in DOCUMENTED]
    stated = section + "".join(section_of(other, "Raises") for other in others)
    missing = {error: f for error, f in found.items() if not re.search(rf"\b{error}\b", stated)}
    assert not missing or name in NEVER


@pytest.mark.parametrize("name", PUBLIC)
def test_names_its_source(name):
    source = SOURCES[name]  # a new public name: say where it comes from, or None
    if source is not None:
        assert source in doc_of(PUBLIC[name])


@pytest.mark.parametrize("module", MODULE_SOURCES)
def test_module_names_its_source(module):
    assert MODULE_SOURCES[module] in doc_of(importlib.import_module(module))


def test_no_source_is_left_over():
    assert set(SOURCES) == set(PUBLIC)


def test_every_public_name_has_one_place_in_the_reference():
    places = [name for kind, name in _directives() if kind not in ("module", "data")]
    # a value has no docstring of its own: its place is where it is defined and commented on
    values = [name.rpartition(".")[2] for kind, name in _directives() if kind == "data"]
    public = [name.removeprefix("wush_jax.") for name in places if name.count(".") == 1]
    assert sorted([*public, *values]) == sorted(PUBLIC)


@pytest.mark.parametrize("module", ROOMS)
def test_rooms_that_one_extends_are_in_the_reference(module):
    assert ("module", module) in _directives()


def test_values_are_documented_where_they_are_defined():
    rules = importlib.import_module("wush_jax.config.rules")
    assert re.search(r"#: .*\nDEFAULT_RULES", inspect.getsource(rules))
