"""Tables in text and Markdown: columns are as wide as their widest cell.

Proved against: numbers to the left, widths of the head alone, the last cell of a short row counted.
"""

from __future__ import annotations

from lightning_lrnn.cli.tables import markdown_table, text_table

ROWS = [["layer", "backend", "ms", "steps"], ["torch.nn.LSTM", "-", "1.5", "1,200"]]


def test_text_is_left_and_numbers_are_right() -> None:
    assert text_table([*ROWS, ["QRNN", "serial", "12.25", ""]], left=2).splitlines() == [
        "layer          backend     ms  steps",
        "------------------------------------",
        "torch.nn.LSTM  -          1.5  1,200",
        "QRNN           serial   12.25",
    ]


def test_a_short_row_ends_with_a_cell_of_any_length() -> None:
    failed = ["SRU", "scan", "failed: out of memory"]
    assert text_table([*ROWS, failed], left=2).splitlines() == [
        "layer          backend   ms  steps",
        "---------------------------------------------",
        "torch.nn.LSTM  -        1.5  1,200",
        "SRU            scan     failed: out of memory",
    ]


def test_a_table_in_markdown() -> None:
    assert markdown_table([["layer", "ms"], ["QRNN", "1.25"]]) == (
        "| layer | ms   |\n| ----- | ---- |\n| QRNN  | 1.25 |\n"
    )
