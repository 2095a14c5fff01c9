"""Layers whose sequence is shared by several processes compute and learn as on one process.

Seen to fail: the output before a segment taken from the segment after it; a halo from one time
step earlier; a document's start at a border that the halo, or the output before the segment, does
not see; gradients of what was gathered that are not added over ranks; scans without the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from layers import SINGLE_LAYERS
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_lrnn as lrnn
from lightning_lrnn.core.ranks import Ranks, part_of

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

B, T, SIZE = 3, 16, 5
"""Rows, steps of a segment, features."""

LAYERS: list[tuple[str, dict[str, Any]]] = [
    *SINGLE_LAYERS,
    ("GILRLSTM", {"num_layers": 2, "bidirectional": True}),
    ("QRNN", {"window": 4, "num_layers": 2, "bidirectional": True}),
    ("SurrogateRNN", {"cell": "LSTM", "surrogate_size": 3, "bidirectional": True}),
    ("SurrogateRNN", {"cell": "GRU", "passes": 3, "surrogate": "LRU"}),
    ("SurrogateRNN", {"cell": "LSTM", "passes": 2, "bidirectional": True}),
]


def parts(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return list(state) if isinstance(state, tuple) else [state]


def real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def compare(rnn: Any, ranks: Ranks, masked: bool, carried: bool, chunk: int | None) -> float:
    """A window after another on all of it, and on this rank's segments: the largest error.

    With `chunk` the ranks share as many steps at a time, by `checkpoint_time`.
    """
    rank, size = ranks.rank, ranks.size
    generator = torch.Generator().manual_seed(1)
    steps = T * size
    x = torch.randn(B, steps, rnn.input_size, generator=generator, dtype=torch.float64)
    lengths = reset = None
    if masked:
        lengths = torch.tensor([steps - 1, T + 2, T])
        reset = torch.rand(B, steps, generator=generator) < 0.15
        reset[:, T] |= torch.tensor([True, False, True])
        if chunk is not None:  # the second row ends here: its border is padding
            reset[:, chunk] |= torch.tensor([True, True, False])
        x = x.masked_fill(torch.arange(steps)[None, :, None] >= lengths[:, None, None], torch.nan)

    def here(x: Tensor) -> Tensor:
        return part_of(x, rank, size, chunk)

    hx = None
    if carried:
        before = torch.randn(B, 3 * size, rnn.input_size, generator=generator).double()
        rnn.group = None
        with torch.no_grad():
            hx = rnn(before)[1]

    def loss(y: Tensor, state: Any, cut: Callable[[Tensor], Tensor], count: int) -> Tensor:
        weights = torch.Generator().manual_seed(2)
        w = torch.randn(B, steps, y.shape[-1], generator=weights, dtype=y.dtype)
        total = (y * cut(w)).sum()
        for part in map(real, parts(state)):
            factor = torch.randn(part.shape, generator=weights, dtype=part.dtype)
            # On every rank is the same state: all together they count once.
            total = total + (part * factor).sum() / count
        return total

    results = []
    for group, cut, count in ((None, lambda x: x, 1), (dist.group.WORLD, here, size)):
        rnn.group, rnn.checkpoint_time = group, None if group is None else chunk
        rnn.zero_grad()
        given = cut(x).clone().requires_grad_()
        start = None
        if hx is not None:
            leaves = [part.clone().requires_grad_() for part in parts(hx)]
            start = tuple(leaves) if isinstance(hx, tuple) else leaves[0]
        resets = None if reset is None else cut(reset)
        y, state = rnn(given, start, lengths=lengths, reset=resets)
        loss(y, state, cut, count).backward()
        gradients = [p.grad.clone() for p in rnn.parameters()]
        if hx is not None:
            # Of a state that no step here reads there is none.
            unread = [torch.zeros_like(leaf) for leaf in leaves]
            gradients += [
                real(zero if leaf.grad is None else leaf.grad)
                for leaf, zero in zip(leaves, unread, strict=True)
            ]
        gradients = [torch.cat([gradient.flatten() for gradient in gradients])]
        if group is not None:
            dist.all_reduce(gradients[0])
        y, dx = y.detach(), given.grad
        decays = rnn.decays(given, start, lengths=lengths, reset=resets).values()
        of_steps = [y, dx, *([] if masked else decays)]
        if group is None:
            of_steps = [here(v) if v.shape[1] == steps else v for v in of_steps]
        results.append([*of_steps, *[p.detach() for p in parts(state)], *gradients])
    rnn.group = rnn.checkpoint_time = None
    worst = 0.0
    for wanted, actual in zip(*results, strict=True):
        assert wanted.shape == actual.shape and actual.isfinite().all()
        scale = wanted.abs().max().clamp(min=1)
        worst = max(worst, float((wanted - actual).abs().max() / scale))
    return worst


def layers(rank: int, size: int) -> None:
    """Every cell, with and without lengths and resets, from zeros and from a carried state.

    With three processes, the size of `make test`, each layer has all of them, and without lengths
    and resets, whose decays are looked at, one of the four others.
    """
    torch.set_num_threads(1)
    for i, (name, options) in enumerate(LAYERS):
        torch.manual_seed(0)
        made = getattr(lrnn.nn, name)(SIZE, SIZE, batch_first=True, backend="scan", **options)
        rnn = made.double()
        every = list(itertools.product((False, True), repeat=3))
        kinds = {2: every, 3: [every[i % 4], every[-1]]}.get(size, every[-1:])
        for masked, carried, chunks in kinds:
            chunk = 9 * size if chunks else None
            error = compare(rnn, Ranks("", rank, size), masked, carried, chunk)
            assert error < 1e-12, (name, options, masked, carried, chunk, error)


def refusals(rank: int, size: int) -> None:
    """Each is refused on every rank, with the reason."""
    torch.set_num_threads(1)
    rnn = lrnn.nn.QRNN(4, 4, batch_first=True, window=5)
    rnn.group = dist.group.WORLD
    assert "group" not in "".join(rnn.state_dict())
    x = torch.randn(2, 5, 4)
    for match, call in (
        ("shorter than the 4 that a window of 5", lambda: rnn(x[:, :3])),
        ("The shape of `input` must be the same", lambda: rnn(x[:, : 4 + rank % 2])),
        ("`reset`, given or None", lambda: rnn(x, reset=x[..., 0] > 0 if rank else None)),
        ("padded tensor with `lengths`", lambda: rnn(pack_sequence([x[0], x[1]]))),
        ("a single step cannot be shared", lambda: rnn.step(x[:, 0])),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(ValueError, match=r"`input` must be \(B, T, 4\)"):
        rnn(x if rank else x[..., :3])
    rnn.checkpoint_time = 5
    with pytest.raises(ValueError, match=f"checkpoint_time=5 must be a multiple of {size}"):
        rnn(x)
    rnn.checkpoint_time = (4 + rank) * size
    with pytest.raises(ValueError, match="`checkpoint_time` must be the same on all ranks"):
        rnn(x)
    with pytest.raises(TypeError, match="`group` must be a ProcessGroup"):
        rnn.group = 2


def halves(rank: int, size: int) -> None:
    """Bfloat16 layers, and layers under autocast, whose final state is float32."""
    torch.set_num_threads(1)
    x = torch.randn(2, T * size, 8, generator=torch.Generator().manual_seed(0))
    for bfloat16 in (True, False):
        torch.manual_seed(0)
        rnn = lrnn.nn.GILR(8, 8, batch_first=True)
        given = x
        if bfloat16:
            rnn, given = rnn.bfloat16(), x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=not bfloat16):
            y, h = rnn(given)
            rnn.group = dist.group.WORLD
            y_here, h_here = rnn(given.chunk(size, 1)[rank])
        torch.testing.assert_close(y_here, y.chunk(size, 1)[rank], rtol=2e-2, atol=1e-3)
        torch.testing.assert_close(h_here, h, rtol=2e-2, atol=1e-3)
        assert h_here.dtype == h.dtype


def collectives(rank: int, size: int) -> None:
    """As many, and of as many numbers, as docs/ranks.md says."""
    torch.set_num_threads(1)
    seen: list[int] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            if function.namespace == "_c10d_functional" and "wait" not in str(function):
                seen.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    H = 4
    for name, options, forward, backward in (
        ("GILR", {}, [2 * B * H], [2 * B * H]),
        ("GILRLSTM", {}, [2 * B * H, 2 * B * H, B * H], [2 * B * H, 2 * B * H]),
        ("QRNN", {"window": 3}, [B * 2 * 3 * H, 2 * B * H], [2 * B * H, size * B * 2 * 3 * H]),
    ):
        rnn = getattr(lrnn.nn, name)(SIZE, H, batch_first=True, **options)
        rnn.group = dist.group.WORLD
        x = torch.randn(B, T, SIZE, requires_grad=True)
        rnn(x)  # compares arguments
        seen.clear()
        with Seen():
            y, _ = rnn(x)
            assert seen == forward, (name, seen)
            y.sum().backward()
        assert seen[len(forward) :] == backward, (name, seen)


def sharded(rank: int, size: int) -> None:
    """Parameters in parts (FSDP2) on the ranks that share the sequence."""
    torch.set_num_threads(1)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(lrnn.nn.GILRLSTM(SIZE, 8, 2, batch_first=True))
    rnn, whole = made
    mesh = init_device_mesh("cpu", (size,))
    for part in (*rnn.cells, rnn):
        fully_shard(part, mesh=mesh)
    rnn.group = mesh
    x = torch.randn(B, T * size, SIZE, generator=torch.Generator().manual_seed(1))
    y, wanted = rnn(x.chunk(size, 1)[rank])[0], whole(x)[0]
    torch.testing.assert_close(y, wanted.chunk(size, 1)[rank])
    # FSDP takes the mean over the ranks.
    (y.pow(2).sum() * size).backward()
    wanted.pow(2).sum().backward()
    for ours, theirs in zip(rnn.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-5)


def all_of(rank: int, size: int) -> None:
    for part in (layers, refusals, halves, collectives, sharded):
        part(rank, size)


@pytest.mark.slow
@processes.sizes
def test_layers_over_ranks(size: int, tmp_path) -> None:
    processes.spawn(all_of, tmp_path, size, count=size)
