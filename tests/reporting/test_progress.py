"""Progress bars: items as they are; silence unless asked for."""

from __future__ import annotations

import pytest

from wush_jax.reporting.progress import track


@pytest.mark.parametrize("enabled", [None, False, True])
def test_items_pass_and_only_a_bar_that_is_asked_for_shows(enabled, capsys):
    assert list(track(iter([3, 1, 2]), "counting", enabled)) == [3, 1, 2]
    shown = capsys.readouterr()
    assert shown.out == ""
    if not enabled:
        assert shown.err == ""  # captured: not a terminal
