"""The CUDA kernel's own source, executed without a GPU (host/emulator.h), against a float64 loop.

Seen to fail: the table MUTANTS, which stays part of the tests; and, by hand, bfloat16 rounded
towards zero, padding left unwritten, inf * 0 not guarded, a restart by multiplication with 0, y
read one step off.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from host_kernel import (
    SOURCES,
    Compiler,
    Traffic,
    all_apply,
    launch,
    mutated,
    named,
    needs_compiler,
    plain,
)
from sweeps import TOLERANCE
from torch import Tensor

from lightning_lrnn import gates
from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.backends.cuda import plan as cuda_plan
from lightning_lrnn.backends.cuda.codegen import fused
from lightning_lrnn.backends.operands import Operand

pytestmark = needs_compiler

DTYPE = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
STEPS = {"f16": 16, "bf16": 16, "f32": 16, "f64": 8, "c64": 8, "c128": 4}
NAN = float("nan")
SENTINEL = 7.0


@dataclass(frozen=True)
class Variant:
    """The macros of one compilation; few threads, so that few steps make many tiles."""

    storage: str = "f32"
    schedule: str = "scan"
    carry: str = "chained"
    columns: int = 32
    threads: int = 64
    steps: int | None = None
    others: nvrtc.Macros = ()

    def macros(self, pass_: str) -> nvrtc.Macros:
        operands = (Operand(self.storage, True),) * 2
        return (
            ("LRNN_PASS", pass_),
            ("LRNN_SCHEDULE", self.schedule),
            ("LRNN_CARRY", self.carry),
            ("LRNN_COLUMNS", str(self.columns)),
            ("LRNN_THREADS", str(self.threads)),
            ("LRNN_STEPS", str(self.steps or STEPS[self.storage])),
            ("LRNN_GATE", fused(gates.IDENTITY, "", operands, pass_).source),
            *self.others,
        )

    @property
    def dtype(self) -> torch.dtype:
        return DTYPE[self.storage]

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype.itemsize == 2 else self.dtype

    @property
    def tile(self) -> int:
        return (self.steps or STEPS[self.storage]) * self.threads // self.columns

    def __str__(self) -> str:
        schedule = self.carry if self.schedule == "scan" else self.schedule
        others = "".join(f"-{value}" for _, value in self.others)
        return f"{self.storage}-{schedule}-{self.columns}-{self.tile}{others}"


VARIANTS = [Variant(storage, schedule) for storage in DTYPE for schedule in ("scan", "serial")]
FOLDED = [
    Variant(carry="folded", columns=4, threads=32, steps=1),
    Variant("c64", carry="folded", columns=1, threads=32, steps=1),
    Variant("bf16", carry="folded", threads=64, steps=2),
]
ROW = ("LRNN_COMBINE", "row")
IN_A_ROW = [
    Variant(columns=8, others=(ROW,)),
    Variant("c64", carry="folded", columns=4, threads=32, steps=1, others=(ROW,)),
]
TOGETHER = ("LRNN_FOLD", "together")
AT_A_TIME = [
    Variant(carry="folded", columns=4, threads=32, steps=1, others=(TOGETHER,)),
    Variant("c64", carry="folded", columns=1, threads=32, steps=1, others=(TOGETHER,)),
    Variant("bf16", carry="folded", threads=64, steps=2, others=(TOGETHER, ROW)),
]
NARROW = [Variant(columns=1, steps=1), Variant("c128", columns=4, steps=1)]


class Library(Compiler):
    """Kernels by variant."""

    def kernel_of(self, variant: Variant, pass_: str, sources: Path = SOURCES) -> ctypes.CDLL:
        return self.kernel(variant.macros(pass_), sources)


@pytest.fixture(scope="session")
def library() -> Library:
    return Library()


@dataclass
class Problem:
    """Inputs of both passes, as the kernel gets them."""

    a: Tensor
    b: Tensor
    y: Tensor
    dy: Tensor
    h0: Tensor | None = None
    dh_final: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    reverse: bool = False
    exclusive: bool = False


@dataclass
class Result:
    outputs: list[Tensor]
    traffic: Traffic = field(default_factory=Traffic)


def run(
    kernel: ctypes.CDLL, variant: Variant, problem: Problem, pass_: str, seed: int = 0
) -> Result:
    """Launches one pass as `lightning_lrnn.backends` does on a GPU."""
    B, T, D = problem.b.shape
    shapes = [(B, T, D)] * (1 if pass_ == "forward" else 2) + [(B, D)]
    dtypes = [variant.dtype] * (len(shapes) - 1) + [variant.state_dtype]
    memory = [
        torch.full((int(np.prod(shape)) + 64,), SENTINEL, dtype=dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    outputs = [m[32:-32].view(s).fill_(NAN) for m, s in zip(memory, shapes, strict=True)]

    if variant.schedule == "scan":
        chains, tiles = B * -(-D // variant.columns), -(-T // variant.tile)
        pieces = torch.empty(0, dtype=variant.state_dtype).element_size() // 4
        grid, threads = chains * tiles, variant.threads
        slots = cuda_plan.slots(variant.carry, tiles, variant.threads // variant.columns)
        words = 1 + chains * slots * variant.columns * pieces
        workspace = torch.zeros(words, dtype=torch.int64) if tiles > 1 else None
    else:
        grid, threads, workspace = -(-B * D // 128), 128, None

    def pointer(x: Tensor | None) -> int:
        return 0 if x is None else x.data_ptr()

    def strided(x: Tensor) -> list[int]:
        return [x.data_ptr(), *(x.element_size() * stride for stride in x.stride())]

    absent = [0] * 4
    p = problem
    if pass_ == "forward":
        y, h_final = map(pointer, outputs)
        fields = [
            *strided(p.a),
            *strided(p.b),
            *absent,
            *absent,
            pointer(p.h0),
            h_final,
            0,
            0,
            y,
            0,
            0,
        ]
    else:
        da, db, dh0 = map(pointer, outputs)
        # b is not read.
        inputs = [*strided(p.a), *absent, *strided(p.dy), *strided(p.y)]
        fields = [*inputs, pointer(p.dh_final), dh0, pointer(p.h0), 0, 0, da, db]
    fields += [pointer(p.lengths), pointer(p.reset), B, T, D, T * D, D]
    fields += [int(p.reverse), int(p.exclusive)]
    traffic = launch(kernel, grid, threads, [*fields, pointer(workspace)], seed=seed)
    for m in memory:
        assert (torch.cat([m[:32], m[-32:]]) == SENTINEL).all(), "wrote beside an output"
    return Result(outputs, traffic)


def wide(x: Tensor | None) -> np.ndarray | None:
    if x is None:
        return None
    return x.resolve_conj().to(torch.complex128 if x.is_complex() else torch.float64).numpy()


def walk(problem: Problem, row: int) -> tuple[list[int], set[int]]:
    """Times of a row's valid steps in the order of the forward walk, and which of them restart."""
    T = problem.b.shape[1]
    length = T if problem.lengths is None else int(problem.lengths[row])
    times = list(range(length))
    starts = set() if problem.reset is None else set(problem.reset[row].nonzero()[:, 0].tolist())
    if not problem.reverse:
        return times, starts
    return times[::-1], {t - 1 for t in starts if t < length}


def loop(problem: Problem, pass_: str) -> list[np.ndarray]:
    """Either pass, one step after the other, in double precision."""
    a, b, y, dy = (wide(x) for x in (problem.a, problem.b, problem.y, problem.dy))
    B, _, D = b.shape
    h0, dh_final = (
        np.zeros((B, D), b.dtype) if x is None else wide(x) for x in (problem.h0, problem.dh_final)
    )
    if pass_ == "forward":
        out, h_final = np.zeros_like(b), h0.copy()
        for row in range(B):
            times, restarts = walk(problem, row)
            for t in times:
                before = 0 * b[row, t] if t in restarts else h_final[row].copy()
                h_final[row] = a[row, t] * before + b[row, t]
                out[row, t] = before if problem.exclusive else h_final[row].copy()
        return [out, h_final]
    da, db, dh0 = np.zeros_like(b), np.zeros_like(b), dh_final.copy()
    for row in range(B):
        times, restarts = walk(problem, row)
        for i, t in reversed(list(enumerate(times))):
            h_prev = y[row, t] if problem.exclusive else y[row, times[i - 1]] if i else h0[row]
            c = dh0[row].copy()
            g = c if problem.exclusive else c + dy[row, t]
            db[row, t] = g
            if t in restarts:
                dh0[row] = 0
            else:
                da[row, t] = g * h_prev.conj()
                dh0[row] = a[row, t].conj() * g + (dy[row, t] if problem.exclusive else 0)
    return [da, db, dh0]


def check(
    kernel: ctypes.CDLL, variant: Variant, problem: Problem, pass_: str, seed: int = 0
) -> Result:
    result = run(kernel, variant, problem, pass_, seed)
    tolerance = TOLERANCE[variant.dtype]
    for got, want in zip(result.outputs, loop(problem, pass_), strict=True):
        torch.testing.assert_close(torch.from_numpy(wide(got)), torch.from_numpy(want), **tolerance)
    return result


def make(
    variant: Variant,
    shape: tuple[int, int, int],
    *,
    states: bool = True,
    padding: bool = False,
    resets: bool = False,
    reverse: bool = False,
    exclusive: bool = False,
    strided: bool = False,
    seed: int = 0,
) -> Problem:
    """Random inputs; y is the rounded output of the loop, padding is NaN everywhere."""
    B, T, D = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = variant.dtype) -> Tensor:
        wide_dtype = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(*shape, dtype=wide_dtype, generator=random).to(dtype)

    a, b, dy = (normal(B, T, D) for _ in range(3))
    # Signed, here and there above 1, and remembering enough to carry errors over the tiles.
    a = (a.sgn() * (1 - 0.1 * a.abs())).clamp(-1.05, 1.05) if not a.is_complex() else a / a.abs()
    if strided:
        a = normal(D).expand(B, T, D) * 0.5
        b = normal(B, T, 3 * D)[..., D : 2 * D].copy_(b)
        dy = normal(D, B, T).permute(1, 2, 0).copy_(dy)
    lengths = reset = None
    if padding:
        lengths = torch.randint(0, T + 1, (B,), generator=random)
        lengths[0], lengths[-1] = T, 0
    if resets:
        reset = torch.rand(B, T, generator=random) < 0.1
    problem = Problem(a, b, b, dy, None, None, lengths, reset, reverse, exclusive)
    if states:
        problem.h0, problem.dh_final = (normal(B, D, dtype=variant.state_dtype) for _ in range(2))
    y = torch.from_numpy(loop(problem, "forward")[0]).to(variant.dtype)
    problem.y = torch.stack([y, torch.full_like(y, NAN)], -1)[..., 0] if strided else y
    if lengths is not None:
        for row, length in enumerate(lengths.tolist()):
            for x in (problem.b, problem.y, problem.dy):
                x[row, length:] = NAN
            if not strided:
                problem.a[row, length:] = NAN
    return problem


PASSES = ["forward", "backward"]
WALKS = [(reverse, exclusive) for reverse in (False, True) for exclusive in (False, True)]


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("variant", VARIANTS + NARROW + FOLDED + IN_A_ROW + AT_A_TIME, ids=str)
def test_agrees_with_the_loop(library: Library, variant: Variant, pass_: str) -> None:
    kernel, tile = library.kernel_of(variant, pass_), variant.tile
    shapes = [
        (1, 1, 1),
        (2, 2, 3),
        (1, tile - 1, 33),
        (2, tile, 31),
        (1, tile + 1, 3),
        (3, 2 * tile + 7, 37),
        (2, 3 * tile, 1),
    ]
    options = ("states", "padding", "resets", "strided")
    for i, shape in enumerate(shapes):
        for j, (reverse, exclusive) in enumerate(WALKS):
            # Each option on and off, with and without each other one, over shapes and walks.
            chosen = {name: bool((5 * i + 3 * j) >> bit & 1) for bit, name in enumerate(options)}
            problem = make(variant, shape, reverse=reverse, exclusive=exclusive, seed=i, **chosen)
            check(kernel, variant, problem, pass_, seed=10 * i + j)


MANY_TILES = [
    ((1, 2 * 256 * 8 + 17, 3), {"states": True}),
    ((2, 300 * 8, 5), {"padding": True, "resets": True, "reverse": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("variant", [FOLDED[0], AT_A_TIME[0]], ids=str)
def test_folds_tiles_groups_and_reaches(library: Library, variant: Variant, pass_: str) -> None:
    for shape, options in MANY_TILES:
        problem = make(variant, shape, **options)
        check(library.kernel_of(variant, pass_), variant, problem, pass_, seed=1)


@pytest.mark.parametrize("storage", ["f16", "bf16", "f32", "f64"])
def test_rounds_as_pytorch_does(library: Library, storage: str) -> None:
    # The first exclusive output is the initial state, stored.
    variant = Variant(storage)
    bits = torch.arange(1 << 16, dtype=torch.int32) << 16
    near = torch.tensor([0, 1, -1, 0x1000, 0x7FFF, 0x8000, 0x8001, 0x18000], dtype=torch.int32)
    states = (bits[::7, None] + near).flatten().view(torch.float32)
    h0 = states[None].to(variant.state_dtype)
    zero = torch.zeros(1, 1, h0.shape[1], dtype=variant.dtype)
    problem = Problem(zero, zero, zero, zero, h0, exclusive=True)
    y, _ = run(library.kernel_of(variant, "forward"), variant, problem, "forward").outputs
    torch.testing.assert_close(y[:, 0], h0.to(variant.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("schedule", ["scan", "serial"])
@pytest.mark.parametrize("pass_", PASSES)
def test_a_reset_forgets_exactly(
    library: Library, pass_: str, schedule: str, reverse: bool
) -> None:
    # Whatever stands in one document, inf and NaN too, the other's results are the same bits.
    variant = Variant(schedule=schedule)
    kernel, T = library.kernel_of(variant, pass_), 3 * variant.tile
    for border in (1, variant.tile - 1, variant.tile, variant.tile + 17, T - 1):
        problem = make(variant, (1, T, 3), reverse=reverse)
        problem.reset = torch.zeros(1, T, dtype=torch.bool)
        problem.reset[0, border] = True
        clean = run(kernel, variant, problem, pass_).outputs
        # In the walk of this pass.
        earlier, later = slice(0, border), slice(border, T)
        if reverse == (pass_ == "forward"):
            earlier, later = later, earlier
        x, state = ("b", "h0") if pass_ == "forward" else ("dy", "dh_final")
        getattr(problem, x)[:, earlier] = float("inf")
        getattr(problem, state)[...] = NAN
        poisoned = run(kernel, variant, problem, pass_).outputs
        for got, want in zip(poisoned[:-1], clean[:-1], strict=True):
            assert torch.equal(got[:, later], want[:, later])
        assert not poisoned[-2][:, earlier].isfinite().any(), "the poison does not act"
        assert torch.equal(poisoned[-1], clean[-1])


def test_growth_that_overflows_harms_no_zero_state(library: Library) -> None:
    # The product of a over two tiles is infinite; the state it would multiply is 0.
    variant = Variant()
    T = 4 * variant.tile
    a, b = torch.full((1, T, 2), 30.0), torch.zeros(1, T, 2)
    b[:, -1, 1] = 1.0
    problem = Problem(a, b, y=b, dy=b.flip(1))
    for pass_ in PASSES:
        check(library.kernel_of(variant, pass_), variant, problem, pass_)


@pytest.mark.parametrize("schedule", ["scan", "serial"])
@pytest.mark.parametrize("pass_", PASSES)
def test_what_is_emitted_may_be_known_when_compiled(
    library: Library, pass_: str, schedule: str
) -> None:
    # The same bits; and nobody need tell.
    variant = Variant(schedule=schedule)
    general = library.kernel_of(variant, pass_)
    for emit, exclusive in (("state_after", False), ("state_before", True)):
        known = library.kernel_of(replace(variant, others=(("LRNN_EMIT", emit),)), pass_)
        problem = make(variant, (2, 3 * variant.tile + 5, 3), exclusive=exclusive, resets=True)
        expected = run(general, variant, problem, pass_).outputs
        problem.exclusive = not exclusive
        assert all(map(torch.equal, run(known, variant, problem, pass_).outputs, expected))


@pytest.mark.parametrize("schedule", ["scan", "serial"])
def test_a_wrong_length_writes_nowhere_else(library: Library, schedule: str) -> None:
    # Nobody checks the values of lengths on a GPU, which would have to be waited for.
    variant = Variant(schedule=schedule)
    problem = make(variant, (2, variant.tile + 1, 3))
    allowed = replace(problem, lengths=torch.tensor([0, problem.b.shape[1]]))
    problem.lengths = torch.tensor([-5, 10**6])
    for pass_ in PASSES:
        kernel = library.kernel_of(variant, pass_)
        got, want = (run(kernel, variant, p, pass_).outputs for p in (problem, allowed))
        assert all(map(torch.equal, got, want))


def test_a_broken_step_stays_in_its_future_and_its_feature(library: Library) -> None:
    variant = Variant()
    problem = make(variant, (2, 2 * variant.tile, 5))
    broken = variant.tile + 3
    problem.b[1, broken, 2] = NAN
    y, h_final = run(library.kernel_of(variant, "forward"), variant, problem, "forward").outputs
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[1, broken:, 2] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(h_final.isnan(), expected[:, -1])


@pytest.mark.parametrize(("pass_", "bytes_per_element"), [("forward", 12), ("backward", 20)])
def test_moves_no_more_bytes_than_it_must(
    library: Library, pass_: str, bytes_per_element: int
) -> None:
    variant = Variant(
        threads=256,
        steps=cuda_plan.steps(*plain(torch.float32, pass_), cuda_plan.Pass(pass_, True)),
    )
    problem = make(variant, (2, 3 * variant.tile, 64), states=False)
    traffic = check(library.kernel_of(variant, pass_), variant, problem, pass_).traffic
    minimum = bytes_per_element * problem.b.numel()
    carried = 16 * traffic.words  # written once, read once
    moved = traffic.loaded + traffic.stored + carried
    # Backward, the last y of the forward walk is not needed.
    assert 0.99 * minimum <= moved <= 1.02 * minimum


@pytest.mark.parametrize("variant", [Variant("c64"), FOLDED[2], AT_A_TIME[2]], ids=str)
@pytest.mark.parametrize("pass_", PASSES)
def test_same_bits_in_every_order_of_execution(
    library: Library, pass_: str, variant: Variant
) -> None:
    tiles = 5 if variant.carry == "chained" else 40
    problem = make(variant, (2, tiles * variant.tile - 3, 33), padding=True, resets=True)
    kernel = library.kernel_of(variant, pass_)
    first, *others = (run(kernel, variant, problem, pass_, seed).outputs for seed in range(8))
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("schedule", ["scan", "serial"])
def test_the_final_state_is_the_last_output(library: Library, schedule: str) -> None:
    # Not merely close: users read either.
    variant = Variant(schedule=schedule)
    problem = make(variant, (2, 3 * variant.tile - 5, 3))
    y, h_final = run(library.kernel_of(variant, "forward"), variant, problem, "forward").outputs
    assert torch.equal(y[:, -1], h_final)


# name: (file, what stands there, what is put in its place)
MUTANTS = {
    "no wait": ("carry.cuh", "while (!glance.complete(slot.tag))", "while (false)"),
    "a glance at the tile before that one": (
        "recurrence.cu",
        "glance.look(chain.tile(tile - 1))",
        "glance.look(chain.tile(tile > 1 ? tile - 2 : 0))",
    ),
    "published before the state arrived": (
        "recurrence.cu",
        "apply(prefix.tile, state)",
        "prefix.tile.B",
    ),
    "tag before payload": (
        "carry.cuh",
        "store_shared_by_blocks(slot.words + i, tag | pieces.piece[i]);",
        "{ store_shared_by_blocks(slot.words + i, tag);"
        " store_shared_by_blocks(slot.words + i, tag | pieces.piece[i]); }",
    ),
    "block index for the ticket": (
        "recurrence.cu",
        "shared.ticket = take_ticket(p.workspace)",
        "shared.ticket = {{}, blockIdx.x}",
    ),
    "combine with its arguments swapped": (
        "recurrence.cu",
        "combine(pairs[segment - reach][column], own)",
        "combine(own, pairs[segment - reach][column])",
    ),
    "no barrier in the scan": (
        "recurrence.cu",
        "    __syncthreads();\n    if (segment >= reach)",
        "    if (segment >= reach)",
    ),
    "one buffer for two rounds": ("recurrence.cu", "round % 2", "0 * round"),
    "padding walked": ("recurrence.cu", "length = load(p.lengths + b);", ";"),
    "padding walked in a tile taken for whole": (
        "recurrence.cu",
        "const Index left = column.length -",
        "const Index left = p.T -",
    ),
    "restart not passed on": (
        "affine.cuh",
        "return pair.restarts ? pair.B :",
        "return false ? pair.B :",
    ),
    "no conjugates": ("recurrence.cu", "a[s] = conj(a[s]);", ""),
}
FOLDED_MUTANTS = {
    "groups after tiles": (
        "recurrence.cu",
        "return combine(groups, tiles);",
        "return combine(tiles, groups);",
    ),
    "a group without its last tile": ("recurrence.cu", "combine(tiles, own));", "tiles);"),
    "one tile too few": (
        "recurrence.cu",
        "- in_group), in_group)",
        "- in_group), in_group / 2 * 2)",
    ),
    "no wait for a pair": (
        "carry.cuh",
        "complete && tag.is_on(found[i])",
        "complete && (tag.is_on(found[i]) || true)",
    ),
    "a restart lost": ("carry.cuh", "(tag & kRestarts) != 0", "false"),
    "a reach that ends early": (
        "recurrence.cu",
        "publish(chain.reach(reach), apply(prefix.tile, state))",
        "publish(chain.reach(reach), state)",
    ),
    "no barrier before a fold": (
        "recurrence.cu",
        "  __syncthreads();  // the block has read what it shared before\n",
        "",
    ),
}


ROW_MUTANTS = {
    "a row with its own segment": (
        "recurrence.cu",
        "if (i == segment) found.before",
        "if (i == segment + 1) found.before",
    ),
    "a row backwards": (
        "recurrence.cu",
        "combine(found.tile, pairs[i][column])",
        "combine(pairs[i][column], found.tile)",
    ),
    "a row without a barrier": (
        "recurrence.cu",
        "  __syncthreads();\n  Prefix found",
        "  Prefix found",
    ),
    "a row of seven": ("recurrence.cu", "i < kSegments; ++i) {\n    if (i ==",
                       "i < kSegments - 1; ++i) {\n    if (i =="),
}  # fmt: skip


TOGETHER_MUTANTS = {
    "tiles before groups": ("recurrence.cu", "= segment < kHalf;", "= segment >= kHalf;"),
    "one pair of a thread too few": (
        "recurrence.cu",
        "if (i < left) own = combine",
        "if (i + 1 < left) own = combine",
    ),
    "as many groups as tiles": (
        "recurrence.cu",
        "(of_groups ? in_reach : in_group) - first",
        "in_group - first",
    ),
    "the end of a group with the groups before": (
        "recurrence.cu",
        "if (kTogether && !ends_group) return",
        "if (kTogether) return",
    ),
    "the early look at the state before this reach's own": (
        "recurrence.cu",
        "early.look(chain.reach(reach - 1))",
        "early.look(chain.reach(reach > 1 ? reach - 2 : reach))",
    ),
}


EVERY_MUTANT = MUTANTS | FOLDED_MUTANTS | ROW_MUTANTS | TOGETHER_MUTANTS


@pytest.mark.parametrize("name", named(EVERY_MUTANT))
def test_a_broken_kernel_is_noticed(library: Library, name: str | None, tmp_path: Path) -> None:
    sources = mutated(name and EVERY_MUTANT[name], tmp_path)
    if name in FOLDED_MUTANTS or name in TOGETHER_MUTANTS:
        variant = AT_A_TIME[0] if name in TOGETHER_MUTANTS else FOLDED[0]
        variant = replace(variant, columns=2)  # 16 segments: the rounds of a scan are even
        problems = [
            make(variant, (1, 600 * variant.tile, 2)),
            make(variant, (1, 500, 2), resets=True),
        ]
    else:
        others = (ROW,) if name in ROW_MUTANTS else ()
        variant = Variant("c64", columns=4, threads=32, steps=2, others=others)
        problems = [
            make(variant, (1, 6 * variant.tile, 3)),  # a single chain: neighbours run side by side
            make(variant, (2, 3 * variant.tile, 9), padding=True, resets=True),
        ]

    def examine() -> None:
        for pass_ in PASSES:
            kernel = library.kernel_of(variant, pass_, sources)
            for problem in problems:
                for seed in range(4):
                    check(kernel, variant, problem, pass_, seed)

    if name is None:
        assert all_apply(EVERY_MUTANT)
        examine()
    else:
        with pytest.raises(AssertionError) as failure:
            examine()
        waits = (
            "block index for the ticket",
            "padding walked in a tile taken for whole",
            "the end of a group with the groups before",
            "as many groups as tiles",
        )
        expected = "deadlock" if name in waits else "not close"
        assert expected in str(failure.value)
