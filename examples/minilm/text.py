"""English prose that every machine with Python has: the standard library's own documentation.

Two domains, docstrings and source comments, each split into calibration and evaluation text by
top-level module (`examples.stdlib`), so that no module (and no paragraph) is in both splits.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import random
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal, TypedDict

import numpy as np
from tokenizers import Tokenizer

from examples.stdlib import Split, sources, split_of

Domain = Literal["docstrings", "comments"]
DOMAINS: tuple[Domain, ...] = ("docstrings", "comments")

MIN_CHARACTERS = 60
_MIN_PROSE = 0.85  # share of letters and spaces below which a paragraph is code or a table


class Batch(TypedDict):
    """One model input: ids int32 [B, T] and mask int32 [B, T] (1 = token, 0 = padding)."""

    ids: np.ndarray
    mask: np.ndarray


def _prose(blocks: Iterable[str]) -> Iterator[str]:
    """Blocks of lines -> the paragraphs among them that read as prose, each on one line."""
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()]
        if any(line.startswith((">>>", "...")) for line in lines):
            continue  # what follows a prompt is a program's output
        text = " ".join(" ".join(lines).split())
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text) >= MIN_CHARACTERS and letters >= _MIN_PROSE * len(text):
            yield text


def _docstrings(source: str) -> Iterator[str]:
    """The blocks, separated by blank lines, of every docstring in a source file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = inspect.cleandoc(ast.get_docstring(node) or "").splitlines()
            yield from "\n".join(line.strip() for line in lines).split("\n\n")


def _comments(source: str) -> Iterator[str]:
    """The runs of whole-line comments in a source file, without their marks."""
    lines = (line.strip() for line in source.splitlines())
    kept = (line.lstrip("#").strip() if line.startswith("#") else "" for line in lines)
    yield from "\n".join(kept).split("\n\n")


@functools.cache
def _collect(domain: Domain) -> dict[str, str]:
    """Every paragraph of a domain -> the first module that holds it, in the modules' order."""
    blocks = {"docstrings": _docstrings, "comments": _comments}[domain]
    owner: dict[str, str] = {}
    for module, path in sources().items():
        try:
            with tokenize.open(path) as file:
                found = list(_prose(blocks(file.read())))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for text in found:
            owner.setdefault(text, module)
    return owner


def paragraphs(split: Split, domain: Domain = "docstrings") -> list[str]:
    """The distinct paragraphs of one split of one domain, shuffled in a fixed way."""
    found = [text for text, module in _collect(domain).items() if split_of(module) == split]
    random.Random(0).shuffle(found)
    return found


def pad(rows: list[list[int]], length: int) -> Batch:
    """Rows of at most `length` token ids -> ids and mask, both int32 [rows, length]."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"ids": ids, "mask": mask}


def encode(tokenizer: Tokenizer, texts: Iterable[str], length: int = 128) -> Batch:
    """One row per text, cut to `length` tokens: ids and mask, both int32 [texts, length]."""
    return pad(list(_rows(tokenizer, texts, length, pack=False)), length)


def sentences(tokenizer: Tokenizer, texts: Iterable[str], count: int, length: int) -> Batch:
    """`encode` of the first `count` texts that fit whole into rows of `length` tokens."""
    fit = (text for text in texts if len(tokenizer.encode(text).ids) <= length)
    return encode(tokenizer, itertools.islice(fit, count), length)


def _rows(
    tokenizer: Tokenizer, texts: Iterable[str], length: int, *, pack: bool
) -> Iterator[list[int]]:
    """Token ids with the start and end marks; packing fills a row with all texts that fit."""
    start, end = tokenizer.encode("").ids
    row: list[int] = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: length - 2]
        if row and not (pack and len(row) + len(ids) <= length - 2):
            yield [start, *row, end]
            row = []
        row = row + ids
    if row:
        yield [start, *row, end]


def batches(
    tokenizer: Tokenizer,
    paragraphs: Iterable[str],
    *,
    tokens: int,
    length: int = 128,
    batch_size: int = 32,
    pack: bool = True,
) -> list[Batch]:
    """Whole batches, all [batch_size, length], until they hold `tokens` tokens or more.

    With `pack`, a row holds as many successive paragraphs as fit, which leaves little padding;
    without, a row is one paragraph. Padding does not count as tokens.
    """
    made: list[Batch] = []
    rows: list[list[int]] = []
    total = 0
    for row in _rows(tokenizer, paragraphs, length, pack=pack):
        if total >= tokens:
            break
        rows.append(row)
        if len(rows) == batch_size:
            made.append(pad(rows, length))
            total += int(made[-1]["mask"].sum())
            rows = []
    if total < tokens:
        raise ValueError(f"the text fills {total} tokens in whole batches; {tokens} were asked for")
    return made
