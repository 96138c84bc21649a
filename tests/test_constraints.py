"""constraints/ pins what pyproject.toml promises: its lower bounds, and one newest set of them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE = {"jaxlib"}  # goes with jax


def promised() -> dict[str, str]:
    """Lower bound of each direct dependency; tools of one version, as ruff, are not checked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds: dict[str, str] = {}
    for line in project["dependencies"] + extras["gpu"] + extras["examples"] + extras["dev"]:
        name, relation, version = re.findall(r"^([\w-]+)(?:\[\w+\])?([>=]=)([\d.]+)", line)[0]
        if relation == ">=":
            assert bounds.setdefault(name, version) == version, f"two lower bounds of {name}"
    return bounds


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def numbers(version: str) -> list[int]:
    return [int(n) for n in version.split(".")]


def test_oldest_pins_the_lower_bounds():
    pins = pinned("oldest.txt")
    bounds = promised()
    assert pins.keys() - BESIDE == bounds.keys()
    for name, bound in bounds.items():
        exact = numbers(pins[name])
        least = numbers(bound)
        assert exact[: len(least)] == least, name
        assert not any(exact[len(least) :]), f"{name} >= {bound} is more than {pins[name]}"


def test_newest_pins_the_same():
    oldest, newest = pinned("oldest.txt"), pinned("newest.txt")
    assert oldest.keys() == newest.keys()
    assert all(numbers(newest[name]) >= numbers(oldest[name]) for name in oldest)
    assert newest["jaxlib"] == newest["jax"]
    assert oldest["jaxlib"] == oldest["jax"]
