"""Parts of plots: which axis is logarithmic, rows from the top, files written whole."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from wush_jax.reporting import figures


@pytest.fixture
def axes():
    return figures.new_figure(2, 2).add_subplot()


@pytest.mark.parametrize(
    ("values", "errors", "scale"),
    [
        ([1.0, 20.0], [0.1, 0.1], "log"),
        ([1.0, 20.0], [math.nan, 0.1], "log"),
        ([1.0, math.inf, 20.0], [0.1, math.nan, 0.1], "log"),
        ([1.0, 9.0], [0.1, 0.1], "linear"),  # no decade
        ([1.0, 20.0], [1.5, 0.1], "linear"),  # zero within an error
        ([-1.0, 20.0], [0.1, 0.1], "linear"),
        ([0.0, 20.0], [0.0, 0.1], "linear"),
        ([math.nan], [math.nan], "linear"),
        ([], [], "linear"),
    ],
)
def test_a_log_axis_where_values_span_a_decade_above_zero(axes, values, errors, scale):
    figures.axis(axes, values, errors)
    assert axes.get_xscale() == scale


def test_dots_have_bars_where_there_are_errors(axes):
    figures.dots(axes, [1.0, 2.0, 3.0], [0, 1, 2], [0.5, math.nan, math.inf], figures.BLUE, "o")
    ((_, _, (bars,)),) = axes.containers
    spans = [float(np.ptp(segment[:, 0])) for segment in bars.get_segments()]
    assert spans == [1.0, 0.0, 0.0]


def test_the_first_row_is_on_top(axes):
    figures.rows_axis(axes, ["first", "second"], size=7)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    bottom, top = axes.get_ylim()
    assert top < 0 < 1 < bottom
    assert axes.get_yticklabels()[0].get_fontsize() == 7


def test_a_reference_is_a_dashed_line_over_the_whole_height(axes):
    figures.reference_line(axes, 0.25)
    (line,) = axes.lines
    assert (line.get_linestyle(), *line.get_xdata(), *line.get_ydata()) == ("--", 0.25, 0.25, 0, 1)


def test_a_figure_is_written_as_png_whatever_its_name(tmp_path):
    figures.save(figures.new_figure(1, 1), tmp_path / "folder" / "plot.of.it")
    assert (tmp_path / "folder" / "plot.of.it").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(list((tmp_path / "folder").iterdir())) == 1


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'wush-jax\[examples\]'"):
        figures.new_figure(1, 1)
