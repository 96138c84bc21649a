"""Whatever the pages name is there: files, modules, names, commands, links; and code compiles."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "kernels/**/README.md")
    for page in ROOT.glob(pattern)
    if "_build" not in page.parts
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"(wush_jax|kernels|tests|docs|examples|constraints|\.ci)/[\w./-]*\w/?")
_FILE = re.compile(r"[\w/.-]+\.(py|md|toml|txt|json)")
_NAME = re.compile(r"(wush_jax|wush_kernels|examples|kernels)(\.\w+)+")
_MODULE = re.compile(r"python -m ([\w.]+)")
_MAKE = re.compile(r"\bmake ([a-z][\w-]*)\b")
_TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def _found(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module holds."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(value, "__dataclass_fields__", {})
            if not hasattr(value, part) and part not in fields:
                return False
            value = getattr(value, part, None)
        return True
    return False


def _is_module(name: str) -> bool:
    folder = ROOT.joinpath(*name.split("."))
    return folder.with_suffix(".py").exists() or (folder / "__init__.py").exists()


@pytest.fixture(params=PAGES, ids=IDS)
def page(request) -> Path:
    return request.param


def test_files_exist(page):
    code = _CODE.findall(_FENCE.sub("", page.read_text()))
    paths = {c for c in code if _PATH.fullmatch(c) or ("/" in c and _FILE.fullmatch(c))}
    paths -= {"docs/_build/index.html"}  # made by `make docs`
    near = (ROOT, ROOT / "wush_jax", page.parent)
    assert {p for p in paths if not any((folder / p).exists() for folder in near)} == set()


def test_links_lead_somewhere(page):
    links = {link for link in _LINK.findall(page.read_text()) if "://" not in link}
    assert {link for link in links if not (page.parent / link).exists()} == set()


def test_names_exist(page):
    names = {c.partition("(")[0] for c in _CODE.findall(_FENCE.sub("", page.read_text()))}
    wanted = {name for name in names if name.startswith("wush_jax.") and _NAME.fullmatch(name)}
    assert {name for name in wanted if not _found(name)} == set()


def test_commands_exist(page):
    text = page.read_text()
    modules = set(_MODULE.findall(text)) - {"venv", "pip", "build", "sphinx", "pytest"}
    assert {name for name in modules if not _is_module(name)} == set()
    commands = " ".join([*_CODE.findall(_FENCE.sub("", text)), *_SHELL.findall(text)])
    assert set(_MAKE.findall(commands)) - set(_TARGETS) == set()


def test_python_blocks_import_what_is_there(page):
    for block in _PYTHON.findall(page.read_text()):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wush_jax"):
                missing = [a.name for a in node.names if not _found(f"{node.module}.{a.name}")]
                assert not missing, (node.module, missing)
            named = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert not re.fullmatch(r"wush_jax\.\w+", named) or _found(named), named


def test_the_house_is_drawn_as_it_stands():
    page = (ROOT / "docs" / "how-it-fits-together.md").read_text()
    floors, drawn = page.split("## The rooms")
    rooms = {folder.parent.name for folder in (ROOT / "wush_jax").glob("*/__init__.py")}
    named = {
        name for line in floors.splitlines() if line[:1] == "|" for name in _CODE.findall(line)
    }
    assert named == rooms | {"wush_kernels"}
    tree = _FENCE.findall(drawn)[0]
    modules = {file.stem for file in (ROOT / "wush_jax").glob("*/**/*.py")} - {"__init__"}
    modules -= {"front_end", "calls", "gpu", "gpu_rows", "gpu_products", "batching"}  # inner parts
    assert {name for name in modules if not re.search(rf"\b{name}\b", tree)} == set()
