"""The recurrence on CUDA devices: plans a launch of `cuda_src/recurrence.cu`, allocates, launches.

PyTorch allocates every output and the workspace, in stream order, and the kernel only fills them:
no synchronisation, no host read, nothing shared between launches. After `warmup` a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.backends.cpu.operands import DTYPE, OPERAND, STORAGE, Operand
from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.backends.cuda.codegen import Fused, fused
from lightning_lrnn.core.dtypes import state_dtype

__all__ = ["backward", "forward", "gated_backward", "gated_forward", "missing", "warmup"]

SOURCE = "recurrence.cu"

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
CHAINS = 48
"""From which on a tile waits for the state of the one before it; with fewer the hops would take
longer than the traffic, and pairs are folded (`cuda_src/README.md`, Predictions). So a row's last
bits may depend on how many rows there are."""


class Plan(NamedTuple):
    """One launch."""

    macros: nvrtc.Macros
    grid: int
    block: int
    words: int
    """Of the workspace, 64 bits each; 0 = the kernel needs none."""
    tiles: int
    """Of time: each leaves its own sums of a parameter's gradient."""


def columns(D: int) -> int:
    """Features side by side in a block: the smallest power of two >= D, at most 32."""
    return min(MAX_COLUMNS, 1 << (D - 1).bit_length())


@cache
def steps(gate: Fused, operands: tuple[Operand, ...], step: str, resets: bool = False) -> int:
    """Steps of a thread's segment: what `SEGMENT` and `REGISTERS` allow, a power of two."""
    size = STATE[DTYPE[gate.state]].itemsize
    held = sum(o.varies and needed for o, needed in zip(operands, gate.needed, strict=True))
    if step == "backward":  # what was emitted, its gradient, and what the readout makes of it
        held += 2 + gate.reads_out
    registers = FEWER_REGISTERS if resets or size > 4 else REGISTERS
    most = min(SEGMENT // size, 4 * registers // (size * held))
    return 1 << (max(most, 1).bit_length() - 1)


@cache
def macros(
    gate: Fused,
    operands: tuple[Operand, ...],
    step: str,
    parallel: bool,
    width: int,
    carry: str = "chained",
    resets: bool = False,
    layout: str = "apart",
) -> nvrtc.Macros:
    """The variant of the kernel.

    Args:
        gate: compiled into it, for the same step.
        operands: of the gate.
        step: "forward" or "backward".
        parallel: over time, or one thread per column.
        width: features per block, which only the parallel schedule has.
        carry: "chained" or "folded", likewise.
        resets: whether a walk may start anew on its way.
        layout: "apart", "ahead" or "behind": where in memory a walk's next step lies.
    """
    return (
        ("LRNN_PASS", step),
        ("LRNN_SCHEDULE", "scan" if parallel else "serial"),
        ("LRNN_CARRY", carry if parallel else "chained"),
        ("LRNN_RESETS", str(int(resets))),
        ("LRNN_LAYOUT", layout),
        ("LRNN_COLUMNS", str(width if parallel else 1)),
        ("LRNN_THREADS", str(THREADS)),
        ("LRNN_STEPS", str(steps(gate, operands, step, resets))),
        ("LRNN_GATE", gate.source),
    )


def plan(
    gate: Fused,
    operands: tuple[Operand, ...],
    step: str,
    parallel: bool,
    shape: tuple[int, int, int],
    resets: bool = False,
    layout: str = "apart",
) -> Plan:
    """Variant, grid and workspace of one launch over (B, T, D), all at least 1.

    Raises:
        ValueError: if the launch would need more blocks than a CUDA grid can have.
    """
    B, T, D = shape
    width = columns(D)
    if parallel and B * D < WALK:
        segments, chains = THREADS // width, B * -(-D // width)
        tiles = -(-T // (steps(gate, operands, step, resets) * segments))
        carry = "folded" if chains < CHAINS and tiles > 2 else "chained"
        variant = macros(gate, operands, step, True, width, carry, resets, layout)
        # Word 0 counts the blocks that have started; the rest is what tiles tell each other.
        pieces = STATE[DTYPE[gate.state]].itemsize // 4
        words = 1 + chains * slots(carry, tiles, segments) * width * pieces if tiles > 1 else 0
        found = Plan(variant, chains * tiles, THREADS, words, tiles)
    else:
        variant = macros(gate, operands, step, False, width, "chained", resets, layout)
        found = Plan(variant, -(-B * D // SERIAL_THREADS), SERIAL_THREADS, 0, 1)
    if found.grid > MAX_BLOCKS:
        raise ValueError(
            f"(B, T, D) = ({B}, {T}, {D}) needs {found.grid} blocks, a CUDA grid has at most "
            f"{MAX_BLOCKS}: split the batch or the sequence"
        )
    return found


@lru_cache(maxsize=4096)  # shapes are many where lengths vary
def _planned(
    gate: str, readout: str, operands: tuple[Operand, ...], step: str, *how: Any
) -> tuple[Fused, Plan]:
    code = fused(gate, readout, operands, step)
    return code, plan(code, operands, step, *how)


def _layout(
    shape: tuple[int, int, int], lengths: Tensor | None, tensors: Sequence[Tensor], reverse: bool
) -> str:
    """Where a walk's next step lies: side by side only in whole rows of one feature."""
    _, T, D = shape
    if D > 1 or lengths is not None:
        return "apart"
    for x in tensors:
        if x.ndim == 3:
            sB, sT, _ = x.stride()
            places = (x.data_ptr(), sB * x.itemsize, T * x.itemsize)
            if sT != 1 or any(place % 16 for place in places):
                return "apart"
    return "behind" if reverse else "ahead"


def slots(carry: str, tiles: int, segments: int) -> int:
    """Values that a column of a chain leaves in the workspace: states, or pairs and states."""
    if carry == "chained":
        return tiles
    fold = max(segments, 16)
    groups = -(-tiles // fold)
    return 2 * (tiles + groups + -(-groups // fold))


def gated_forward(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the emitted states and h_final of the gated recurrence, in one kernel.

    Args:
        gate: program from `pre` to (a, b).
        readout: program from h and `pre` to y; "" if y is the emitted states.
        pre: sequences (B, T, D) and parameters (D,) or (B, D), any strides.
        h0: initial state (B, D), contiguous, in the dtype of the state; or None.
        lengths: int64 (B,), contiguous; or None.
        reset: bool (B, T), contiguous; or None.
        reverse: walk from the last step to the first.
        exclusive: what is emitted is the state before each step.
        parallel: over time, or one thread per column.

    Returns:
        y (B, T, D); the emitted states (B, T, D), y itself if there is no readout; h_final (B, D)
        in the dtype of the state. Contiguous.
    """
    pre, operands, shape = _plain(pre), _operands(pre), _shape(pre)
    layout = _layout(shape, lengths, pre, reverse)
    code, how = _planned(
        gate, readout, operands, "forward", parallel, shape, reset is not None, layout
    )
    B, T, D = shape
    state, x = DTYPE[code.state], pre[0]
    emitted = x.new_empty(shape, dtype=state)
    y = x.new_empty(shape, dtype=DTYPE[code.output]) if readout else emitted
    h_final = x.new_empty((B, D), dtype=STATE[state])
    tensors: list[int] = []
    for p in pre:
        tensors += _strided(p)
    tensors += [0] * 8
    tensors += [_pointer(h0), h_final.data_ptr(), 0]
    tensors += [y.data_ptr() if readout else 0, emitted.data_ptr(), *[0] * len(pre)]
    _launch(how, shape, (T * D, D), x.device, tensors, lengths, reset, reverse, exclusive)
    return y, emitted, h_final


def gated_backward(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    emitted: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
    into: Sequence[Tensor | None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of `pre` and h0 from those of y and h_final: the adjoint, walked the other way.

    Args:
        gate: as given to `gated_forward`.
        readout: as given to `gated_forward`.
        pre: as given to `gated_forward`; the values of those that `needed` leaves out are not read.
        emitted: what `gated_forward` returned, any strides.
        h0: as given to `gated_forward`.
        dy: gradient of y (B, T, D), any strides.
        dh_final: gradient of h_final (B, D), contiguous, in the dtype of the state; or None.
        lengths: as given to `gated_forward`.
        reset: as given to `gated_forward`.
        reverse: as given to `gated_forward`.
        exclusive: as given to `gated_forward`.
        parallel: as given to `gated_forward`.
        into: where the gradients of sequences go: (B, T, D), of the same strides, that of D 1. New
            tensors if None.

    Returns:
        Gradients of `pre`, of their shapes and dtypes, and of h0 (B, D) in the dtype of the state.
    """
    pre, operands, shape = _plain(pre), _operands(pre), _shape(pre)
    emitted, dy = _plain((emitted, dy))
    sequences = [g for g in into if g is not None] if into else []
    layout = _layout(shape, lengths, [*pre, emitted, dy, *sequences], not reverse)
    _, how = _planned(
        gate, readout, operands, "backward", parallel, shape, reset is not None, layout
    )
    B, T, D = shape
    dh0 = emitted.new_empty((B, D), dtype=STATE[emitted.dtype])
    # A tile that is all padding leaves its sums as they are.
    gradients = [
        p.new_zeros((how.tiles, B, D), dtype=_sum_dtype(p, emitted))
        if p.ndim < 3
        else (p.new_empty(shape) if given is None else given)
        for p, given in zip(pre, into or [None] * len(pre), strict=True)
    ]
    tensors: list[int] = []
    for x in (*pre, dy, emitted):
        tensors += _strided(x)
    tensors += [_pointer(dh_final), dh0.data_ptr(), _pointer(h0), 0, 0]
    tensors += [g.data_ptr() for g in gradients]
    sB, sT = sequences[0].stride()[:2] if sequences else (T * D, D)
    _launch(how, shape, (sB, sT), emitted.device, tensors, lengths, reset, reverse, exclusive)
    return [_reduced(g, p) for g, p in zip(gradients, pre, strict=True)], dh0


def forward(a: Tensor, b: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """y and h_final of the plain recurrence: the gate that returns its inputs."""
    y, _, h_final = gated_forward(gates.IDENTITY, "", [a, b], *arguments, **options)
    return y, h_final


def backward(
    a: Tensor, y: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and h0 of the plain recurrence, which do not depend on b."""
    (da, db), dh0 = gated_backward(gates.IDENTITY, "", [a, a], y, *arguments, **options)
    return da, db, dh0


def _reduced(gradient: Tensor, p: Tensor) -> Tensor:
    """The gradient of a parameter from the sums of tiles and rows, in their fixed order."""
    if p.ndim == 3:
        return gradient
    return gradient.sum((0, 1) if p.ndim == 1 else 0).to(p.dtype)


def _sum_dtype(p: Tensor, emitted: Tensor) -> torch.dtype:
    """In which gradients of a parameter are summed."""
    real = state_dtype(emitted.dtype)
    real = real.to_real() if real.is_complex else real
    return real.to_complex() if p.is_complex() else real


def _launch(
    how: Plan,
    shape: tuple[int, int, int],
    strides: tuple[int, int],
    device: torch.device,
    tensors: list[int],
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
) -> None:
    """Fills `struct Problem`.

    `tensors` are the fields before `lengths`, `strides` those of the outputs' rows and steps, in
    elements.
    """
    kernel = _kernel(how.macros, device)
    # Zeroed in stream order, and the launch's own: a launch in flight may still read an older one.
    workspace = torch.zeros(how.words, dtype=torch.int64, device=device) if how.words else None
    problem = [*tensors, _pointer(lengths), _pointer(reset), *shape, *strides]
    problem += [int(reverse), int(exclusive), _pointer(workspace)]
    nvrtc.launch(kernel, how.grid, how.block, problem, device)


def _kernel(variant: nvrtc.Macros, device: torch.device) -> object:
    capability = torch.cuda.get_device_capability(device)
    loaded = nvrtc.loaded(SOURCE, variant, capability)
    if loaded is not None:
        return loaded
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured and the kernel is not loaded yet: call "
            "lightning_lrnn.warmup(device, dtype, features), or the operation once, before capture"
        )
    return nvrtc.kernel(SOURCE, variant, capability)


def _operands(pre: Sequence[Tensor]) -> tuple[Operand, ...]:
    return tuple([OPERAND[p.dtype, p.ndim] for p in pre])


def _shape(pre: Sequence[Tensor]) -> tuple[int, int, int]:
    for p in pre:
        if p.ndim == 3:
            B, T, D = p.shape
            return B, T, D
    raise ValueError("none of the inputs is a sequence (B, T, D)")


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values without lazy conjugation or negation, which a pointer would drop."""
    return [x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x for x in tensors]


def _strided(x: Tensor) -> tuple[int, int, int, int]:
    """A pointer and the strides of (B, T, D) in bytes; those along which x is the same are 0."""
    size, strides = x.itemsize, x.stride()
    sB = strides[0] if x.ndim > 1 else 0
    sT = strides[1] if x.ndim > 2 else 0
    return x.data_ptr(), size * sB, size * sT, size * strides[-1]


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def missing() -> list[str]:
    """Why kernels cannot run here, with the remedies; [] = they can. Initialises no device."""
    return [*_pytorch_lacks(), *nvrtc.missing(), *_too_old()]


@cache
def _pytorch_lacks() -> tuple[str, ...]:
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) is built without CUDA: "
            "install a CUDA build (https://pytorch.org/get-started)",
        )
    if torch.cuda.device_count() == 0:
        return ("PyTorch sees no CUDA device: look at nvidia-smi and CUDA_VISIBLE_DEVICES",)
    return ()


def _too_old() -> list[str]:
    """Why NVRTC cannot compile for this process's devices, if for none of them it can."""
    if not torch.cuda.is_initialized():
        return []  # asking would initialise them; the first launch says the same
    return list(_too_old_for_all())


@cache
def _too_old_for_all() -> tuple[str, ...]:
    if nvrtc.missing():
        return ()
    devices = range(torch.cuda.device_count())
    capabilities = dict.fromkeys(map(torch.cuda.get_device_capability, devices))
    reasons = [nvrtc.missing_for(capability) for capability in capabilities]
    return tuple(reasons[0]) if reasons and all(reasons) else ()


def warmup(
    device: str | torch.device | int = "cuda",
    dtype: torch.dtype = torch.float32,
    features: int | None = None,
    *,
    parallel: bool = True,
) -> None:
    """Compiles, loads and runs once the kernels that calls on a device will need.

    Before a CUDA graph is captured, and wherever the first step shall not be the slow one: about
    0.4 s for a kernel that is compiled, some milliseconds for one from the disk. Those of the plain
    recurrence without `reset`; for others, and for layers, make one call of the shape to come.

    Args:
        device: a CUDA device; the current one if it has no index.
        dtype: of the sequences.
        features: D of the sequences; all kernels of the dtype if None.
        parallel: those of the backend `scan`, else those of `serial`.

    Raises:
        RuntimeError: if the kernels cannot be compiled or run; with the reasons.
    """
    if reasons := missing():
        raise RuntimeError(f"no kernels for {device}: {'; '.join(reasons)}")
    x = torch.empty(0, device=torch.device("cuda", device) if isinstance(device, int) else device)
    if features is not None:
        widths = [features]
    else:
        widths = [1 << power for power in range(MAX_COLUMNS.bit_length())] if parallel else [1]
    for width in widths:
        tile = SEGMENT // 4 * THREADS // columns(width)  # of no dtype more
        regimes = [(1, 0), (1, 2 * tile), (-(-WALK // width), 0)] if parallel else [(1, 0)]
        # Steps that lie apart and, in rows of one feature, side by side, ahead or behind.
        for (B, T), more in itertools.product(regimes, (1, 16) if width == 1 else (1,)):
            a = torch.zeros((B, T + more, width), dtype=dtype, device=x.device)
            _run_once(a, parallel, reverse=False)
            if more == 16:
                _run_once(a, parallel, reverse=True)


def _run_once(a: Tensor, parallel: bool, reverse: bool) -> None:
    """A launch loads the code into the device's context, which loading alone leaves for later."""
    options = {"reverse": reverse, "exclusive": False, "parallel": parallel}
    y, _ = forward(a, a, None, None, None, **options)
    backward(a, y, None, a, None, None, None, **options)
