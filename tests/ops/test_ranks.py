"""One recurrence over the segments of several processes is that of one process.

Seen to fail: lengths without the offset of the segment; resets that do not cut the state, and, in
reverse, do not stop it at a border; the gradient of the final state taken from one rank alone; that
of h0 on every rank; a fold that starts at 0 instead of at h0; ranks folded in reverse order; decays
that are not conjugated on the way back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import emulated
import processes
import pytest
import torch
import torch.distributed as dist
from host_kernel import needs_compiler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_lrnn as lrnn
from lightning_lrnn.core.ranks import ranks_of
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

B, T, D = 3, 8, 5
"""Rows, steps of a segment, columns."""


def segment(x: Tensor | None, rank: int, size: int) -> Tensor | None:
    """Of a sequence (B, T * size, ...) the part of this rank."""
    return None if x is None else x.chunk(size, 1)[rank].clone()


def compare(
    call: Callable[..., tuple[Tensor, Tensor]],
    pre: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    rank: int,
    size: int,
    tolerance: float,
) -> None:
    """One call on all of a sequence, and on this rank's segment of it, with their gradients."""
    whole = [p.clone().requires_grad_() for p in pre]
    start = None if h0 is None else h0.clone().requires_grad_()
    y, final = call(*whole, h0=start, lengths=lengths, reset=reset)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    of_final = torch.randn(final.shape, generator=generator, dtype=final.dtype)
    loss = (y * w).sum() + (final * of_final).sum()
    (loss.real if loss.is_complex() else loss).backward()

    mine = [(segment(p, rank, size) if p.ndim == 3 else p.clone()).requires_grad_() for p in pre]
    begun = None if h0 is None else h0.clone().requires_grad_()
    y_here, final_here = call(
        *mine, h0=begun, lengths=lengths, reset=segment(reset, rank, size), group=dist.group.WORLD
    )
    # What is differentiated is the sum over ranks.
    loss = (y_here * segment(w, rank, size)).sum() + (final_here * of_final).sum() / size
    (loss.real if loss.is_complex() else loss).backward()

    same = {"rtol": 0, "atol": tolerance}

    def close(actual: Tensor, wanted: Tensor) -> None:
        scale = wanted.detach().abs().max().clamp(min=1)
        torch.testing.assert_close(actual / scale, wanted / scale, **same)

    close(y_here, segment(y, rank, size))
    close(final_here, final)
    for actual, wanted in zip(mine, whole, strict=True):
        if actual.ndim == 3:
            close(actual.grad, segment(wanted.grad, rank, size))
        else:
            dist.all_reduce(actual.grad)
            close(actual.grad, wanted.grad)
    if h0 is not None:
        other = torch.view_as_real(begun.grad) if begun.is_complex() else begun.grad
        dist.all_reduce(other)
        close(begun.grad, start.grad)


def decays(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Of both signs, most of them close to 1."""
    u = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return u.sign() * u.abs() ** 0.1


def masks(seed: int, size: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and resets, some of them at the borders of segments."""
    lengths = reset = None
    if seed % 3:
        lengths = torch.randint(0, T * size + 1, (B,), generator=generator)
        if seed % 2:
            lengths[0] = T * (seed % (size + 1))
    if seed % 4 != 1:
        reset = torch.rand(B, T * size, generator=generator) < (0.15 if seed % 2 else 0.03)
        if not seed % 5:
            reset[:, ::T] |= torch.rand(B, size, generator=generator) < 0.7
    return lengths, reset


def sweep(rank: int, size: int) -> None:
    """The plain recurrence: lengths, resets, both directions, with NaN in the padding."""
    torch.set_num_threads(1)
    for seed in range(20 if size == 2 else 10):  # more processes have two cores, perhaps
        generator = torch.Generator().manual_seed(seed)
        steps = (B, T * size, D)
        a, b = decays(steps, generator), torch.randn(steps, generator=generator).double()
        h0 = torch.randn(B, D, generator=generator).double() if seed % 7 else None
        lengths, reset = masks(seed, size, generator)
        if lengths is not None:
            padding = torch.arange(T * size)[None, :, None] >= lengths[:, None, None]
            a, b = (x.masked_fill(padding, torch.nan) for x in (a, b))
        for reverse, exclusive in itertools.product((False, True), repeat=2):

            def call(*pre: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
                flags = {"reverse": reverse, "exclusive": exclusive}  # noqa: B023
                return lrnn.linear_recurrence(*pre, **flags, **options, backend="scan")

            compare(call, [a, b], h0, lengths, reset, rank, size, 1e-13)


def chain(rank: int, size: int) -> None:
    """Ranks that wait for each other, state by state, have the bits of one process; ours are near.

    Step by step a segment does what the whole does there, so that nothing but the sends can differ.
    """
    torch.set_num_threads(1)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        steps = (B, T * size, D)
        a, b = decays(steps, generator), torch.randn(steps, generator=generator).double()
        h0 = torch.randn(B, D, generator=generator).double()
        lengths, reset = masks(seed, size, generator)
        given = {"lengths": lengths, "reset": reset, "backend": "serial"}
        y, final = lrnn.linear_recurrence(a, b, h0, **given)

        ranks = ranks_of(dist.group.WORLD)
        here = {name: segment(x, rank, size) for name, x in (("a", a), ("b", b), ("reset", reset))}
        valid = None if lengths is None else ranks.within(lengths, T)
        state = h0.clone()
        if rank:
            dist.recv(state, rank - 1)
        own = {"lengths": valid, "reset": here["reset"], "backend": "serial"}
        y_here, state = lrnn.linear_recurrence(here["a"], here["b"], state, **own)
        if rank + 1 < size:
            dist.send(state, rank + 1)
        else:
            assert torch.equal(state, final)
        assert torch.equal(y_here, segment(y, rank, size))
        of_group, _ = lrnn.linear_recurrence(
            here["a"], here["b"], h0, lengths=lengths, reset=here["reset"],
            backend="serial", group=dist.group.WORLD,
        )  # fmt: skip
        torch.testing.assert_close(of_group, y_here, rtol=0, atol=1e-13 * float(y.abs().max()))


def kinds(rank: int, size: int) -> None:
    """Dtypes, gates, readouts, parameters, backends."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    steps = (B, T * size, D)
    lengths = torch.tensor([T * size, 3, T + 1])
    reset = torch.rand(B, T * size, generator=generator) < 0.1

    def sequences(n: int, dtype: torch.dtype) -> list[Tensor]:
        drawn = dtype if dtype.is_complex else torch.float32
        return [torch.randn(steps, generator=generator, dtype=drawn).to(dtype) for _ in range(n)]

    def any_gate(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(f), torch.cumsum(x, 0) * 0 + x

    for reverse, backend in itertools.product((False, True), ("scan", "serial")):

        def run(*pre: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            return lrnn.linear_recurrence(*pre, reverse=reverse, backend=backend, **options)  # noqa: B023

        def gated(*pre: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            options |= {"readout": output_tanh, "reverse": reverse, "backend": backend}  # noqa: B023
            return lrnn.gated_recurrence(lstm, *pre, **options)

        def pointwise(*pre: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            options |= {"reverse": reverse, "backend": backend}  # noqa: B023
            return lrnn.gated_recurrence(any_gate, *pre, **options)

        for dtype, tolerance in (
            (torch.float32, 2e-6),
            (torch.bfloat16, 3e-2),
            (torch.float16, 4e-3),
            (torch.complex64, 2e-6),
            (torch.complex128, 1e-14),
        ):
            a, b = sequences(2, dtype)
            a = a / a.abs().amax()
            state = {torch.bfloat16: torch.float32, torch.float16: torch.float32}.get(dtype, dtype)
            h0 = torch.randn(B, D, generator=generator, dtype=state)
            for given in ((None, None), (lengths, reset)):
                compare(run, [a, b], h0, *given, rank, size, tolerance)
            # A decay for each column.
            compare(run, [a[0, 0], b], h0, lengths, reset, rank, size, tolerance)
            if not dtype.is_complex:
                compare(gated, sequences(4, dtype), h0, lengths, reset, rank, size, tolerance)
        compare(pointwise, sequences(2, torch.float64), None, lengths, reset, rank, size, 1e-13)


def edges(rank: int, size: int) -> None:
    """Overflowing products of decays, NaN behind a border, no steps, and what is refused."""
    torch.set_num_threads(1)
    world = dist.group.WORLD
    # Of |a| > 1 the product is infinite, and 0 times it is 0 as long as the state is.
    a, b = torch.full((1, T, 1), 1e30), torch.zeros(1, T, 1)
    y, final = lrnn.linear_recurrence(a, b, group=world)
    assert not y.any() and not final.any()

    # NaN ends at the start of a document, on whatever rank that is.
    b = torch.full((1, T, 1), torch.nan if rank == 0 else 1.0)
    reset = torch.zeros(1, T, dtype=torch.bool)
    reset[:, 2] = rank == 1
    y, final = lrnn.linear_recurrence(b.new_full(b.shape, 0.5), b, reset=reset, group=world)
    assert final.isfinite().all() and (rank != 1 or y[:, 2:].isfinite().all())

    empty = torch.zeros(2, 0, 3)
    y, final = lrnn.linear_recurrence(empty, empty, h0=torch.ones(2, 3), group=world)
    assert y.shape == (2, 0, 3) and bool((final == 1).all())

    # Each is refused on every rank, with the reason.
    x = torch.rand(2, T, 3)
    for match, call in (
        (
            "shape of segments",
            lambda: lrnn.linear_recurrence(*[x[:, : T - rank]] * 2, group=world),
        ),
        ("h0", lambda: lrnn.linear_recurrence(x, x, h0=x[:, rank % 2], group=world)),
        (
            "lengths",
            lambda: lrnn.linear_recurrence(x, x, lengths=torch.tensor([1, 2 + rank]), group=world),
        ),
        (
            "`b` must be a tensor",
            lambda: lrnn.linear_recurrence(x, x[0] if rank else x, group=world),
        ),
        (
            f"between 0 and T = {T * size}",
            lambda: lrnn.linear_recurrence(
                x, x, lengths=torch.tensor([1, T * size + 1]), group=world
            ),
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="`group` must be a ProcessGroup"):
        lrnn.linear_recurrence(x, x, group="world")
    leaf = x.clone().requires_grad_()
    y, _ = lrnn.linear_recurrence(leaf, x, group=world)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), leaf, create_graph=True)


def collectives(rank: int, size: int) -> None:
    """One collective of 2 B D values a pass; the same under torch.compile, which sees them."""
    torch.set_num_threads(1)
    sent: list[tuple[str, int]] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            if function.namespace == "_c10d_functional" and "wait" not in str(function):
                sent.append((str(function), args[0].numel()))
            return function(*args, **(kwargs or {}))

    ranks = ranks_of(dist.group.WORLD)
    assert ranks is not None
    generator = torch.Generator().manual_seed(rank)
    pre = [torch.randn(B, T, D, generator=generator) for _ in range(4)]

    def run(*pre: Tensor) -> tuple[Tensor, Tensor]:
        return lrnn.gated_recurrence(lstm, *pre, readout=output_tanh, group=ranks, backend="scan")

    actual = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        leaves = [p.clone().requires_grad_() for p in pre]
        y, final = function(*leaves)
        (y.sum() + final.sum()).backward()
        actual.append([y, final, *(p.grad for p in leaves)])
    for eager, compiled in zip(*actual, strict=True):
        assert torch.equal(eager, compiled)

    leaves = [p.clone().requires_grad_() for p in pre]
    with Seen():
        y, _ = run(*leaves)
        assert sent == [("_c10d_functional.all_gather_into_tensor.default", 2 * B * D)]
        y.sum().backward()
    assert sent[1:] == sent[:1]


def given_states(rank: int, size: int) -> None:
    """By the kernel of CUDA on the host: tiles are given their states, also under torch.compile."""
    torch.set_num_threads(1)
    ranks = ranks_of(dist.group.WORLD)
    generator = torch.Generator().manual_seed(1)
    steps = 60  # of a segment: four tiles
    pre = [torch.randn(B, steps * size, D, generator=generator) for _ in range(4)]
    h0 = torch.randn(B, D, generator=generator)
    lengths = torch.tensor([steps * size, 3, steps + 20])
    reset = torch.rand(B, steps * size, generator=generator) < 0.05
    masks = {"lengths": lengths, "reset": reset}
    with emulated.small_tiles():
        for reverse in (False, True):

            def run(*pre: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
                options |= {"readout": output_tanh, "reverse": reverse, "backend": "emulated"}  # noqa: B023
                return lrnn.gated_recurrence(lstm, *pre, **options)

            compare(run, pre, h0, lengths, reset, rank, size, 2e-6)
            actual = []
            for dynamic in (None, reverse):  # each way of compiling in one direction
                function, leaves = run, [segment(p, rank, size).requires_grad_() for p in pre]
                if dynamic is not None:
                    torch.compiler.reset()
                    how = {"fullgraph": True, "backend": "aot_eager", "dynamic": dynamic}
                    function = torch.compile(run, **how)
                emulated.launches.clear()
                here = masks | {"reset": segment(reset, rank, size)}
                y, final = function(*leaves, h0=h0, **here, group=ranks)
                (y.sum() + final.sum()).backward()
                actual.append([y, final, *(p.grad for p in leaves)])
                used = [(m["LRNN_RESULT"], m["LRNN_CARRY"]) for m, _ in emulated.launches]
                assert used == [("pair", "folded"), ("outputs", "given")] * 2
            for one, *others in zip(*actual, strict=True):
                assert all(torch.equal(one, other) for other in others)


def all_of(rank: int, size: int) -> None:
    for part in (sweep, chain, kinds, edges, collectives):
        part(rank, size)


@pytest.mark.slow
@processes.sizes
def test_a_sequence_over_ranks(size: int, tmp_path) -> None:
    processes.spawn(all_of, tmp_path, size, count=size)


@pytest.mark.slow
@needs_compiler
def test_tiles_of_a_segment_are_given_their_states(tmp_path) -> None:
    processes.spawn(given_states, tmp_path, 2)


def test_a_group_of_one_process_is_none() -> None:
    assert ranks_of(None) is None
    with pytest.raises(TypeError, match="ProcessGroup"):
        ranks_of(3)
