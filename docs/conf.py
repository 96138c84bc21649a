"""Sphinx settings: `make docs` builds the pages and the API reference into docs/_build."""

from __future__ import annotations

import importlib.metadata
import re

project = "wush_jax"
author = "the wush_jax authors"
version = release = importlib.metadata.version("wush-jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"wush_jax {release}"
html_show_copyright = False

myst_heading_anchors = 3

# A single backtick links to a public name where there is one, and is code elsewhere.
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes are no reStructuredText

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_INDENT = re.compile(r" +")
_TABLE = re.compile(r"=+( +=+)+$")
# What signatures spell out, by the names that sources use.
_NAMES = (
    (re.compile(r"~?\bjax(lib\._jax)?\.Array\b"), "Array"),
    (
        re.compile(r"~?(jaxtyping\.)?Key\[Array, ''\]( \| ~?(jaxtyping\.)?UInt32\[Array, '\d'\])+"),
        "PRNGKeyArray",
    ),
    (re.compile(r"<class '([\w.]+)'>"), r"\1"),
)
_ITEM = re.compile(r"\* |\d+\. ")


def _verbatim(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with backticks. What reStructuredText would read into them is
    taken out: stars and bars stand for themselves, and an indented paragraph that follows prose
    and a blank line is a formula or code, shown as it is.
    """
    if what in ("property", "data"):  # napoleon would take what stands before a colon for a type
        lines[0] = lines[0].replace(": ", " -- ", 1)
    out: list[str] = []
    literal = table = section = item = False
    for number, line in enumerate(lines):
        indented = _INDENT.match(line) is not None
        after_blank = number == 0 or not lines[number - 1].strip()
        if line and not indented:
            section = line.rstrip().endswith(":") and after_blank and line[:-1].isalpha()
            item = _ITEM.match(line) is not None or (item and not after_blank)
            literal = False
        elif indented and after_blank and not (section or item or literal):
            out += ["::", ""]
            literal = True
        table = _TABLE.match(line) is not None or (table and bool(line.strip()))
        out.append(line if literal or table else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    """The line with stars and bars escaped outside code, and a list's star left alone."""
    start = re.match(r" *(\* )?", line)
    first = start.end() if start else 0
    parts = _CODE.split(line[first:])
    plain = (re.sub(r"([*|])", r"\\\1", part) for part in parts[::2])
    code = iter(parts[1::2])
    text = "".join(part + next(code, "") for part in plain)
    return line[:first] + re.sub(r"(?<=\w)`(?=s\b)", r"`\\ ", text)  # `Rule`s


def _named(app, what, name, obj, options, signature: str | None, returns: str | None):
    """The signature by the names of `_NAMES`."""
    texts = [signature, returns]
    for pattern, replacement in _NAMES:
        texts = [text and pattern.sub(replacement, text) for text in texts]
    return tuple(texts)


def _skip(app, what, name, obj, skip: bool, options) -> bool | None:
    """Fields of named tuples: the class says what they are."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app) -> None:
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _named)
    # before napoleon, which reads the sections, and has the default priority of 500
    app.connect("autodoc-process-docstring", _verbatim, priority=100)
