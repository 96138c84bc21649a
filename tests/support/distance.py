"""How far results are from what is expected."""

from typing import Any

import numpy as np


def frobenius(found: Any, expected: Any) -> float:
    """‖found - expected‖ / ‖expected‖, in float64; NaN if either holds one."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
