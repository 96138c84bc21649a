"""The benchmark of the Mosaic product: what it tries, what its checks see, the table it prints."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from kernels.bench import mosaic_cases, mosaic_matmul, mosaic_products


def test_each_case_has_a_name_and_a_part_of_the_budget():
    cases = [case for section in mosaic_cases.SECTIONS.values() for case in section()]
    assert len({case.key for case in cases}) == len(cases) == 89
    assert {case.kind for case in cases} == set(mosaic_cases.UNTIL)


@pytest.mark.parametrize("M", [M for M, _, _ in mosaic_cases.SHAPES])
def test_configurations_can_be_built(M):
    fast, precise = mosaic_cases.configs(M)
    for c in fast:
        c.check(2, c.promote is not None)
    for c in precise:
        c.check(2, True)


@pytest.fixture
def check(monkeypatch):
    """Checks a product of float32 that ``change(y, number of the run)`` has spoilt."""

    def checked(change):
        numbers = itertools.count()

        def product(c, bias, *, precise, activation, dtype):
            assert (c, bias, precise, activation) == (None, True, True, "silu")

            @jax.jit
            def exact(a, b, factor, shift):
                a, b = a.astype(jnp.float32), b.astype(jnp.float32)
                y = jnp.matmul(a, b.T, precision="highest") * factor
                return jax.nn.silu(y + shift[None]).astype(dtype)

            return lambda *args: change(exact(*args), next(numbers))

        monkeypatch.setattr(mosaic_products, "product", product)
        arguments = ((20, 72, 160), None, False, True, True, "silu", jnp.float32)
        return mosaic_products.check(*arguments)

    return checked


def test_a_check_sees_wrong_outputs_nan_and_runs_that_differ(check):
    good = check(lambda y, _: y)
    assert good["pass"]
    assert good["error"] < 1e-6
    assert good["limit"] == 1e-4
    assert good["note"].startswith("all finite True, twice the same True, oracle's error ")
    rolled = check(lambda y, _: jnp.roll(y, 1, axis=1))
    assert not rolled["pass"]
    assert rolled["error"] > 0.5
    small = check(lambda y, _: y * 1.001)
    assert not small["pass"]
    assert small["error"] == pytest.approx(1e-3, rel=0.01)
    assert "all finite False" in check(lambda y, _: y.at[3, 5].set(jnp.nan))["note"]
    differs = check(lambda y, number: y.at[3, 5].add(1e-5 * number))
    assert not differs["pass"]
    assert differs["error"] < 1e-6
    assert "twice the same False" in differs["note"]


def test_the_table_ranks_by_time_and_names_what_went_wrong(capsys):
    def line(kind, name, state="done", **record):
        return {"key": f"{kind} | {name}", "state": state, "kind": kind, "name": name, **record}

    checked = {"error": 1e-3, "limit": 2e-3, "note": "all finite True"}
    lines = [
        line("check", "good") | checked | {"pass": True},
        line("check", "bad") | checked | {"pass": False},
        line("time 0", "slow", us=2000.0),
        line("time 0", "fast", us=1000.0),
        line("xla", "XLA FP8 without factor 0", us=1500.0),
        line("time 1", "hung", state="begun"),
        line("time 1", "failed", state="begun"),
        line("time 1", "failed", state="failed"),
    ]
    mosaic_matmul.report(lines)
    printed = capsys.readouterr().out.splitlines()
    assert "2 checks, failed: ['bad']" in printed
    assert "errors: ['time 1 | failed']" in printed
    assert "hung or crashed: ['time 1 | hung']" in printed
    at = printed.index("-- M, N, K = 4096 14336 4096")
    assert [row.split("  ")[0] for row in printed[at + 1 : at + 4]] == [
        "fast",
        "XLA FP8 without factor 0",
        "slow",
    ]
    assert printed[at + 1].endswith("1000.0 us    481 TFLOP/s")
    assert mosaic_matmul.show(lines[1]) == "FAIL error 0.001 (limit 0.002), all finite True"
    assert mosaic_matmul.show(lines[2]) == "  2000.0 us"
