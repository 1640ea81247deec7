"""Tables as files: what is in them is text there, whatever it holds."""

from __future__ import annotations

import io
import math

from leaderboard.terminal.exports import as_latex, as_parquet


def test_latex_escapes_its_own_signs() -> None:
    table = as_latex(
        [{"a_b": "50% & $x$ #1 {y} \\input{/etc/passwd} ~^", "x": -0.5}, {"a_b": "[1cm]", "x": 2}], "T_1 & more"
    )
    assert r"\caption{T\_1 \& more}" in table and r"\begin{tabular}{lr}" in table
    assert (
        r"50\% \& \$x\$ \#1 \{y\} \textbackslash{}input\{/etc/passwd\} \textasciitilde{}\textasciicircum{} & $-0.5$"
        in table
    )
    assert r"    {[}1cm] & 2 \\" in table
    assert table.count(r"\\") == 3 and r"\midrule" in table


def test_parquet_keeps_numbers() -> None:
    import pyarrow.parquet

    rows = [{"x": 1.5, "name": "=a"}, {"x": None, "name": "b"}]
    assert pyarrow.parquet.read_table(io.BytesIO(as_parquet(rows))).to_pylist() == rows


def test_of_no_rows_nothing_is_written() -> None:
    assert as_latex([], "x") == ""


def test_what_is_no_number_is_empty() -> None:
    assert r"    a &  &  \\" in as_latex([{"name": "a", "x": math.nan, "y": None}], "x")
