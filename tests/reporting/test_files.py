"""Files: whole or not at all, and JSON without what JSON lacks."""

from __future__ import annotations

import json
import math
from types import MappingProxyType

import numpy as np
import pytest

from wush_jax.reporting.files import plain_json, write_atomically, write_json


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folder" / "figures.json"
    write_json(path, {"a": 1})

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fails)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["figures.json"]


def test_what_json_lacks_becomes_null_however_deep(tmp_path):
    data = {
        "nan": math.nan,
        "lists": [(1.5, math.inf), {"deep": -math.inf}],
        7: MappingProxyType({"scalar": np.float32("nan"), "count": np.int64(3)}),
        "text": "NaN",
        "flag": True,
        "none": None,
        "double": np.float64(0.25),
    }
    expected = {
        "nan": None,
        "lists": [[1.5, None], {"deep": None}],
        "7": {"scalar": None, "count": 3},
        "text": "NaN",
        "flag": True,
        "none": None,
        "double": 0.25,
    }
    assert plain_json(data) == expected
    write_json(tmp_path / "data.json", data)
    text = (tmp_path / "data.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert text.endswith("}\n")


def test_floats_to_so_many_digits():
    data = {"us": [123456.789, 1 / 3], "n": 123456789, "nan": np.float32("nan")}
    assert plain_json(data, digits=4) == {"us": [123500.0, 0.3333], "n": 123456789, "nan": None}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "data.json", {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []
