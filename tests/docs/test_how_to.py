"""The examples of the how-to pages fit the tree, and do what their pages say."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wush_jax.frontends.protocol import FrontEnd
from wush_jax.ops.device import Device

ROOT = Path(__file__).parents[2]
PAGES = {page.stem: page.read_text() for page in (ROOT / "docs" / "how-to").glob("*.md")}
_DIFF = re.compile(r"^```diff\n--- a/(\S+)\n\+\+\+ b/\1\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def patched(page, file):
    """The text of a file with a page's patches."""
    text = (ROOT / file).read_text()
    for path, hunks in _DIFF.findall(PAGES[page]):
        for hunk in hunks.split("@@\n")[1:] if path == file else ():
            lines = [line or " " for line in hunk.splitlines()]
            old, new = (
                "".join(f"{li[1:]}\n" for li in lines if li[0] in kind) for kind in (" -", " +")
            )
            assert text.count(old) == 1, f"{page}: this is not once in {file}:\n{old}"
            text = text.replace(old, new)
    return text


def executed(code: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "example", "exec"), scope)
    return scope


def python(page, number=0):
    return executed(_PYTHON.findall(PAGES[page])[number])


@pytest.mark.parametrize("page", [p for p in PAGES if "```diff" in PAGES[p]])
def test_patches_fit(page):
    files = {path for path, _ in _DIFF.findall(PAGES[page])}
    assert len(_DIFF.findall(PAGES[page])) == PAGES[page].count("```diff")
    for file in files:
        compile(patched(page, file), file, "exec")


def test_format():
    scales = executed(patched("format", "wush_jax/formats/scales.py"))
    amax = np.array([1, 1.7499999, 1.75, 2, 3.4999998, 3.5, 2.0**-149], np.float32)
    found = scales["e8m0_from_magnitude"](scales["magnitude_bits"](jnp.asarray(amax)), "even")
    assert found.tolist() == [125, 125, 126, 126, 126, 127, 0]
    formats = executed(patched("format", "wush_jax/formats/format.py"))
    assert formats["get_format"]("mxfp4/even").global_scale == 1


def test_transform():
    families = executed(patched("transform", "wush_jax/transforms/families.py"))
    t = families["_FAMILIES"]["cosine"](jnp.zeros((2, 16, 16)), None)
    product = np.asarray(t.forward) @ np.asarray(t.inverse_transpose).swapaxes(1, 2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(16), (2, 16, 16)), atol=1e-6)


def test_solver():
    assert callable(python("solver")["descent"])


def test_implementation():
    cpu = Device("cpu", None)
    example = python("implementation")["XlaBf16"]()  # nothing of the contract is left open
    assert example.rows == "values"
    assert not example.unasked(cpu)


def test_front_end():
    chain = python("front-end")["Chain"]()
    assert isinstance(chain, FrontEnd)
    params = {"w0": np.ones((64, 96), np.float32), "w1": np.ones((96, 32), np.float32)}
    variables, x = chain.variables(params), chain.batch(np.ones((5, 64), np.float32))
    layers = chain.discover(variables, x, lambda name: True).layers
    assert {name: layer.features for name, layer in layers.items()} == {"w0": 64, "w1": 96}
    blocks = {"w0": 32, "w1": 32}
    seen = jax.eval_shape(lambda v, x: chain.observe(v, x, None, layers, blocks, 4), variables, x)
    assert seen["w1"].total.shape == (3, 32, 32)
