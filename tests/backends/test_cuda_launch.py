"""What `cuda/launch.py` launches: variant, grid, workspace and arguments; on a GPU, the launch.

Without a GPU the kernel is replaced by one that reads its arguments as the CUDA kernel does, from
raw pointers and strides, so a wrong pointer, stride, order or flag gives a wrong result.

Seen to fail: two strides swapped; h0 and dh_final swapped; reverse and exclusive swapped; tiles
rounded down; the workspace one word short; lazy conjugation ignored; no check before capture; a
warm-up that leaves out a width or the backward pass; a reason left out.
"""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest
import torch
from host_kernel import plain
from plain_calls import PlainCalls, adjoint_of
from sweeps import TOLERANCE

import lightning_lrnn as lrnn
from lightning_lrnn.backends.cuda import availability, launch, nvrtc, plan, warmup
from lightning_lrnn.backends.operands import STORAGE
from lightning_lrnn.core import pytorch, reference
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

cuda = PlainCalls(launch.backend)

FLAGS = list(itertools.product((False, True), repeat=3))


def problem(dtype, B=2, T=113, D=5, requires_grad=False):
    """Inputs of every kind, read in place: strides that differ in every dimension."""
    state = torch.float32 if dtype.itemsize == 2 else dtype

    def large():
        return torch.randn(B, D, 2 * T, dtype=dtype)[..., ::2].transpose(1, 2)

    a, b, dy = large(), large(), large()
    h0, dh_final = torch.randn(B, D, dtype=state), torch.randn(B, D, dtype=state)
    lengths = torch.tensor([T - 3] + [T] * (B - 1))
    reset = torch.rand(B, T) < 0.2
    if requires_grad:
        a, b, h0 = (x.clone().requires_grad_() for x in (a, b, h0))
    return a, b, h0, dy, dh_final, lengths, reset


@pytest.mark.parametrize(("reverse", "exclusive", "parallel"), FLAGS)
@pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
def test_forward(dtype, reverse, exclusive, parallel, launches):
    a, b, h0, _, _, lengths, reset = problem(dtype)
    flags = {"reverse": reverse, "exclusive": exclusive}
    y, h_final = cuda.run(a, b, h0, lengths, reset, **flags, parallel=parallel)
    expected = reference.linear_recurrence(a, b, h0, lengths=lengths, reset=reset, **flags)
    torch.testing.assert_close((y, h_final), expected, rtol=0, atol=0)
    assert y.is_contiguous() and h_final.is_contiguous()
    ((variant, _, block),) = launches
    assert variant["LRNN_SCHEDULE"] == ("scan" if parallel else "serial")
    assert block == (int(variant["LRNN_THREADS"]) if parallel else 128)


@pytest.mark.parametrize(("reverse", "exclusive", "parallel"), FLAGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_backward(dtype, reverse, exclusive, parallel, launches):
    a, b, h0, dy, dh_final, lengths, reset = problem(dtype, requires_grad=True)
    kept = {"reverse": reverse, "exclusive": exclusive}
    y, h_final = reference.linear_recurrence(a, b, h0, lengths=lengths, reset=reset, **kept)
    expected = torch.autograd.grad((y, h_final), (a, b, h0), (dy, dh_final))
    rows = y.detach().repeat_interleave(2, 1)[:, ::2]  # strided too
    actual = cuda.run_backward(
        *(x.detach() for x in (a, rows, h0, dy, dh_final)), lengths, reset, **kept,
        parallel=parallel,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    assert all(x.is_contiguous() for x in actual)


@pytest.mark.parametrize("parallel", [True, False])
def test_absent_inputs_and_expanded_decays(parallel, launches):
    _, b, _, dy, _, _, _ = problem(torch.float32)
    a = torch.randn(5).expand_as(b)
    flags = {"reverse": False, "exclusive": False}
    y, h_final = cuda.run(a, b, None, None, None, **flags, parallel=parallel)
    torch.testing.assert_close((y, h_final), reference.linear_recurrence(a, b))
    da, db, dh0 = cuda.run_backward(a, y, None, dy, None, None, None, **flags, parallel=parallel)
    expected = adjoint_of(
        lambda a, b, h0, *_, **flags: reference.linear_recurrence(a, b, h0, **flags),
        *(a, y, None, dy, None, None, None),
        **flags,
    )
    torch.testing.assert_close((da, db, dh0), expected)


def test_lazy_conjugates_are_read_as_their_values(launches):
    a, b, h0, *_ = problem(torch.complex64)
    flags = {"reverse": False, "exclusive": False}
    y, _ = cuda.run(a.conj(), b, h0, None, None, **flags, parallel=True)
    expected, _ = reference.linear_recurrence(a.conj().resolve_conj(), b, h0)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_workspace_at_tile_edges(edge, launches):
    """The stand-in counts the workspace's words, and finds them zero."""
    for dtype in STORAGE:
        steps = plan.steps(*plain(dtype, "forward"), plan.Pass("forward", True))
        length = 2 * steps * plan.THREADS // 4 + edge
        x = torch.zeros(3, length, 3, dtype=dtype)
        cuda.run(x, x, None, None, None, reverse=False, exclusive=False, parallel=True)
    assert {grid for _, grid, _ in launches} == {9 if edge == 1 else 6}


@pytest.mark.parametrize(
    ("D", "expected"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (16, 16), (17, 32), (32, 32), (33, 32), (9999, 32)],
)
def test_columns(D, expected):
    assert plan.columns(D) == expected


def test_plan_of_one_long_sequence():
    made = plan.plan(
        *plain(torch.complex128, "forward"), plan.Pass("forward", True), (1, 1_000_000, 1)
    )
    blocks = -(-1_000_000 // (256 * 4))
    assert made.grid == blocks > 200
    # Pairs of tiles, of groups of 256, and the state after all of them: 4 words for a state.
    assert made.words == 1 + 4 * 2 * (blocks + 4 + 1)
    assert dict(made.macros)["LRNN_COLUMNS"] == "1"
    assert dict(made.macros)["LRNN_CARRY"] == "folded"


def test_the_carry_is_chained_where_there_are_enough_chains_or_few_tiles():
    def carry(*shape):
        variant = plan.plan(
            *plain(torch.float32, "forward"), plan.Pass("forward", True), shape
        ).macros
        return dict(variant)["LRNN_CARRY"]

    assert carry(plan.CHAINS, 10_000, 32) == carry(1, 10_000, 32 * plan.CHAINS) == "chained"
    assert carry(plan.CHAINS - 1, 10_000, 32) == carry(1, 10_000, 1) == "folded"
    assert carry(1, 256, 32) == "chained"


def test_serial_is_one_variant_for_all_widths():
    code = plain(torch.float32, "forward")
    plans = [plan.plan(*code, plan.Pass("forward", False), (3, 9, D)) for D in (1, 5, 200)]
    assert len({p.macros for p in plans}) == 1
    assert [p.grid for p in plans] == [1, 1, 5]


@pytest.mark.parametrize("parallel", [True, False])
def test_grid_limit(parallel):
    code = plain(torch.float32, "forward")
    most = 2**31 - 1

    def grid(more):
        # Tiles of 4,096 steps, or 128 columns to a block.
        shape = (1, 4096 * most + more, 1) if parallel else (128 * most + more, 1, 1)
        return plan.plan(*code, plan.Pass("forward", parallel), shape).grid

    assert grid(0) == most
    with pytest.raises(ValueError, match="split the batch"):
        grid(1)


def test_capture_needs_a_loaded_kernel(launches, monkeypatch):
    x = torch.zeros(1, 1, 1)
    options = {"reverse": False, "exclusive": False, "parallel": True}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(nvrtc, "_kernels", {})
    with pytest.raises(RuntimeError, match="warmup"):
        cuda.run(x, x, None, None, None, **options)
    macros = plan.plan(
        *plain(torch.float32, "forward"), plan.Pass("forward", True), (1, 1, 1)
    ).macros
    monkeypatch.setattr(nvrtc, "_kernels", {(launch.SOURCE, macros, (9, 0)): macros})
    cuda.run(x, x, None, None, None, **options)


@pytest.mark.parametrize(
    ("features", "parallel", "widths"),
    [(None, True, [1, 2, 4, 8, 16, 32]), (None, False, [1]), (5, True, [8]), (5, False, [8])],
)
def test_warmup_runs_every_kernel(features, parallel, widths, launches, monkeypatch):
    monkeypatch.setattr(warmup, "missing", lambda: [])
    warmup.warmup("cpu", torch.float64, features, parallel=parallel)
    names = ("LRNN_SCHEDULE", "LRNN_CARRY", "LRNN_COLUMNS", "LRNN_LAYOUT", "LRNN_PASS")
    ran = [tuple(variant[name] for name in names) for variant, _, _ in launches]
    kinds = [("serial", "chained"), ("scan", "chained"), ("scan", "folded")]
    apart, beside = [("apart", "apart")], [("ahead", "behind"), ("behind", "ahead")]
    assert ran == [
        (*kind, str(width if kind[0] == "scan" else 1), layout, step)
        for width in widths
        for kind in (kinds if parallel else kinds[:1])
        for layouts in (
            *apart,
            *(beside if width == 1 else []),
            *(apart if width == 32 and kind[0] == "scan" else []),
        )
        for layout, step in zip(layouts, ("forward", "backward"), strict=True)
    ]
    assert all("storage::f64" in variant["LRNN_GATE"] for variant, _, _ in launches)


def test_warmup_runs_the_kernel_of_whole_tiles(launches, monkeypatch):
    monkeypatch.setattr(warmup, "missing", lambda: [])
    warmup.warmup("cpu", torch.float32)
    whole = [v for v, _, _ in launches if v["LRNN_TILES"] == "whole"]
    assert {(v["LRNN_CARRY"], v["LRNN_PASS"]) for v in whole} == {("chained", "backward")}


def planned(step, shape, dtype=torch.float32, **how):
    made = plan.plan(*plain(dtype, step), plan.Pass(step, True, **how), shape)
    return dict(made.macros)


@pytest.mark.parametrize(("B", "schedule"), [(8191, "scan"), (8192, "serial")])
def test_columns_that_fill_the_device_are_walked(B, schedule):
    assert planned("forward", (B, 400, 4))["LRNN_SCHEDULE"] == schedule


@pytest.mark.parametrize(
    ("dtype", "longest"), [(torch.bfloat16, 96), (torch.float32, 96), (torch.complex128, 24)]
)
@pytest.mark.parametrize("step", ["forward", "backward"])
def test_few_segments_are_walked(step, dtype, longest):
    for T, schedule in ((1, "serial"), (longest, "serial"), (longest + 1, "scan")):
        for shape in ((1, T, 4), (1, T, 1), (9, T, 128)):
            assert planned(step, shape, dtype)["LRNN_SCHEDULE"] == schedule


def test_whole_tiles_have_a_backward_pass_of_their_own():
    def tiles(step, T, D, dtype=torch.float32, **how):
        return planned(step, (96, T, D), dtype, **how)["LRNN_TILES"]

    assert tiles("backward", 1280, 64) == "whole"
    assert tiles("forward", 1280, 64) == tiles("backward", 1281, 64) == "any"
    assert tiles("backward", 1280, 48) == tiles("backward", 4096, 16) == "any"
    assert tiles("backward", 1280, 64, lengths=True) == "any"
    # Where it has no more blocks by it, it would only be another kernel to compile.
    assert tiles("backward", 1280, 64, torch.complex128) == "any"


@pytest.mark.parametrize(("lengths", "tiles"), [(None, "whole"), ([200, 256], "any")])
def test_rows_that_end_early_have_no_whole_tiles(lengths, tiles, launches):
    a, y, dy = (torch.randn(2, 256, 32) for _ in range(3))
    lengths = None if lengths is None else torch.tensor(lengths)
    flags = {"reverse": False, "exclusive": False, "parallel": True}
    cuda.run_backward(a, y, None, dy, None, lengths, None, **flags)
    ((variant, _, _),) = launches
    assert variant["LRNN_TILES"] == tiles and variant["LRNN_SCHEDULE"] == "scan"


def test_warmup_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(warmup, "missing", lambda: ["no NVIDIA driver", "NVRTC was not found"])
    with pytest.raises(RuntimeError, match="no NVIDIA driver; NVRTC was not found"):
        warmup.warmup()


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs of which a test chooses the compute capability."""

    def forget():
        availability._pytorch_lacks.cache_clear()
        availability._too_old_for_all.cache_clear()

    forget()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7 + 2 * index, 0))
    monkeypatch.setattr(nvrtc, "missing", lambda: [])
    monkeypatch.setattr(
        nvrtc, "missing_for", lambda capability: [f"sm_{capability[0]}0 is too old"]
        if capability < (8, 0) else [],
    )  # fmt: skip
    yield monkeypatch
    monkeypatch.undo()
    forget()


def test_nothing_missing(machine):
    assert availability.missing() == []  # one of the two GPUs will do


def test_missing_for_every_device(machine):
    machine.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert availability.missing() == ["sm_70 is too old"]


def test_missing_asks_no_device_that_is_not_initialised(machine):
    machine.setattr(torch.cuda, "is_initialized", lambda: False)
    machine.setattr(torch.cuda, "get_device_capability", lambda index: pytest.fail("initialises"))
    assert availability.missing() == []


def test_missing_cuda_in_pytorch(machine):
    machine.setattr(torch.version, "cuda", None)
    (reason,) = availability.missing()
    assert "built without CUDA" in reason and torch.__version__ in reason


def test_missing_device(machine):
    machine.setattr(torch.cuda, "device_count", lambda: 0)
    (reason,) = availability.missing()
    assert "no CUDA device" in reason


def test_missing_from_nvrtc(machine):
    machine.setattr(nvrtc, "missing", lambda: ["no NVIDIA driver"])
    assert availability.missing() == ["no NVIDIA driver"]


def on_gpu(dtype=torch.float32, device="cuda", **sizes):
    a, b, h0, *_ = problem(dtype, **sizes)
    options = {"reverse": False, "exclusive": False}
    expected = reference.linear_recurrence(a, b, h0)
    return a.to(device), b.to(device), h0.to(device), options, expected


def agree(actual, expected):
    torch.testing.assert_close(
        [x.cpu() for x in actual], list(expected), **TOLERANCE[actual[0].dtype]
    )


@pytest.mark.gpu
def test_runs_on_the_current_stream():
    """The input is still being made, on a side stream, when the launch is queued."""
    a, b, h0, options, expected = on_gpu(T=3000)
    late = torch.full_like(b, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(b)
        actual = cuda.run(a, late, h0, None, None, **options, parallel=True)
    stream.synchronize()
    agree(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 200_000, 1), (2, 50_000, 40), (48, 5_000, 32), (200, 300, 256)],
    ids=["folded, one feature", "folded", "chained", "walked"],
)
def test_ten_runs_give_the_same_bits(shape, contended):
    """Also while other streams take multiprocessors and run the same kernels."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device="cuda") for _ in range(4)]
    dy = torch.randn(shape, device="cuda")
    lengths = torch.tensor([shape[1]] * (shape[0] - 1) + [shape[1] // 3], device="cuda")

    def run():
        results, pre = [], [x.detach().requires_grad_() for x in inputs]
        for kept in (None, lengths):
            y, h_final = lrnn.gated_recurrence(
                lstm, *pre, readout=output_tanh, lengths=kept, backend="scan"
            )
            results += [y, h_final, *torch.autograd.grad(y, pre, dy)]
            a, b = torch.sigmoid(pre[0]).detach(), pre[1].detach()
            results += lrnn.linear_recurrence(a, b, lengths=kept, backend="scan")
        return results

    first, other = run(), torch.randn(2048, 2048, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for _ in range(10):
        if contended:
            beside = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    for _ in range(5):
                        torch.mm(other, other)
                    beside.append(run())
        actual = run()
        torch.cuda.synchronize()
        for results in [actual, *(beside if contended else [])]:
            assert all(map(torch.equal, results, first))


@pytest.mark.gpu
@pytest.mark.parametrize("parallel", [True, False])
def test_runs_in_a_new_thread(parallel):
    """A thread without a CUDA context, whose memory PyTorch has at hand."""
    a, b, h0, options, expected = on_gpu()
    actual = cuda.run(a, b, h0, None, None, **options, parallel=parallel)
    del actual
    results = []
    thread = threading.Thread(
        target=lambda: results.append(cuda.run(a, b, h0, None, None, **options, parallel=parallel))
    )
    thread.start()
    thread.join()
    agree(results[0], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("parallel", [True, False])
def test_captured_in_a_graph(parallel):
    a, b, h0, options, expected = on_gpu(T=3000)
    warmup.warmup(b.device, b.dtype, b.shape[-1], parallel=parallel)
    still = torch.zeros_like(b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = cuda.run(a, still, h0, None, None, **options, parallel=parallel)
    for _ in range(2):  # the second replay finds what the first left in the workspace
        still.copy_(b)
        graph.replay()
        agree(actual, expected)
        still.zero_()


GATED_SHAPES = [(2, 3000, 5), (2, 50_000, 32), (48, 512, 32), (2, 40, 32)]
"""Chained or folded within one reach; over reaches; whole tiles, chained; walked."""


def gated_inputs(shape):
    """Leaves of the LSTM's gate, and a gradient of its output, on the GPU."""
    torch.manual_seed(0)
    pre = [torch.randn(shape, device="cuda").requires_grad_() for _ in range(4)]
    return pre, torch.randn(shape, device="cuda")


def gated(pre, dy):
    y, h_final = lrnn.gated_recurrence(lstm, *pre, readout=output_tanh, backend="scan")
    return [y.detach(), h_final.detach(), *torch.autograd.grad(y, pre, dy)]


def captured(function):
    """A graph of one call, and its outputs."""
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        function()  # compiles, loads
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


@pytest.mark.gpu
@pytest.mark.parametrize("shape", GATED_SHAPES, ids=str)
def test_gates_and_their_gradients_are_captured_in_a_graph(shape):
    """Replayed twice, on other numbers: the bits of the same call outside."""
    pre, dy = gated_inputs(shape)
    graph, outputs = captured(lambda: gated(pre, dy))
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in (*pre, dy):
                p.copy_(torch.randn_like(p))
        graph.replay()
        replayed = [x.clone() for x in outputs]
        assert all(map(torch.equal, replayed, gated(pre, dy)))


@pytest.mark.gpu
def test_two_graphs_and_eager_calls_at_the_same_time():
    """On three streams: nobody waits in, or writes to, another's workspace."""
    made = [gated_inputs(shape) for shape in GATED_SHAPES[1:3]]
    expected = [gated(*inputs) for inputs in made]
    graphs = [captured(lambda inputs=inputs: gated(*inputs)) for inputs in made]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for _ in range(10):
        for (graph, _), stream in zip(graphs, streams, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(streams[2]):
            eager = [gated(*inputs) for inputs in made]
        torch.cuda.synchronize()
        for actual in (eager, [outputs for _, outputs in graphs]):
            for one, wanted in zip(actual, expected, strict=True):
                assert all(map(torch.equal, one, wanted))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(1, 20 * 128, 32), (1, 300 * 128, 32), (1, 300 * 128 - 5, 32), (2048, 100, 32)],
    ids=str,
)
def test_folds_and_walks_agree_with_float64(shape):
    """More tiles than a group has, and than a reach has, whole and not; and the walked regime."""
    torch.manual_seed(0)
    a, b, dy = (torch.randn(shape, device="cuda") for _ in range(3))
    a = torch.sigmoid(a)
    results = []
    for dtype, backend in ((torch.float64, "serial"), (torch.float32, "scan")):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (a, b)]
        y, h_final = lrnn.linear_recurrence(*leaves, backend=backend)
        gradients = torch.autograd.grad(y, leaves, dy.to(dtype))
        results.append([x.detach().double() for x in (y, h_final, *gradients)])
    for wanted, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.gpu
def test_capture_without_warmup_says_so(monkeypatch):
    a, b, h0, options, _ = on_gpu()
    monkeypatch.setattr(nvrtc, "_kernels", {})
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="warmup"), torch.cuda.graph(graph):
        b.clone()  # an empty graph has a warning of its own
        cuda.run(a, b, h0, None, None, **options, parallel=True)


def test_all_is_done_on_the_device_of_the_problem(launches, monkeypatch):
    """Which PyTorch's current one is only meanwhile."""
    current, events = [3], []

    @contextlib.contextmanager
    def device(wanted):
        current.append(wanted.index)
        yield
        current.pop()

    def noted(name, function):
        def note(*arguments):
            events.append((name, current[-1]))
            return function(*arguments)

        return note

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(pytorch, "current_device", lambda: current[-1])
    monkeypatch.setattr(nvrtc, "launch", noted("launch", lambda *_: None))
    allocate = noted("allocate", pytorch.empty_strided["cpu"])
    monkeypatch.setitem(pytorch.empty_strided, "cpu", allocate)
    a, b, _, dy, *_ = problem(torch.float32)
    plain = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    kernels = launch.backend(plain, parallel=True)
    for run, allocated in (
        (lambda: kernels.forward(plain), 2),
        (lambda: kernels.backward(plain, b, Gradients(dy, None)), 3),
        (lambda: kernels.pair(plain), 2),
        (lambda: kernels.adjoint_impulse(plain, b, dy), 1),
    ):
        events.clear()
        run()
        assert events == [("allocate", None)] * allocated + [("launch", None)]
        assert current == [3]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_another_device_than_the_current():
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        a, b, h0, options, expected = on_gpu(device=device)
        agree(cuda.run(a, b, h0, None, None, **options, parallel=True), expected)
        assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("parallel", "B", "T"), [(True, 1, 2**26 + 5), (False, 2**16 + 1, 2**10)])
def test_more_elements_than_an_int_counts(parallel, B, T):
    if torch.cuda.mem_get_info()[0] < 14e9:
        pytest.skip("needs 14 GB of free GPU memory")
    b = torch.ones(1, 1, 1, dtype=torch.float16, device="cuda").expand(B, T, 32)
    y, h_final = cuda.run(
        b * 0.5, b, None, None, None, reverse=False, exclusive=False, parallel=parallel
    )
    # h = 1/2 h + 1 goes to 2, exactly, within 30 steps.
    assert (y[:, 100:] == 2).all() and (h_final == 2).all()
    assert (y[:, 0] == 1).all() and (y[:, 1] == 1.5).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("parallel", "B", "T"), [(True, 1, 2**26 + 5), (False, 2**16 + 1, 2**10)])
def test_more_elements_than_an_int_counts_backward(parallel, B, T):
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free GPU memory")
    x = torch.ones(1, 1, 1, dtype=torch.float16, device="cuda").expand(B, T, 32)
    a = x * 0.5
    da, db, dh0 = cuda.run_backward(
        a, x, None, x, None, None, None, reverse=False, exclusive=False, parallel=parallel
    )
    # g = 1/2 g + 1 from the end, where it is 1; the state before every step but the first is 1.
    assert (db[:, :-100] == 2).all() and (dh0 == 1).all()
    assert (db[:, -1] == 1).all() and (db[:, -2] == 1.5).all()
    assert (da[:, 0] == 0).all() and torch.equal(da[:, 1:], db[:, 1:])
