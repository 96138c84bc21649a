"""Figures with their errors, and tables as text."""

from __future__ import annotations

import math

import pytest
from rich.table import Table

from wush_jax.reporting.tables import as_text, plus_minus


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3412, 0.0563, "12.341 ± 0.056"),
        (12.3412, 5.63, "12.3 ± 5.6"),
        (12.3412, 56.3, "12 ± 56"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.5, 1e-14, "0.5 ± 0"),  # zero but for rounding
        (0.5, 1e-9, "0.5 ± 1e-09"),  # smaller than what is shown
        (1234.5678, None, "1235"),
        (1234.5678, math.nan, "1235"),
        (1234.5678, math.inf, "1235"),
        (math.inf, 1.0, "inf"),
        (math.nan, None, "nan"),
    ],
)
def test_two_digits_of_the_error(value, error, text):
    assert plus_minus(value, error) == text


def test_digits_of_a_figure_without_an_error():
    assert plus_minus(math.pi, digits=2) == "3.1"


def test_a_table_has_markup_and_lines_have_none():
    table = Table(title="[bold]title[/bold]")
    table.add_column("column")
    table.add_row("[bold]1[/bold]")
    text = as_text(table, "rule '[a-z]+' of [red]these[/red]", width=60)
    assert "title" in text
    assert "[bold]" not in text
    assert "│ 1      │" in text
    assert text.endswith("rule '[a-z]+' of [red]these[/red]\n")
