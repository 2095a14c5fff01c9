"""The workspace of a launch: words that start as 0, or what an earlier launch has left of them.

A kernel of the variant `LRNN_WORKSPACE=reused` tells an earlier launch's words from its own
(`cuda_src/carry.cuh`), so that it needs no zeros before it, if launches of one workspace never
overlap. So each thread has one for each of its streams: two threads need not agree on what a
stream is, as a default stream may be one for each.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from lightning_lrnn.core import pytorch

__all__ = ["REUSED", "reused", "zeroed"]

REUSED = "LRNN_WORKSPACE", "reused"
"""The macro of kernels whose workspace is `reused`."""

WORDS = 2**20
"""Of every workspace that is kept, 8 MiB. A launch that needs more takes so long that zeroing its
own hardly counts."""
STREAMS = 8
"""Of a thread that have one, the last ones that it used."""
LAUNCHES = 2**30
"""After which a workspace is replaced: the kernel counts them in 31 bits."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.of: dict[tuple[torch.device, int], tuple[Tensor, int]] = {}
        """By device and stream, that used last at the end: words, and launches that are left."""


_kept = _Kept()


def zeroed(words: int, device: torch.device) -> Tensor:
    """Zeros in stream order, for one launch: one in flight may read an older one's."""
    return torch.zeros(words, dtype=torch.int64, device=device)


def reused(words: int, device: torch.device) -> Tensor:
    """At least so many words, for this thread's next launch on the current stream.

    The words of a graph are its own, and are zeroed by a node of it: a graph may be replayed on
    any stream.

    Args:
        words: of the launch.
        device: the current one.
    """
    if words > WORDS or torch.cuda.is_current_stream_capturing():
        return zeroed(words, device)
    of, key = _kept.of, (device, pytorch.current_stream(device.index))
    memory, left = of.pop(key, (None, 0))
    if memory is None or left == 0:
        memory, left = zeroed(WORDS, device), LAUNCHES
    of[key] = memory, left - 1  # now the last one
    if len(of) > STREAMS:
        # What its stream still runs is done before PyTorch gives the memory to others.
        del of[next(iter(of))]
    return memory
