"""What the tests of evaluation share: one evaluation of three candidates."""

from __future__ import annotations

import pytest

from tests.support.bigrams import CANDIDATES, MODEL, PARAMS, TOKENS
from wush_jax import Evaluations, evaluate


@pytest.fixture(scope="package")
def found() -> Evaluations:
    return evaluate(MODEL, PARAMS, CANDIDATES, TOKENS)
