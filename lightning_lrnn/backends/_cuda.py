"""The recurrence on CUDA devices: plans a launch of `cuda_src/recurrence.cu`, allocates, launches.

PyTorch allocates every output and the workspace, in stream order, and the kernel only fills them:
no synchronisation, no host read, nothing shared between launches. After `warmup` a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_lrnn import _nvrtc

__all__ = ["backward", "forward", "missing", "warmup"]

SOURCE = "recurrence.cu"


class Tile(NamedTuple):
    """How a dtype is computed; the tile covers `steps * threads` elements."""

    storage: str
    threads: int
    steps: int
    pieces: int
    """32-bit pieces of a state: each takes one word of the workspace."""


# 64 bytes of state values per thread: as many loads in flight as the registers of every supported
# architecture hold without spills (16-bit values become 32-bit ones there).
TILES = {
    torch.float16: Tile("f16", 256, 16, 1),
    torch.bfloat16: Tile("bf16", 256, 16, 1),
    torch.float32: Tile("f32", 256, 16, 1),
    torch.float64: Tile("f64", 256, 8, 2),
    torch.complex64: Tile("c64", 256, 8, 2),
    torch.complex128: Tile("c128", 256, 4, 4),
}

MAX_COLUMNS = 32
SERIAL_THREADS = 128
MAX_BLOCKS = 2**31 - 1


class Plan(NamedTuple):
    """One launch."""

    macros: _nvrtc.Macros
    grid: int
    block: int
    words: int
    """Of the workspace, 64 bits each; 0 = the kernel needs none."""


def columns(D: int) -> int:
    """Features side by side in a block: the smallest power of two >= D, at most 32."""
    return min(MAX_COLUMNS, 1 << (D - 1).bit_length())


@cache
def macros(dtype: torch.dtype, step: str, parallel: bool, width: int) -> _nvrtc.Macros:
    """The variant of the kernel.

    Args:
        dtype: of the inputs.
        step: "forward" or "backward".
        parallel: over time, or one thread per column.
        width: features per block, which only the parallel schedule has.
    """
    tile = TILES[dtype]
    return (
        ("LRNN_STORAGE", tile.storage),
        ("LRNN_PASS", step),
        ("LRNN_SCHEDULE", "scan" if parallel else "serial"),
        ("LRNN_COLUMNS", str(width if parallel else 1)),
        ("LRNN_THREADS", str(tile.threads)),
        ("LRNN_STEPS", str(tile.steps)),
    )


def plan(dtype: torch.dtype, step: str, parallel: bool, B: int, T: int, D: int) -> Plan:
    """Variant, grid and workspace of one launch over (B, T, D), all at least 1.

    Raises:
        ValueError: if the launch would need more blocks than a CUDA grid can have.
    """
    tile, width = TILES[dtype], columns(D)
    variant = macros(dtype, step, parallel, width)
    if parallel:
        tile_length = tile.steps * tile.threads // width
        tiles = -(-T // tile_length)
        blocks = B * -(-D // width) * tiles
        # Word 0 counts the blocks that have started; the rest passes states between tiles.
        words = 1 + blocks * width * tile.pieces if tiles > 1 else 0
        found = Plan(variant, blocks, tile.threads, words)
    else:
        found = Plan(variant, -(-B * D // SERIAL_THREADS), SERIAL_THREADS, 0)
    if found.grid > MAX_BLOCKS:
        raise ValueError(
            f"(B, T, D) = ({B}, {T}, {D}) needs {found.grid} blocks, a CUDA grid has at most "
            f"{MAX_BLOCKS}: split the batch"
        )
    return found


def forward(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor]:
    """y and h_final of h_t = a_t * h_{t-1} + b_t.

    Args:
        a: decays (B, T, D), any strides.
        b: impulses (B, T, D), any strides, same dtype.
        h0: initial state (B, D), contiguous, in the dtype of the state; or None.
        lengths: int64 (B,), contiguous; or None.
        reset: bool (B, T), contiguous; or None.
        reverse: walk from the last step to the first.
        exclusive: y_t is the state before step t.
        parallel: over time, or one thread per column.

    Returns:
        y (B, T, D) in the dtype of `b` and h_final (B, D) in that of the state, contiguous.
    """
    (a, b), shape, like = _plain(a, b), b.shape, b.device
    with torch.cuda.device(like):
        y = torch.empty(shape, dtype=b.dtype, device=like)
        h_final = torch.empty((shape[0], shape[2]), dtype=_state_dtype(b.dtype), device=like)
        inputs = [*_strided(a), *_strided(b), _pointer(h0)]
        _run(
            "forward",
            parallel,
            b,
            [*inputs, y.data_ptr(), h_final.data_ptr()],
            lengths,
            reset,
            reverse,
            exclusive,
        )
    return y, h_final


def backward(
    a: Tensor,
    y: Tensor,
    h0: Tensor | None,
    dy: Tensor,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    *,
    reverse: bool,
    exclusive: bool,
    parallel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """da, db and dh0 from dy and dh_final: the adjoint recurrence, walked the other way.

    Args:
        a: decays (B, T, D), any strides.
        y: what `forward` returned, any strides.
        h0: as given to `forward`.
        dy: gradient of y (B, T, D), any strides, same dtype.
        dh_final: gradient of h_final (B, D), contiguous, in the dtype of the state; or None.
        lengths: as given to `forward`.
        reset: as given to `forward`.
        reverse: as given to `forward`.
        exclusive: as given to `forward`.
        parallel: over time, or one thread per column.

    Returns:
        da, db (B, T, D) in the dtype of `a` and dh0 (B, D) in that of the state, contiguous.
    """
    (a, y, dy), shape, like = _plain(a, y, dy), y.shape, y.device
    with torch.cuda.device(like):
        da = torch.empty(shape, dtype=y.dtype, device=like)
        db = torch.empty(shape, dtype=y.dtype, device=like)
        dh0 = torch.empty((shape[0], shape[2]), dtype=_state_dtype(y.dtype), device=like)
        inputs = [*_strided(a), *_strided(y), *_strided(dy), _pointer(h0), _pointer(dh_final)]
        outputs = [da.data_ptr(), db.data_ptr(), dh0.data_ptr()]
        _run("backward", parallel, y, [*inputs, *outputs], lengths, reset, reverse, exclusive)
    return da, db, dh0


def _run(
    step: str,
    parallel: bool,
    x: Tensor,
    arguments: list[Any],
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
) -> None:
    """Launches one pass over tensors of the shape, dtype and device of `x`.

    `arguments` are those that stand before `lengths` in the kernel's list.
    """
    B, T, D = x.shape
    how = plan(x.dtype, step, parallel, B, T, D)
    kernel = _kernel(how.macros, x.device)
    # Zeroed in stream order, and the launch's own: a launch in flight may still read an older one.
    workspace = torch.zeros(how.words, dtype=torch.int64, device=x.device) if how.words else None
    shape = [np.int64(size) for size in (B, T, D)]
    flags = [np.int32(reverse), np.int32(exclusive)]
    _nvrtc.launch(
        kernel,
        how.grid,
        how.block,
        [*arguments, _pointer(lengths), _pointer(reset), *shape, *flags, _pointer(workspace)],
        x.device,
    )


def _kernel(variant: _nvrtc.Macros, device: torch.device) -> Any:
    capability = torch.cuda.get_device_capability(device)
    if (
        not _nvrtc.is_loaded(SOURCE, variant, capability)
        and torch.cuda.is_current_stream_capturing()
    ):
        raise RuntimeError(
            "a CUDA graph is being captured and the kernel is not loaded yet: call "
            "lightning_lrnn.warmup(device, dtype, features), or the operation once, before capture"
        )
    return _nvrtc.kernel(SOURCE, variant, capability)


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same values without lazy conjugation or negation, which a pointer would drop."""
    return tuple(x.resolve_conj().resolve_neg() for x in tensors)


def _strided(x: Tensor) -> list[Any]:
    return [x.data_ptr(), *(np.int64(stride) for stride in x.stride())]


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def missing() -> list[str]:
    """Why kernels cannot run here, with the remedies; [] = they can. Initialises no device."""
    return [*_pytorch_lacks(), *_nvrtc.missing(), *_too_old()]


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
    if _nvrtc.missing():
        return ()
    devices = range(torch.cuda.device_count())
    capabilities = dict.fromkeys(map(torch.cuda.get_device_capability, devices))
    reasons = [_nvrtc.missing_for(capability) for capability in capabilities]
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
    0.2 s for a kernel that is compiled, some milliseconds for one from the disk.

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
        a = torch.zeros((1, 1, width), dtype=dtype, device=x.device)
        options = {"reverse": False, "exclusive": False, "parallel": parallel}
        y, _ = forward(a, a, None, None, None, **options)
        # A launch loads the code into the device's context, which loading alone leaves for later.
        backward(a, y, None, a, None, None, None, **options)
