"""What is measured and what is asked of it: shapes, cases, what must move, verdicts."""

import pytest

from kernels.bench import shapes, targets


def test_shapes_are_those_of_the_models():
    llama = shapes.MODELS["llama-3.1-8b"].layers()
    assert llama == {
        "gate_up": (4096, 28672),
        "down": (14336, 4096),
        "qkv": (4096, 6144),
        "o": (4096, 4096),
    }
    assert shapes.MODELS["qwen3-8b"].layers() == llama | {
        "gate_up": (4096, 24576),
        "down": (12288, 4096),
    }


def test_cases_come_by_importance_and_count_what_must_move():
    rows = list(shapes.cases(["llama-3.1-8b", "qwen3-8b"]))
    assert [str(row) for row in rows[:3]] == [
        "llama-3.1-8b gate_up M=4096 K=4096 N=28672 D=32",
        "llama-3.1-8b gate_up M=4096 K=4096 N=28672 D=128",
        "llama-3.1-8b down M=4096 K=14336 N=4096 D=32",
    ]
    assert len({row.M for row in rows}) == 8
    wide = {(row.layer, row.M) for row in rows if row.D == 128}
    assert wide == {(name, M) for name in ("gate_up", "down") for M in (1024, 4096, 16384)}
    case = shapes.Case("m", "l", 2, 64, 32, 16)
    assert case.flops == 2 * 2 * 64 * 32
    assert case.bytes(4.25) == 2 * 2 * (64 + 32) + 64 * 32 * 4.25 / 8 + 2 * 64 * 16
    with pytest.raises(ValueError, match="unknown model 'bert'; there are llama"):
        list(shapes.cases(["bert"]))
    with pytest.raises(ValueError, match="unknown layer 'up'; there are gate_up"):
        list(shapes.cases(["tiny"], layers=["up"]))


def test_verdicts_take_the_worst_row_of_a_regime():
    def row(M, ours, N=4096, K=14336, D=32):
        us = {"bf16": 100.0, "ours": ours, "block_scaled": 500.0}
        return {"layer": "down", "M": M, "N": N, "K": K, "D": D, "run": 0, "us": us}

    lines = targets.verdicts([row(4096, 50.0), row(16384, 60.0), row(16, 40.0), row(64, 80.0)])
    assert "1.67x (down, M=16384) to 2.00x, 2 rows" in lines[0]
    assert lines[0].endswith(": must")
    assert lines[1].endswith("not measured")
    assert "2.50x (down, M=16)" in lines[2]
    assert lines[3].endswith(": MISSED")
    assert lines[4].endswith(": stretch")
    assert lines[5].endswith("not measured")
    assert targets.verdicts([row(16, 40.0, N=4095)])[2].endswith("not measured")
    for wide, verdict in ((53.5, "must"), (54.5, "MISSED")):
        line = targets.verdicts([row(4096, 50.0), row(4096, wide, D=128)])[5]
        assert f"{wide / 50:.3f}, 1 rows" in line
        assert line.endswith(verdict)
