"""How benchmarks time: calls in turn, CUPTI's sums, failures with a reason, a budget."""

import jax
import jax.numpy as jnp
import pytest

from kernels.bench import timing


def test_rotation_takes_its_copies_in_turn():
    call = timing.Rotation(lambda x: x + 1, [(jnp.float32(i),) for i in range(3)])
    assert [int(call()) for _ in range(5)] == [1, 2, 3, 1, 2]
    assert isinstance(call, jax.stages.Wrapped)  # so that CUPTI's wrapper does not jit it again


def test_cupti_times_are_summed_over_kernels_and_the_median_taken(monkeypatch):
    from jax.experimental.mosaic.gpu import profiler

    def fake(f, *, aggregate, iterations):
        assert isinstance(f, jax.stages.Wrapped)
        assert not aggregate
        assert iterations == 3
        spans = [(1.0, 0.5), (9.0, 0.5), (2.0, 0.25)]  # milliseconds
        return lambda: (None, [[("gemm", a), ("quantize", b)] for a, b in spans])

    monkeypatch.setattr(timing, "timer", lambda: "cupti")
    monkeypatch.setattr(profiler, "measure", fake)
    measured = timing.measure(lambda x: x, jnp.ones(2), iterations=3)
    assert measured == timing.Timing(2250.0, "cupti", (("gemm", 2000.0), ("quantize", 500.0)))
    monkeypatch.setattr(profiler, "measure", lambda *_, **__: lambda: (None, None))
    with pytest.raises(RuntimeError, match="CUPTI saw no kernel"):
        timing.measure(lambda x: x, jnp.ones(2))


def test_a_failure_becomes_a_reason_and_wall_time_stands_in_for_a_gpu():
    def fails():
        raise ValueError("no such\nshape")

    result, reason = timing.attempt(fails)
    assert result is None
    assert reason is not None
    assert reason.startswith("ValueError at test_timing.py:")
    assert reason.endswith(": no such shape")
    measured, reason = timing.attempt(lambda: timing.measure(jnp.sin, jnp.ones(8), iterations=2))
    assert reason is None
    assert measured is not None
    assert measured.timer == "wall"
    assert measured.us > 0


def test_budget_begins_no_row_that_could_not_end():
    now = [0.0]
    budget = timing.Budget(100, clock=lambda: now[0])
    with budget.row():
        now[0] = 40.0
    assert budget.allows()
    with budget.row():
        now[0] = 61.0
    assert not budget.allows()
