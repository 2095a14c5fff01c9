"""Which variant of `cuda_src/recurrence.cu` is launched for a shape, and with which grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor

from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.backends.cuda.codegen import Fused
from lightning_lrnn.backends.operands import DTYPE, STORAGE, Operand
from lightning_lrnn.core.dtypes import state_dtype

__all__ = ["Pass", "Plan", "columns", "kept", "layout_of", "macros", "plan", "slots", "steps"]

STATE = {dtype: state_dtype(dtype) for dtype in STORAGE}

THREADS = 256
SERIAL_THREADS = 128
MAX_COLUMNS = 32
MAX_BLOCKS = 2**31 - 1

SEGMENT = 64
"""Bytes of each sequence that a thread holds at most (16-bit values become 32-bit ones there)."""
REGISTERS, FEWER_REGISTERS = 56, 48
"""Of 32 bits, for all sequences of a segment; fewer with resets, or with states of 64 bits, which
need registers of their own: so no shipped gate spills on any architecture."""
WALK = 32768
"""Columns, B * D, from which on one thread for each walks it through time: they fill the device by
themselves, and nothing needs to be combined (`cuda_src/README.md`, Regimes)."""
SHORT = 6
"""Segments up to which columns are walked however few they are: combining takes longer."""
CHAINS = 48
"""From which on a tile waits for the state of the one before it; with fewer the hops would take
longer than the traffic, and pairs are folded (`cuda_src/README.md`, Predictions). So a row's last
bits may depend on how many rows there are."""
PACKED = False
"""Whether two neighbouring features of 16 bits are computed by one thread, as one word of 32 bits,
where they lie so: fewer instructions, by their count. Not until a GPU has run it."""
BLOCKS = 2
"""That a multiprocessor shall hold at least; more where no shipped gate then spills, `_blocks`."""
ROOM, OPERATIONS = 32, {"forward": 9, "backward": 5}
"""Registers of a segment, and operations of a gate with its readout, up to which that is so."""


class Plan(NamedTuple):
    """A variant of the kernel, and the grid and workspace of a launch."""

    macros: nvrtc.Macros
    grid: int
    block: int
    words: int
    """Of the workspace, 64 bits each; 0 = the kernel needs none."""
    tiles: int
    """Of time: each leaves its own sums of a parameter's gradient."""
    features: int = 1
    """Of a thread, side by side: what the kernel takes for one."""


class Pass(NamedTuple):
    """What a kernel is asked for, beside the gate."""

    step: str
    """Which pass it is: "forward" or "backward"."""
    parallel: bool
    """Over time, or one thread per column."""
    resets: bool = False
    """Whether a document may start on the way."""
    layout: str = "apart"
    """"apart", "ahead" or "behind": where in memory the next step lies. Or "packed": apart, and two
    neighbouring features of 16 bits are one word of 32."""
    lengths: bool = False
    """Whether a row may end before the last step."""
    result: str = "outputs"
    """All "outputs" of the pass, or the "pair" of its walk alone, which only tiles give."""
    segment: int = 0
    """Steps of a thread's segment, where a pair has the tiles of its pass; 0 for as many as fit."""
    given: bool = False
    """Whether a pair of the same tiles has left what lies before each."""


def columns(D: int) -> int:
    """Features side by side in a block: the smallest power of two >= D, at most 32."""
    return min(MAX_COLUMNS, 1 << (D - 1).bit_length())


@cache
def steps(gate: Fused, operands: tuple[Operand, ...], pass_: Pass) -> int:
    """Steps of a thread's segment: what `SEGMENT` and `REGISTERS` allow, a power of two."""
    if pass_.segment:
        return pass_.segment
    size = STATE[DTYPE[gate.state]].itemsize
    registers = FEWER_REGISTERS if pass_.resets or size > 4 else REGISTERS
    most = SEGMENT // size
    if pass_.layout == "packed" and gate.operations == 0:
        registers = FEWER_REGISTERS // (1 + pass_.resets)
    elif pass_.layout == "packed":  # what is loaded takes as many, what is computed twice as many
        crowded = pass_.resets or gate.operations >= OPERATIONS["backward"]
        most, registers = most // (1 + crowded) // (1 + (pass_.step == "backward")), ROOM
    most = min(most, registers // _registers(gate, operands, pass_))
    return 1 << (max(most, 1).bit_length() - 1)


def _registers(gate: Fused, operands: tuple[Operand, ...], pass_: Pass) -> int:
    """Of 32 bits, for one step of every sequence that a thread holds."""
    constant = pass_.layout == "packed"  # parameters count too
    held = sum(
        (o.varies or constant) and needed for o, needed in zip(operands, gate.needed, strict=True)
    )
    if pass_.step == "backward" and pass_.result == "pair":  # gradients; states for a readout alone
        held += 1 + gate.reads_out
    elif pass_.step == "backward":  # hidden states, their gradient, what the readout makes of them
        held += 2 + gate.reads_out
    return held * STATE[DTYPE[gate.state]].itemsize // 4


@cache
def macros(
    gate: Fused,
    operands: tuple[Operand, ...],
    pass_: Pass,
    width: int,
    carry: str = "chained",
    tiles: str = "any",
) -> nvrtc.Macros:
    """The variant of the kernel.

    Args:
        gate: compiled into it, for the same step.
        operands: of the gate.
        pass_: what is launched.
        width: features per block, which only the parallel schedule has.
        carry: "chained", "folded" or "given", likewise.
        tiles: "any" or, if no tile has a step or a feature less than it may, "whole", likewise.
    """
    step, parallel, resets, layout, _, result = pass_[:6]
    return (
        ("LRNN_PASS", step),
        ("LRNN_RESULT", result),
        ("LRNN_SCHEDULE", "scan" if parallel else "serial"),
        ("LRNN_CARRY", carry if parallel else "chained"),
        ("LRNN_RESETS", str(int(resets))),
        ("LRNN_LAYOUT", "apart" if layout == "packed" else layout),
        ("LRNN_PACKED", str(int(layout == "packed"))),
        ("LRNN_ANEW", str(int(layout == "packed" and not gate.operations))),
        ("LRNN_COLUMNS", str(width if parallel else 1)),
        ("LRNN_THREADS", str(THREADS)),
        ("LRNN_STEPS", str(steps(gate, operands, pass_))),
        ("LRNN_TILES", tiles),
        ("LRNN_BLOCKS", str(_blocks(gate, operands, pass_, width, carry, tiles))),
        ("LRNN_GATE", gate.source),
    )


def plan(
    gate: Fused, operands: tuple[Operand, ...], pass_: Pass, shape: tuple[int, int, int]
) -> Plan:
    """Variant, grid and workspace of one launch over (B, T, D), all at least 1.

    Raises:
        ValueError: if the launch would need more blocks than a CUDA grid can have.
    """
    B, T, D = shape
    if pass_.layout == "packed" and (not gate.real or pass_.given):
        pass_ = pass_._replace(layout="apart")
    width, segment, pair = columns(D), steps(gate, operands, pass_), pass_.result == "pair"
    features = 2 if pass_.layout == "packed" else 1  # which are at least MAX_COLUMNS pairs
    apart = steps(gate, operands, pass_._replace(layout="apart"))
    if pair or _in_tiles(pass_, apart, shape):
        segments, chains = THREADS // width, B * -(-D // width)
        tiles, rest = -(-T // (segment * segments)), T % (segment * segments)
        carry = "folded" if pair or (chains < CHAINS and tiles > 2) else "chained"
        carry = "given" if pass_.given and tiles > 1 else carry
        chains = B * -(-D // (features * width))
        # A kernel without the path of other tiles, where that gives another block room.
        whole = not (rest or D % (features * MAX_COLUMNS) or pass_.lengths)
        if features == 2 and not whole and _is_crowded(pass_, carry):
            return plan(gate, operands, pass_._replace(layout="apart"), shape)
        whole = whole and (
            features == 2
            or _blocks(gate, operands, pass_, width, carry, "whole")
            > _blocks(gate, operands, pass_, width, carry, "any")
        )
        variant = macros(gate, operands, pass_, width, carry, "whole" if whole else "any")
        words = _words(gate, carry, shape, segment, features) if tiles > 1 else 0
        result = Plan(variant, chains * tiles, THREADS, words, tiles, features)
    else:
        variant = macros(gate, operands, pass_._replace(parallel=False), width)
        blocks = -(-B * D // (features * SERIAL_THREADS))
        result = Plan(variant, blocks, SERIAL_THREADS, 0, 1, features)
    if result.grid > MAX_BLOCKS:
        raise ValueError(
            f"(B, T, D) = ({B}, {T}, {D}) needs {result.grid} blocks, a CUDA grid has at most "
            f"{MAX_BLOCKS}: split the batch or the sequence"
        )
    return result


def kept(
    gate: Fused, operands: tuple[Operand, ...], pass_: Pass, shape: tuple[int, int, int]
) -> int:
    """Words that the pair of a pass leaves for it, of any tensors of this shape; 0 for none.

    Args:
        gate: with its readout.
        operands: of the gate.
        pass_: the pass itself, not its pair.
        shape: (B, T, D), of which B and T may be symbols.
    """
    segment = steps(gate, operands, pass_)
    tile = segment * (THREADS // columns(shape[2]))
    if not _in_tiles(pass_, segment, shape) or shape[1] <= tile:
        return 0
    return _words(gate, "given", shape, segment)


def _in_tiles(pass_: Pass, segment: int, shape: tuple[int, int, int]) -> bool:
    """Whether a pass runs in tiles rather than column by column."""
    B, T, D = shape
    return pass_.parallel and B * D < WALK and T > SHORT * segment


def _words(
    gate: Fused, carry: str, shape: tuple[int, int, int], segment: int, features: int = 1
) -> int:
    """Of a workspace: word 0 counts the blocks that have started; the rest is what tiles tell."""
    B, T, D = shape
    width, words_of_a_value = columns(D), features * STATE[DTYPE[gate.state]].itemsize // 4
    segments = THREADS // width
    chains, tiles = B * -(-D // (features * width)), -(-T // (segment * segments))
    return 1 + chains * slots(carry, tiles, segments) * width * words_of_a_value


def _blocks(
    gate: Fused, operands: tuple[Operand, ...], pass_: Pass, width: int, carry: str, tiles: str
) -> int:
    """How many blocks a multiprocessor shall hold at least, which bounds the registers."""
    if not pass_.parallel or pass_.resets or width < MAX_COLUMNS:
        return BLOCKS
    if pass_.layout == "packed":
        plain = gate.operations == 0 and pass_.step == "forward" and pass_.result == "outputs"
        return BLOCKS + (tiles == "whole" and plain)
    segment = steps(gate, operands, pass_)
    small = segment * _registers(gate, operands, pass_) <= ROOM
    few = gate.operations <= OPERATIONS[pass_.step] and not gate.state.startswith("c")
    if pass_.result == "pair":  # which holds no outputs
        gated = gate.operations > 0 and len(operands) == 1
        crowded = pass_.step == "backward" and gated and segment > 8  # on sm_100
        return BLOCKS + (not crowded and (small or gate.operations <= OPERATIONS["forward"]))
    if pass_.step == "backward":
        plain = gate.state == "f32" and gate.operations == 0 and carry != "folded"
        return BLOCKS + (tiles == "whole" and (plain or (small and few)))
    if carry == "folded" or (carry == "given" and tiles == "any"):
        return BLOCKS + (small and not gate.state.startswith("c"))
    return BLOCKS + small + (small and few and gate.state != "f64")  # which spills on sm_120


def _is_crowded(pass_: Pass, carry: str) -> bool:
    """Whether two features to a thread, and the path of tiles that are not whole, would spill."""
    return pass_.result == "outputs" and (carry == "folded" or pass_.step == "backward")


def layout_of(
    shape: tuple[int, int, int], lengths: Tensor | None, tensors: Sequence[Tensor], *, reverse: bool
) -> str:
    """Where a walk's next step lies: side by side only in whole rows of one feature."""
    _, T, D = shape
    if PACKED and can_be_packed(D, tensors):
        return "packed"
    if D > 1 or lengths is not None:
        return "apart"
    for x in tensors:
        if x.ndim == 3:
            sB, sT, _ = x.stride()
            offsets = (x.data_ptr(), sB * x.itemsize, T * x.itemsize)
            if sT != 1 or any(offset % 16 for offset in offsets):
                return "apart"
    return "behind" if reverse else "ahead"


def is_always_apart(shape: tuple[int, int, int]) -> bool:
    """Whether `layout_of` answers "apart" wherever tensors of this shape lie."""
    return shape[2] > 1 and not PACKED


def can_be_packed(D: int, tensors: Sequence[Tensor]) -> bool:
    """Whether two features side by side are 32 bits in every sequence, and fill a block's columns.

    Args:
        D: features.
        tensors: all that are read, and those written that are not contiguous.
    """
    if D % 2 or D < 2 * MAX_COLUMNS:
        return False
    for x in tensors:
        if x.itemsize > (2 if x.ndim == 3 else 4) or x.stride(-1) != 1:
            return False
        offsets = (x.data_ptr(), *[x.itemsize * stride for stride in x.stride()[:-1]])
        if x.itemsize == 2 and any(offset % 4 for offset in offsets):
            return False
    return True


def slots(carry: str, tiles: int, segments: int) -> int:
    """Values that a column of a chain leaves in the workspace: states, or pairs and states."""
    if carry == "chained":
        return tiles
    fold = max(segments, 16)
    groups = -(-tiles // fold)
    return 2 * (tiles + groups + -(-groups // fold))
