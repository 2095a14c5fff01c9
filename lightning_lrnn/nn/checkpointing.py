"""Less memory for long sequences: chunks of time that the backward pass computes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_lrnn.core.process_memory import give_back, resident
from lightning_lrnn.core.ranks import Ranks, all_gather

__all__ = ["check_checkpoint_time", "in_chunks"]

Run = Callable[[Tensor, Any, Tensor | None, Tensor | None], tuple[Any, Any]]

GROWTH = 1 << 28
"""Growth of the process over the chunks, in bytes, after which freed memory is returned."""


def in_chunks(
    run: Run,
    x: Tensor,
    state: Any,
    lengths: Tensor | None,
    reset: Tensor | None,
    size: int,
    reverse: bool = False,
    ranks: Ranks | None = None,
) -> tuple[list[Any], Any]:
    """Runs over x chunk by chunk, and saves only the output and the state of each chunk.

        y_k, state = run(x_k, state, lengths_k, reset_k)

    The backward pass computes the rest again, a chunk at a time: the activations of `size` time
    steps are in memory, not those of T, and T / size states. Gradients flow from chunk to chunk.
    They have the bits of the same chunks without recomputation, since dropout draws the same
    numbers again.

    Args:
        run: called with (B, size, ·), the state before, and lengths and resets within the chunk.
        x: (B, T, ·), T > 0.
        state: before the first chunk that is run; in reverse a tensor (B, ·).
        lengths: valid steps of each row, (B,), or None.
        reset: (B, T), or None.
        size: time steps of a chunk; the last one may be shorter.
        reverse: whether the chunks run from the last to the first.
        ranks: that share each chunk, of which `size` steps are here (`core.ranks.part_of`);
            lengths are then those of the whole sequence, and of a whole chunk.

    Returns:
        The outputs in order of time, and the state after the last chunk that was run.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        run = _trimming(run)
    # Not slices: each would have a gradient as large as all of x.
    chunks = x.split(size, 1)
    resets: Any = [None] * len(chunks) if reset is None else reset.split(size, 1)
    starts = _starts(resets, ranks) if reverse and reset is not None else None
    shared = 1 if ranks is None else ranks.size
    outputs = []
    order = range(len(chunks))
    for k in reversed(order) if reverse else order:
        steps = chunks[k].shape[1]
        within = None if lengths is None else (lengths - k * size * shared).clamp(0, steps * shared)
        if starts is not None and k + 1 < len(chunks):
            # A document starts with the chunk after this one, so its state does not pass here.
            border = starts[k + 1]
            if lengths is not None:
                border = border & (lengths > (k + 1) * size * shared)
            state = state.masked_fill(border[:, None], 0)
        y, state = checkpoint(run, chunks[k], state, within, resets[k], use_reentrant=False)
        outputs.append(y)
    return outputs[::-1] if reverse else outputs, state


def _starts(resets: Sequence[Tensor], ranks: Ranks | None) -> Tensor:
    """Whether a document starts with each chunk, (chunks, B), read on the first rank."""
    starts = torch.stack([reset[:, 0] for reset in resets])
    return starts if ranks is None else all_gather(starts.byte(), ranks)[0] != 0


def _trimming(run: Run) -> Run:
    """Wraps `run`: returns freed memory to the system when the process has grown by GROWTH.

    Small tensors that stay (states, the graph) lie between large ones that were freed, and malloc
    does not always reuse these gaps for large tensors: the process would grow with every chunk, far
    beyond the memory in use. Trimming at every chunk would be slow, as each page then faults again.
    """
    before = resident()

    def chunk(*arguments: Any) -> tuple[Any, Any]:
        nonlocal before
        now = resident()
        if now is not None and before is not None and now - before > GROWTH:
            give_back()
            before = resident()
        return run(*arguments)

    return chunk


def check_checkpoint_time(size: int | None) -> None:
    """Raises unless it is None or a number of steps."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(
            f"`checkpoint_time` must be a number of steps, at least 1, or None, got {size!r}"
        )
