"""The table of layers: what each is and which backends run it where, from the code alone."""

from __future__ import annotations

import inspect
import re

from lightning_lrnn import backends
from lightning_lrnn.nn import CELLS
from lightning_lrnn.nn.stack import Stack

__all__ = ["cells_table"]


def cells_table() -> str:
    """Markdown: one row per layer. What a machine happens to lack does not count."""
    names = backends.BUILT_IN
    rows = [["layer", "paper", "state", *(f"`{name}`" for name in names)]]
    for name, kind in CELLS.items():
        layer = kind(1, 2, device="meta")
        where = {device: _gate_reasons(layer, device) for device in ("cpu", "cuda")}
        devices = [[d.upper() for d in where if not where[d][backend]] for backend in names]
        rows.append(
            [f"`nn.{name}`", _paper(kind), _state(layer), *(", ".join(d) or "no" for d in devices)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |\n"
        for row in rows
    )


def _gate_reasons(layer: Stack, device: str) -> dict[str, list[str]]:
    """By backend why not, but for what a machine without a GPU lacks."""
    lacking = backends.explain(device) if device == "cuda" else {}
    return {
        name: [reason for reason in why if reason not in lacking.get(name, [])]
        for name, why in layer.explain(device).items()
    }


def _paper(kind: type[Stack]) -> str:
    (number,) = re.findall(r"arXiv\s+(\d{4}\.\d{5})", inspect.getdoc(kind) or "")[:1]
    return f"arXiv {number}"


def _state(layer: Stack) -> str:
    cell = layer._cells()[0]
    if cell.remembers_output:
        return "(h, c)"
    return "complex" if cell.carry_dtype.is_complex else "h"
