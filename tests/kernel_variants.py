"""Gates to compile into the CUDA kernel, and the macros of a variant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gate_functions import FUNCTIONS
from layers import SINGLE_LAYERS, recurrences

from lightning_lrnn import gates
from lightning_lrnn.backends.cuda import nvrtc, plan
from lightning_lrnn.backends.cuda.codegen import fused
from lightning_lrnn.backends.operands import DTYPE, STORAGE, Operand
from lightning_lrnn.nn.cells.sru import highway, sru
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

PASSES = ("forward", "backward")


class Kind(NamedTuple):
    """A gate with its readout and its operands."""

    gate: str
    readout: str
    operands: tuple[Operand, ...]


def of(storage: str, count: int, parameters: int = 0) -> tuple[Operand, ...]:
    varies = [True] * count + [False] * parameters
    return tuple(Operand(storage, v) for v in varies)


def gated(name: str, storage: str) -> Kind:
    function, kinds = FUNCTIONS[name]
    return Kind(gates.trace(function), "", of(storage, len(kinds)))


KINDS = {
    **{storage: Kind(gates.IDENTITY, "", of(storage, 2)) for storage in DTYPE},
    **{
        f"{name} {storage}": gated(name, storage)
        for name, storages in {
            "gilr": ("f32",),
            "minGRU": ("f32",),
            "minLSTM": ("f32",),
        }.items()
        for storage in storages
    },
    **{
        f"lstm with readout {storage}": Kind(lstm.program, output_tanh.program, of(storage, 4))
        for storage in ("f32", "bf16", "f64")
    },
    "sru f32": Kind(sru.program, highway.program, of("f32", 4)),
    "sru with parameters f32": Kind(
        gates.trace(FUNCTIONS["sru with bias"][0]), "", of("f32", 2, 1)
    ),
    "gilr of complex c64": gated("gilr of complex", "c64"),
}


def of_layers() -> Iterator[tuple[str, Kind]]:
    """What every cell asks for with each of its options, as far as no other has asked for it."""
    seen = set(KINDS.values())
    for cell, options in SINGLE_LAYERS:
        for gate, readout, pre in recurrences(cell, options):
            operands = tuple(Operand(STORAGE[p.dtype], p.ndim == 3) for p in pre)
            kind = Kind(gate.program, readout.program if readout else "", operands)
            if kind not in seen:
                seen.add(kind)
                chosen = "".join(f" {value}" for value in options.values())
                yield f"{cell}{chosen} {operands[0].storage}", kind


KINDS |= of_layers()


def of_16_bits(kind: Kind) -> Kind:
    """The same gate of sequences in bfloat16."""
    operands = [o._replace(storage="bf16") if o.varies else o for o in kind.operands]
    return kind._replace(operands=tuple(operands))


PACKED_KINDS = {
    "f16": KINDS["f16"],
    **{
        f"{name.removesuffix(' f32').removesuffix('f32')} bf16".strip(): of_16_bits(kind)
        for name, kind in KINDS.items()
        if all(o.storage == "f32" for o in kind.operands)
    },
}


def packed_variant(
    kind: Kind, step: str, parallel: bool, carry: str = "chained", resets: bool = False, **how: str
) -> nvrtc.Macros:
    """Of two features to a thread."""
    return variant(kind, step, parallel, 32, carry, resets, "packed", **how)


def variant(
    kind: Kind,
    step: str,
    parallel: bool,
    width: int,
    carry: str = "chained",
    *how: str | bool,
    tiles: str = "any",
) -> nvrtc.Macros:
    """`how`: resets, layout."""
    code = fused(*kind, step)
    return plan.macros(code, kind.operands, plan.Pass(step, parallel, *how), width, carry, tiles)


def pair_variant(
    kind: Kind, step: str, width: int, *how: str | bool, kept: bool = False
) -> nvrtc.Macros:
    """Of what gives a pair alone; `how` as above. Forward no readout is read.

    `kept`: in the steps of the pass, whose tiles are given what it leaves.
    """
    code = fused(kind.gate, kind.readout if step == "backward" else "", kind.operands, step)
    asked = plan.Pass(step, True, *how)
    segment = plan.steps(fused(*kind, step), kind.operands, asked) if kept else 0
    asked = asked._replace(result="pair", segment=segment)
    return plan.macros(code, kind.operands, asked, width, "folded")
