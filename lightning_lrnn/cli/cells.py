"""The table of layers: what each is and which backends run it where, from the code alone."""

from __future__ import annotations

import inspect
import re

from lightning_lrnn import backends
from lightning_lrnn.cli.parser import Parser
from lightning_lrnn.cli.tables import markdown_table
from lightning_lrnn.nn import CELLS
from lightning_lrnn.nn.stack import Stack

__all__ = ["cells_table", "main"]


def main(words: list[str]) -> None:
    """Prints the table."""
    Parser(
        prog="lightning-lrnn cells",
        description="Lists the recurrent layers; each is a name for `--model.rnn`.",
    ).parse_args(words[1:])
    print(cells_table(), end="")


def cells_table() -> str:
    """Returns a table in Markdown with one row per layer, the same on every machine."""
    names = backends.BUILT_IN
    rows = [["layer", "paper", "state", *(f"`{name}`" for name in names)]]
    for name, layer_class in CELLS.items():
        layer = layer_class(1, 2, device="meta")
        reasons = {device: _gate_reasons(layer, device) for device in ("cpu", "cuda")}
        devices = [[d.upper() for d in reasons if not reasons[d][backend]] for backend in names]
        support = [", ".join(d) or "no" for d in devices]
        rows.append([f"`nn.{name}`", _paper(layer_class), _state(layer), *support])
    return markdown_table(rows)


def _gate_reasons(layer: Stack, device: str) -> dict[str, list[str]]:
    """Reasons by backend, without those of a machine without a GPU."""
    lacking = backends.explain(device) if device == "cuda" else {}
    return {
        name: [reason for reason in why if reason not in lacking.get(name, [])]
        for name, why in layer.explain(device).items()
    }


def _paper(layer_class: type[Stack]) -> str:
    (number,) = re.findall(r"arXiv\s+(\d{4}\.\d{5})", inspect.getdoc(layer_class) or "")[:1]
    return f"arXiv {number}"


def _state(layer: Stack) -> str:
    cell = layer._cells()[0]
    if cell.remembers_output:
        return "(h, c)"
    return "complex" if cell.carry_dtype.is_complex else "h"
