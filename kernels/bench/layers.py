"""GPU time of an LLM's linear layers: XLA's bf16 dot, `tl.dot_scaled`, qwix's MXFP4, and ours.

    python -m kernels.bench.layers [--out kernels/bench/results/h200-DATE.json] [--budget 500]
        [--models llama-3.1-8b,qwen3-8b] [--layers gate_up,down] [--tokens 4096,16] [--blocks 32]
        [--baselines subset|all|none] [--implementations NAME,...]

Ours is the whole layer, bf16 in and out: transform, quantization, matrix product. Weights are cold
(copies in turn, beyond the L2 cache), inputs come from the cache as they do in a model. Rows are in
order of importance, and each is written to --out at once; run again with the same file, rows that
it has are not measured again. The summary is printed last.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from kernels.bench import ceilings, cli, data, targets, timing
from kernels.bench.programs import ACCUMULATION, BASELINES, Layer, moved
from kernels.bench.results import Results
from kernels.bench.shapes import MODELS, TOKENS, Case, cases

_BASELINE_LAYERS, _BASELINE_TOKENS = ("gate_up", "down"), (16, 1024, 4096)


def contestants(case: Case, options: argparse.Namespace) -> list[str]:
    """Names of the implementations that a row times, the baseline first."""
    some = case.layer in _BASELINE_LAYERS and case.M in _BASELINE_TOKENS and case.D == 32
    chosen = options.baselines == "all" or (options.baselines == "subset" and some)
    return ["bf16", "ours", *(BASELINES if chosen else ()), *options.implementations]


def measure(
    case: Case, layer: Layer, names: Sequence[str], known: dict[str, float], cold: float
) -> dict[str, Any]:
    """The figures of one row.

    Args:
      case: which.
      names: implementations to time.
      known: microseconds of those that this run has timed on the same shapes before.
      cold: bytes that the copies of an implementation's weights exceed together.

    Returns:
      "us", "kernels" and "failed" by implementation, and "error", ours to the XLA reference.
    """
    x = layer.inputs(case.M)
    iterations = 8 if case.M >= 4096 else 24
    us, kernels, failed, error = dict(known), {}, {}, None

    def timed(name: str) -> timing.Timing:
        program, weights = layer.program(name)
        copies = [(x, leaf) for leaf in data.copies(weights, cold)]
        return timing.rotated(jax.jit(program), copies, iterations=iterations)

    for name in names:
        if name in us:
            continue

        measured, reason = timing.attempt(functools.partial(timed, name))
        if name == "qwix" and measured is None:  # its other path, if its first cannot run here
            failed[name], name = reason, "qwix_dequantized"
            measured, reason = timing.attempt(functools.partial(timed, name))
        if measured is None:
            failed[name] = reason
        else:
            us[name], kernels[name] = measured.us, measured.kernels
    if "ours" in us:
        ours = layer.program("ours")
        error, reason = timing.attempt(lambda: layer.error(x, jax.jit(ours.run)(x, ours.weights)))
        if reason is not None:
            failed["error"] = reason
    return {"us": us, "kernels": kernels, "failed": failed, "error": error}


def measured_before(row: dict[str, Any] | None, names: Sequence[str]) -> bool:
    """Whether a row has ours, and of the others a time or the reason why there is none."""
    return row is not None and "ours" in row["us"] and set(names) <= {*row["us"], *row["failed"]}


def limits_of(case: Case, layer: Layer, limits: ceilings.Ceilings) -> dict[str, Any]:
    """What a row's times are judged by."""
    bits = layer.weight_bits()
    names = ("bf16", "ours")
    return {
        "flops": case.flops,
        "bytes": {name: moved(case, name, bits) for name in names},
        "limit_us": limits.limit_us(case.flops, moved(case, "ours", bits)),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    us, ours = row["us"], row["us"].get("ours")
    head = f"{row['model'][:5]:5s} {row['layer']:7s} {row['M']:5d} {row['D']:3d} "
    head += f"{us.get('bf16', float('nan')):9.1f} "
    if ours is None:
        return f"{head}ours failed: {row['failed'].get('ours', '')[:80]}"
    ratio = us["bf16"] / ours if "bf16" in us else float("nan")
    limit = f"{row['limit_us'] / ours:5.0%}" if row["limit_us"] else "    -"
    error = f"{row['error']:.1e}" if row["error"] is not None else "failed"
    text = f"{head}{ours:9.1f} {ratio:5.2f}x {row['flops'] / ours / 1e6:6.0f} "
    text += f"{row['bytes']['ours'] / ours / 1e6:5.2f} {limit} {error:>7s}"
    others = [f"{k} {v:.0f} ({v / ours:.1f}x)" for k, v in us.items() if k not in ("bf16", "ours")]
    failed = ",".join(name for name in row["failed"] if name != "error")
    return " ".join([text, *others, f"no {failed}" if failed else ""]).rstrip()


HEADER = "model layer       M   D   bf16 us   ours us  ratio TFLOPs  TB/s limit   error others: us"


def run(options: argparse.Namespace) -> Results:
    """Runs the benchmark and prints its tables."""
    budget = timing.Budget(options.budget)
    cold = options.cold * 1e6
    results = Results(
        "layers", options.out, fresh=options.fresh, accumulation=ACCUMULATION, cold_bytes=cold
    )
    limits = ceilings.measure(options.ceilings)
    results.run["ceilings"] = limits.as_json()
    print(f"{results.run['device']}, {results.run['platform']}, {results.run['timer']}")
    print(f"{results.run['versions']}\nceilings: {limits}\n{HEADER}", flush=True)
    layer_of = functools.cache(
        lambda K, N, D: Layer(K, N, D, options.format, options.act_format, options.transform)
    )
    shared = {k: getattr(options, k) for k in ("format", "act_format", "transform")}
    left = []
    for case in cases(options.models, options.tokens, options.layers, options.blocks):
        shape = {k: v for k, v in dataclasses.asdict(case).items() if k not in ("model", "layer")}
        key = {**dataclasses.asdict(case), **shared}
        names = contestants(case, options)
        if measured_before(results.find(**key), names):
            continue
        twin = results.find(**shape, **shared)
        if twin is not None and measured_before(twin, names):  # another model's layer of this size
            same = {k: v for k, v in twin.items() if k not in key}
            print(line(results.add(key, **{**same, "same_as": twin["model"]})), flush=True)
            continue
        if not budget.allows():
            left.append(case)
            continue
        near = {k: v for k, v in shape.items() if k != "D"}
        other = results.find(this_run=True, **near, **shared) or {"us": {}}
        known = {k: v for k, v in other["us"].items() if k == "bf16"}
        with budget.row():
            layer, reason = timing.attempt(functools.partial(layer_of, case.K, case.N, case.D))
            if layer is None:
                print(f"{case}: {reason}", flush=True)
                continue
            figures = measure(case, layer, names, known, cold)
            row = results.add(key, **figures, **limits_of(case, layer, limits))
        print(f"{line(row)} [{budget.elapsed():.0f} s]", flush=True)
    results.write()
    report(results, left, shared)
    return results


def report(results: Results, left: Sequence[Case], shared: dict[str, Any]) -> None:
    """What failed, the whole table, and the targets: last, where a truncated log keeps them."""
    rows = [row for row in results.rows if all(row.get(k) == v for k, v in shared.items())]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for name, reason in row["failed"].items():
            reasons.setdefault(f"{name}: {reason[:240]}", []).append(f"{row['layer']} {row['M']}")
    for reason, where in reasons.items():
        print(f"FAILED {reason}\n       at {', '.join(where[:8])}{' ...' * (len(where) > 8)}")
    if left:
        print(f"no time for {len(left)} rows, from {left[0]} on; run again with the same --out")
    print(f"\n{shared}, accumulation {ACCUMULATION}; limit: share of max(FP8 rate, copy rate)")
    print(f"ceilings: {ceilings.Ceilings(**results.run['ceilings'])}\n{HEADER}")
    order = {name: i for i, name in enumerate(MODELS)}
    layer_order = {name: i for i, name in enumerate(MODELS["tiny"].layers())}
    for row in sorted(
        rows, key=lambda r: (order[r["model"]], r["D"], layer_order[r["layer"]], r["M"])
    ):
        print(line(row))
    print("\nours against the targets:")
    print("\n".join(targets.verdicts(rows)), flush=True)


def parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__, budget=500)
    p.add_argument("--models", type=cli.words, default=["llama-3.1-8b", "qwen3-8b"])
    p.add_argument("--layers", type=cli.words, help="default: all four")
    p.add_argument("--tokens", type=cli.numbers, default=list(TOKENS), help="M, in this order")
    p.add_argument("--blocks", type=cli.numbers, default=[32, 128], help="transform blocks D")
    p.add_argument("--baselines", choices=("subset", "all", "none"), default="subset")
    p.add_argument("--implementations", type=cli.words, default=[], help="more names to time")
    p.add_argument("--transform", choices=("wush", "hadamard", "identity"), default="wush")
    p.add_argument("--fresh", action="store_true", help="forget the rows that --out has")
    cli.add_formats(p)
    cli.add_ceilings(p)
    return p


if __name__ == "__main__":
    run(parser().parse_args())
