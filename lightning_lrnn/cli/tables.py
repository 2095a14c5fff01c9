"""Tables in text and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "markdown_table", "text_table"]


def counted(number: int, noun: str) -> str:
    """A number of things: `1 thread`, `1,200 steps`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def text_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligns the cells of a table in columns.

    Args:
        rows: cells by row, the head first. The last cell of a shorter row may be of any length.
        left: number of columns with text, which is aligned to the left; all others have numbers.

    Returns:
        Lines without an end: the head, a rule, and the other rows.
    """
    widths = [0] * len(rows[0])
    for row in rows:
        for column, cell in enumerate(row if len(row) == len(widths) else row[:left]):
            widths[column] = max(widths[column], len(cell))
    lines = []
    for row in rows:
        aligned = len(widths) if len(row) == len(widths) else left
        cells = [cell.ljust(width) for cell, width in zip(row, widths[:left], strict=False)]
        cells += [cell.rjust(n) for cell, n in zip(row[left:aligned], widths[left:], strict=False)]
        lines.append("  ".join([*cells, *row[aligned:]]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns the cells of a table in Markdown.

    Args:
        rows: cells by row, the head first.

    Returns:
        Lines, each with its end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)
