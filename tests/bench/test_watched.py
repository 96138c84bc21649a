"""Cases in a child process, and the parent that watches it."""

import json
import sys
import time

import pytest

from kernels.bench import watched
from kernels.bench.watched import Case


@pytest.fixture
def progress(tmp_path):
    path = tmp_path / "progress"
    path.touch()
    return path


def test_a_child_goes_on_behind_what_has_begun(progress, capsys):
    def fails():
        raise ValueError("no such tile")

    def never():
        pytest.fail("begun before, or too late")

    progress.write_text(json.dumps({"key": "time | hung", "state": "begun"}) + "\n")
    cases = [
        Case("time", "hung", never),
        Case("time", "a", lambda: {"us": 3.0}),
        Case("check", "late", never),
        Case("time", "b", fails),
        Case("time", "c", lambda: {"us": 4.0}),
    ]
    until = {"time": 1e6, "check": -1.0}
    watched.run(cases, progress, time.time(), until, lambda line: f"{line['us']} us")
    lines = watched.read(progress)
    assert [(line["key"], line["state"]) for line in lines] == [
        ("time | hung", "begun"),
        ("time | a", "begun"),
        ("time | a", "done"),
        ("time | b", "begun"),
        ("time | b", "failed"),
        ("time | c", "begun"),
        ("time | c", "done"),
    ]
    assert lines[2] == {"key": "time | a", "state": "done", "kind": "time", "name": "a", "us": 3.0}
    assert lines[4]["error"] == "ValueError('no such tile')"
    assert lines[4]["trace"][-1] == "ValueError: no such tile"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("3.0 us")
    assert "time | b" in printed[1]
    assert "ERROR ValueError('no such tile')" in printed[1]


def test_a_silent_child_is_ended(progress, monkeypatch, capsys):
    monkeypatch.setattr(watched, "PATIENCE", 0.3)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert watched.watch(sleep, progress, time.time() + 60) != 0
    assert "ending the child" in capsys.readouterr().out


def test_a_child_is_started_until_it_ends_well_or_the_budget_is_spent(progress):
    """Dies three times; each time it leaves a line."""
    code = "import sys; f = open(sys.argv[1], 'a+'); f.write('{}\\n'); f.seek(0)"
    command = [sys.executable, "-c", f"{code}; sys.exit(len(f.readlines()) < 4)", str(progress)]
    watched.restart(command, progress, time.time(), 1e3)
    assert watched.read(progress) == [{}] * 4
    progress.write_text("")
    watched.restart(command, progress, time.time() - 10, 10)
    assert watched.read(progress) == [{}]
