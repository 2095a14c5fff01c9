"""Gates compiled into the kernel: the kernel's own source on the host, against PyTorch's gates.

Seen to fail: a readout's share of a gradient not added; a parameter's sums of one segment only;
h read at h_{t-1}'s place; an operation's C++ with its arguments swapped; a gradient scaled; a
parameter's stride of time not 0; padding read; pre-activations copied.
"""

from __future__ import annotations

import itertools

import emulated
import layers
import pytest
import torch
from fusing_backends import FUSING_BACKENDS, compiled_passes, only_emulated, without_a_gpu
from gate_functions import FUNCTIONS, INF, REAL, programs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_lrnn as lrnn
from lightning_lrnn import gates, nn
from lightning_lrnn.backends.cpu import codegen
from lightning_lrnn.backends.operands import OPERAND
from lightning_lrnn.core import reference
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh
from lightning_lrnn.ops import projections

FLAGS = list(itertools.product([False, True], repeat=2))


# Every rounding of the kernel, and of the gate in float32.
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


def wide(x):
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def check(fusing_backend, gate, pre, h0=None, readout=None, dtype=torch.float64, **options):
    """Outputs and all gradients, against the gate by PyTorch and the loop in float64."""
    backend, device = fusing_backend
    emulated.launches.clear()
    compiled_passes.clear()
    leaves = [x.detach().to(device).requires_grad_() for x in [*pre, *([] if h0 is None else [h0])]]
    leaf_h0 = None if h0 is None else leaves[-1]
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    result = lrnn.gated_recurrence(
        gate, *leaves[: len(pre)], h0=leaf_h0, readout=readout, backend=backend, **moved
    )
    assert len(emulated.launches) == (backend == "emulated"), "not one kernel"
    on_a_cpu = device == "cpu" and backend != "emulated"
    programs = gate.program, "" if readout is None else readout.program
    operands = tuple(OPERAND[p.dtype, p.ndim] for p in leaves[: len(pre)])
    compiled = on_a_cpu and not codegen.uncompiled(*programs, operands)
    assert len(compiled_passes) == compiled, "not one pass"

    wides = [wide(x.cpu()).requires_grad_() for x in leaves]
    operands = [p[:, None] if p.ndim == 2 else p for p in wides[: len(pre)]]
    shape = next(p.shape for p in pre if p.ndim == 3)
    a, b = (x.expand(shape) for x in gate(*operands))
    start = None if h0 is None else wides[-1]
    dtype_of_state = torch.promote_types(a.dtype, b.dtype)
    h, h_final = reference.linear_recurrence(
        a.to(dtype_of_state), b.to(dtype_of_state), start, **options
    )
    y = h if readout is None else readout(h, *operands)
    if options.get("lengths") is not None:
        padding = torch.arange(shape[1])[None, :, None] >= options["lengths"][:, None, None]
        y = y.masked_fill(padding, 0)
    expected = y, h_final

    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in result]
    moved_gradients = [g.to(device) for g in gradients]
    got = torch.autograd.grad(result, leaves, moved_gradients, allow_unused=True)
    want = torch.autograd.grad(expected, wides, [wide(g) for g in gradients], allow_unused=True)
    for actual, wanted in zip([*result, *got], [*expected, *want], strict=True):
        if wanted is None:
            assert actual is None or not actual.any()
            continue
        torch.testing.assert_close(wide(actual.cpu()), wanted.detach(), **TOLERANCE[dtype])


def make(kinds, shape, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype.to_complex() if k == "c" else dtype) for k in kinds]


PACKAGE = [
    *("gilr", "lstm", "qrnn", "sru", "T-RNN", "minGRU", "minLSTM", "RG-LRU", "RG-LRU, clipped"),
    *("cartesian", "modulus"),
]


@pytest.mark.parametrize("name", PACKAGE)
def test_gates_of_the_literature(fusing_backend, name):
    function, kinds = FUNCTIONS[name]
    pre = make(kinds, (2, 700, 3))
    if name == "cartesian":
        pre = [p / 8 for p in pre]  # |a| below 1
    if name == "modulus":
        pre = [p / 4 for p in pre]
    complex_state = name in ("cartesian", "modulus")
    state = torch.randn(2, 3, dtype=torch.complex128 if complex_state else torch.float64)
    for reverse, exclusive in FLAGS:
        check(fusing_backend, lrnn.gate(function), pre, state, reverse=reverse, exclusive=exclusive)


def layers_of_backends():
    """The kernel compiled for the host runs all layers at night, else the first of every gate."""
    seen = set()
    for name, options in layers.SINGLE_LAYERS:
        asked = {
            (gate.program, readout and readout.program, *((p.dtype, p.ndim) for p in pre))
            for gate, readout, pre in layers.recurrences(name, options)
        }
        for backend in FUSING_BACKENDS:
            nightly = backend.id == "emulated" and asked <= seen
            marks = [*backend.marks, *[pytest.mark.nightly] * nightly]
            ids = f"{backend.id}-{name}-{options}"
            yield pytest.param(*backend.values, name, options, marks=marks, id=ids)
        seen |= asked


@pytest.mark.parametrize(
    ("fusing_backend", "name", "options"), [*layers_of_backends()], indirect=["fusing_backend"]
)
def test_every_layer(fusing_backend, name, options):
    """Its gates in the kernel, along a walk with everything, against serial."""
    backend, device = fusing_backend
    with torch.device(device):
        rnn = layers.make(name, **options, dtype=torch.float64, batch_first=True)
        x = torch.randn(layers.B, 40, layers.M, dtype=torch.float64, requires_grad=True)
        reset = torch.rand(layers.B, 40) < 0.1
        options = {"lengths": torch.tensor([40, 0, 17]), "reset": reset}
        state = layers.random_state(rnn, x, grad=True)
    results, gradients = [], []
    leaves = [x, *layers.flat(state), *rnn.parameters()]
    for rnn.backend in ("serial", backend):
        emulated.launches.clear()
        compiled_passes.clear()
        results.append(rnn(x, state, **options))
        assert bool(emulated.launches) == (rnn.backend == "emulated")
        loss = layers.weighted(results[-1])
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


@lrnn.gate
def everything(x, y):
    first, second = zip(*(function(x, y) for function in REAL.values()), strict=True)
    # Each by a weight of its own: no two errors cancel.
    weights = [1 / (3 + i) for i in range(len(REAL))]
    first, second = (
        sum(weight * term for weight, term in zip(weights, terms, strict=True))
        for terms in (first, second)
    )
    return torch.tanh(first), second + torch.erf(x) * torch.sgn(y)


def test_every_operation(fusing_backend):
    check(fusing_backend, everything, [p / 2 for p in make("rr", (1, 80, 3))])


def test_a_diagonal_complex_recurrence(fusing_backend):
    # The LRU's: ring of decays from real parameters, complex sequences, a real output.
    @lrnn.gate
    def ring(x, size, angle):
        a = torch.polar(torch.exp(-torch.exp(size)), angle)
        return a, torch.sqrt(1 - torch.abs(a) ** 2) * x

    @lrnn.gate
    def real_part(h, x, size, angle):
        return torch.real(h)

    torch.manual_seed(0)
    x = torch.randn(2, 600, 3, dtype=torch.complex128)
    parameters = [torch.randn(3, dtype=torch.float64) - 2, torch.randn(3, dtype=torch.float64)]
    check(fusing_backend, ring, [x, *parameters], torch.randn(2, 3, dtype=torch.complex128))


@lrnn.gate
def diagonal(z, x, w, scale):
    return w.conj() - z * w, scale * (z - w) + torch.complex(x.real, -x.imag * scale)


@lrnn.gate
def part_of_product(h, z, x, w, scale):
    return torch.real(h * x) + torch.imag(h) * scale


@lrnn.gate
def turned(h, z, x, w, scale):
    return h.conj() * w - x


@pytest.mark.parametrize("reverse, exclusive", FLAGS)
def test_arithmetic_of_complex_numbers(fusing_backend, reverse, exclusive):
    D = 3 if fusing_backend[0] == "emulated" else 43
    z, x = torch.randn(2, 2, 300, D, dtype=torch.complex128) / 4
    w, h0 = torch.randn(2, 2, D, dtype=torch.complex128) / 4
    pre = [z, x, w[0], torch.randn(2, D, dtype=torch.float64)]
    options = {"reverse": reverse, "exclusive": exclusive}
    check(fusing_backend, diagonal, pre, h0, **options)
    check(fusing_backend, diagonal, pre, h0, part_of_product, **options)
    lengths, reset = torch.tensor([300, 17]), torch.rand(2, 300) < 0.1
    check(fusing_backend, diagonal, pre, h0, turned, **options, lengths=lengths, reset=reset)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("exclusive", [False, True])
def test_lstm_with_readout(fusing_backend, dtype, exclusive):
    pre = make("rrrr", (2, 1100, 3), dtype)
    h0 = torch.randn(2, 3, dtype=state_dtype(dtype))
    check(fusing_backend, lstm, pre, h0, output_tanh, dtype, exclusive=exclusive)


@lrnn.gate
def biased(x, f, bias, scale):
    a = torch.sigmoid(f * scale + bias)
    return a, (1 - a) * x


@lrnn.gate
def biased_output(h, x, f, bias, scale):
    return torch.tanh(h + bias) * torch.sigmoid(f) + x * scale


@pytest.mark.parametrize("reverse, exclusive", FLAGS)
@pytest.mark.parametrize("D", [1, 3, 40])
def test_parameters(fusing_backend, D, reverse, exclusive):
    torch.manual_seed(0)
    sizes = [(3, 600, D), (3, 600, D), (D,), (3, D)]
    pre = [torch.randn(size, dtype=torch.float64) for size in sizes]
    check(fusing_backend, biased, pre, None, biased_output, reverse=reverse, exclusive=exclusive)


@without_a_gpu
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_resets(fusing_backend, reverse):
    pre = make("rrrr", (4, 300, 5))
    lengths = torch.tensor([300, 0, 17, 256])
    for row, length in enumerate(lengths.tolist()):
        for p in pre:
            p[row, length:] = 1.0
    reset = torch.rand(4, 300) < 0.05
    options = {"lengths": lengths, "reset": reset, "reverse": reverse}
    check(fusing_backend, lstm, pre, torch.randn(4, 5, dtype=torch.float64), output_tanh, **options)
    # And NaN there reaches nothing.
    poisoned = [p.clone() for p in pre]
    for row, length in enumerate(lengths.tolist()):
        for p in poisoned:
            p[row, length:] = float("nan")
    results = []
    for x in (pre, poisoned):
        leaves = [p.detach().requires_grad_() for p in x]
        y, h_final = lrnn.gated_recurrence(
            lstm, *leaves, readout=output_tanh, backend=fusing_backend[0], **options
        )
        grads = torch.autograd.grad([y, h_final], leaves, [torch.ones_like(y), h_final * 0 + 1])
        results.append([y, h_final, *grads])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


def squashed(h, a, b):
    return torch.tanh(h) * b


def test_a_readout_of_the_plain_recurrence(fusing_backend):
    a, b = make("rr", (2, 300, 3))
    plain = lrnn.gate(lambda a, b: (a, b))
    check(fusing_backend, plain, [a.sigmoid(), b], None, lrnn.gate(squashed))


def test_strided_pre_activations_are_read_in_place(fusing_backend):
    wide_rows = torch.randn(2, 40, 12, dtype=torch.float64)
    pre = wide_rows.chunk(4, -1)
    storage = wide_rows.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == storage for p in pre)
    check(fusing_backend, lstm, pre, None, output_tanh)


@only_emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse, exclusive", FLAGS)
def test_steps_side_by_side_give_the_same_bits(fusing_backend, reverse, exclusive, dtype):
    """Rows of one feature are read 16 bytes at a time, where they lie so."""
    side_by_side(fusing_backend, 9000, dtype, reverse=reverse, exclusive=exclusive)


@only_emulated
@pytest.mark.parametrize("reverse", [False, True])
def test_segments_of_fewer_than_16_bytes_lie_side_by_side(fusing_backend, reverse):
    """Four steps of 16 bits, at odd multiples of 8 bytes too; the emulator checks alignment."""
    reset = torch.rand(2, 3000) < 0.01
    side_by_side(fusing_backend, 3000, torch.bfloat16, reverse=reverse, reset=reset)
    assert [dict(macros)["LRNN_STEPS"] for macros, _ in emulated.launches] == ["8", "4"]


def side_by_side(fusing_backend, T, dtype, *, reverse, **options):
    """Rows of one feature as they lie, and where the same ones are not aligned: equal bits."""
    layouts = ["behind", "ahead"] if reverse else ["ahead", "behind"]
    pre = [torch.randn(2, T, 1).to(dtype).requires_grad_() for _ in range(4)]
    elsewhere = [torch.zeros(2 * T + 1, dtype=dtype)[1:].view(2, T, 1) for _ in pre]
    for place_, p in zip(elsewhere, pre, strict=True):
        place_.copy_(p.detach()).requires_grad_()
    results = []
    for leaves, actual in ((pre, layouts), (elsewhere, ["apart", "apart"])):
        emulated.launches.clear()
        y, h_final = lrnn.gated_recurrence(
            lstm,
            *leaves,
            readout=output_tanh,
            reverse=reverse,
            backend=fusing_backend[0],
            **options,
        )
        gradients = torch.autograd.grad([y, h_final], leaves, [y.detach(), h_final.detach()])
        assert [macros["LRNN_LAYOUT"] for macros, _ in emulated.launches] == actual
        results.append([y, h_final, *gradients])
    assert all(map(torch.equal, *results))


@only_emulated
@pytest.mark.parametrize(
    "T, change",
    [(66, "T"), (64, "stride"), (64, "lengths"), (64, "two features"), (64, "gradient")],
)
def test_steps_that_do_not_lie_side_by_side(fusing_backend, T, change):
    D = 2 if change == "two features" else 1
    a, b = (torch.rand(2, T, D, requires_grad=True) for _ in range(2))
    if change == "stride":
        a = torch.rand(2, T, 3)[..., 1:2].requires_grad_()
    lengths = torch.tensor([T, 3]) if change == "lengths" else None
    y, _ = lrnn.linear_recurrence(a, b, lengths=lengths, backend=fusing_backend[0])
    dy = torch.rand(2, T, 3)[..., :1] if change == "gradient" else torch.rand_like(y)
    torch.autograd.grad(y, (a, b), dy)
    forward = "ahead" if change == "gradient" else "apart"
    assert [m["LRNN_LAYOUT"] for m, _ in emulated.launches] == [forward, "apart"]


@without_a_gpu
def test_unfused_double_backward_agrees(fusing_backend):
    torch.manual_seed(0)
    pre = [torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def run(*pre):
        return lrnn.gated_recurrence(lstm, *pre, readout=output_tanh, backend=fusing_backend[0])

    assert torch.autograd.gradcheck(run, pre)
    assert torch.autograd.gradgradcheck(run, pre)


@only_emulated
@pytest.mark.parametrize("B, carry, share", [(2, "folded", 0.03), (24, "chained", 0.02)])
@pytest.mark.parametrize("exclusive", [False, True])
def test_moves_no_more_bytes_than_it_must(fusing_backend, exclusive, B, carry, share):
    emulated.launches.clear()
    pre = [torch.randn(B, 256, 64, requires_grad=True) for _ in range(4)]
    y, _ = lrnn.gated_recurrence(
        lstm, *pre, readout=output_tanh, exclusive=exclusive, backend=fusing_backend[0]
    )
    torch.autograd.grad(y, pre, torch.randn_like(y))
    (_, forward), (macros, backward) = emulated.launches
    assert macros["LRNN_CARRY"] == carry
    # f, i, o, z -> y, h; and f, i, o, z, h, dy -> df, di, do, dz.
    for traffic, words in ((forward, 6), (backward, 10)):
        minimum = 4 * words * y.numel()
        moved = traffic.loaded + traffic.stored + 16 * traffic.words
        # One state of each segment is read by the next one too, from the cache.
        again = 4 * y.numel() / int(macros["LRNN_STEPS"]) if words == 10 and not exclusive else 0
        assert minimum <= moved <= (1 + share) * minimum + again


@without_a_gpu
def test_operators_keep_their_contract(fusing_backend):
    pre = [torch.randn(2, 5, 3, requires_grad=True) for _ in range(2)]
    bias, scale = torch.randn(3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    programs = biased.program, biased_output.program
    arguments = [*pre, bias, scale], torch.randn(2, 3, requires_grad=True), None, None
    options = False, False, fusing_backend[0]
    operators = torch.ops.lightning_lrnn
    torch.library.opcheck(operators.gated_recurrence, (*programs, *arguments, *options))
    with torch.no_grad():
        y, h, h_final = operators.gated_recurrence(*programs, *arguments, *options)
        saved = [p.detach() for p in arguments[0]], h, None, torch.ones_like(y), h_final
        torch.library.opcheck(operators.gated_backward, (*programs, *saved, None, None, *options))


@only_emulated
def test_torch_compile(fusing_backend):
    layer = nn.GILRLSTM(4, 6, batch_first=True, backend=fusing_backend[0])
    x = torch.randn(2, 9, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        y, _ = function(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in layer.parameters())])
    assert [macros["LRNN_PASS"] for macros, _ in emulated.launches].count("backward") == 4
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


class LargeResults(TorchDispatchMode):
    """Names of the operations that made something as large as a sequence, views aside."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.names = elements, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        known = {x.untyped_storage().data_ptr() for x in leaves}
        for x in tree_leaves(result):
            fresh = isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known
            in_place = function.name().split(".")[0].endswith("_")
            if (fresh or in_place) and x.numel() >= self.elements:
                self.names.append(function.name())
                break
        return result


@without_a_gpu
@pytest.mark.parametrize("time_major", [False, True])
def test_a_layer_is_matmuls_and_kernels(fusing_backend, time_major):
    """Between projection and output no pointwise operation, no copy; nor back."""
    matmul = {"aten::addmm", "aten::mm", "aten::addmm_"}
    # What a time-major projection is added to lies the other way.
    added = ["mm", "add.Tensor"] if time_major else ["addmm_"]
    for layer, forward in (
        *(
            (one, ["addmm", "gated_recurrence"])
            for one in (nn.GILR, nn.MinGRU, nn.MinLSTM, nn.TRNN)
        ),
        (nn.SRU, ["addmm", "gated_recurrence"]),
        (nn.GILRLSTM, ["addmm", "gated_recurrence", "addmm", *added, "gated_recurrence"]),
    ):
        rnn = layer(4, 6, batch_first=not time_major, backend=fusing_backend[0])
        x = torch.randn(9, 5, 4, requires_grad=True)
        with LargeResults(9 * 5 * 4) as seen:
            y, _ = rnn(x)
        assert [name.split("::")[1] for name in seen.names] == forward
        with LargeResults(9 * 5 * 4) as seen:
            y.backward(torch.ones_like(y))
        assert seen.names.count("lightning_lrnn::gated_backward") == forward.count(
            "gated_recurrence"
        )
        # What observes an operator gets its gradients apart, and autograd puts them together.
        assert set(seen.names) - matmul <= {
            "lightning_lrnn::gated_backward",
            "aten::ones_like",
            "aten::cat",
            "aten::add.Tensor",  # x has two projections
            *({"aten::clone"} if time_major else set()),
        }


@without_a_gpu
@pytest.mark.parametrize("layer", [nn.GILR, nn.GILRLSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_a_projection_are_not_copied_together(fusing_backend, layer, batch_first):
    rnn = layer(4, 6, batch_first=batch_first, bidirectional=True, backend=fusing_backend[0])
    x, lengths = torch.randn(3, 70, 4), torch.tensor([70, 0, 33])
    x = x if batch_first else x.transpose(0, 1).contiguous()
    results, joined, actual = [], projections.joined, []

    def noted(chunks):
        actual.append(joined(chunks))
        return actual[-1]

    for together in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not together:
                patch.setattr("lightning_lrnn.nn.cell.plain_eager", lambda *_: False)
            patch.setattr(projections, "joined", noted)
            rnn.zero_grad()
            rnn(x, lengths=lengths)[0].square().sum().backward()
        results.append([p.grad for p in rnn.parameters()])
    assert all(map(torch.equal, *results))
    scans = 2 * (1 if layer is nn.GILR else 2)
    # Pre-activations both times, and their gradients where the layer asks for them in one piece.
    assert len(actual) == scans * (1 + 2) and all(whole is not None for whole in actual)


@pytest.mark.slow
@without_a_gpu
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.integers(1, 70))
def test_random_programs(fusing_backend, program, T):
    inputs = gates.parse(program).inputs

    class Program(gates.Gate):
        def __init__(self):
            self.program = program

        def __call__(self, *x):
            return gates.evaluate(program, x)

    generator = torch.Generator().manual_seed(T)
    pre = [torch.randint(-4, 5, (1, T, 2), generator=generator).double() / 8 for _ in range(inputs)]
    check(fusing_backend, Program(), pre)


@without_a_gpu
def test_saturated_gates_are_exact(fusing_backend):
    f = torch.tensor([INF, -INF, 1e4, -1e4, 100.0, -100.0])[None, :, None].repeat(1, 1, 3)
    z = torch.full_like(f, 0.5)
    y, _ = lrnn.gated_recurrence(
        nn.cells.gilr.gilr, f, z, h0=torch.ones(1, 3), backend=fusing_backend[0]
    )
    assert (y[:, 0] == 1).all()
    torch.testing.assert_close(y[:, 1], torch.full_like(y[:, 1], 0.5).tanh())


@only_emulated
def test_what_cannot_be_compiled_says_so(fusing_backend):
    @lrnn.gate
    def clipped(z, w):
        return z, torch.where(w.real > 0, w, torch.nn.functional.softplus(w))

    z = torch.randn(1, 3, 2, dtype=torch.complex64)
    with pytest.raises(lrnn.GateError, match="softplus is not defined for complex numbers"):
        lrnn.gated_recurrence(clipped, z, z, backend=fusing_backend[0])
