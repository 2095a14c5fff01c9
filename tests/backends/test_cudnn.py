"""The backend `cudnn`, on a CPU through PyTorch's native GRU and LSTM, against `serial`.

Seen to fail: the GRU's gates exchanged; a reset whose impulse is a candidate's; no reset, and one
in the padding; padding that moves the state, and NaN in it; no flip, there and back; h_t handed out
as h_{t-1}; a cell scaled by 2^-12, or by 2^-24 in float64, not scaled back, or from an h0 that is
not; recurrent weights that are not 0; inputs in the order of the arguments, steps in that of the
text; 1 - f taken for f; tanh of a candidate not asked for; autocast; a state with gaps, weights
without room for biases, x batch first; y with gaps; no gradient where there are no steps.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from layers import CASES, F64, B, H, M, flat, make, random_state, weighted
from sweeps import devices
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import lightning_lrnn as lrnn
from lightning_lrnn import backends, gates
from lightning_lrnn.backends import Request, cudnn
from lightning_lrnn.nn import CELLS

close = torch.testing.assert_close
T = 9
EXPRESSED = ("GILR", "GILRLSTM", "QRNN", "SurrogateRNN")
CASES = [(n, o) for n, o in CASES if n in EXPRESSED and "cell" not in o]
cases = pytest.mark.parametrize("name, options", CASES, ids=str)
DTYPES = {F64: 1e-11, torch.float32: 2e-5}
OF_CUDNN = 3e-4
"""In float32, also without TF32: its sigmoid and tanh are coarser."""


@pytest.fixture(params=devices())
def device(request, monkeypatch):
    """Where it runs: on a CPU once it is let."""
    if request.param == "cpu":
        monkeypatch.setattr(cudnn, "missing", lambda device: [])
    else:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    backends.forget()
    with torch.device(request.param) if request.param != "cpu" else contextlib.nullcontext():
        yield request.param
    backends.forget()


def both(rnn, *arguments, leaves, **options):
    """Results and gradients by `serial`, then by `cudnn`."""
    actual = []
    for rnn.backend in ("serial", "cudnn"):
        results = rnn(*arguments, **options)
        assert lrnn.last_backend() == rnn.backend
        gradients = torch.autograd.grad(
            weighted(results), leaves, allow_unused=True, materialize_grads=True
        )
        actual.append((flat(results), gradients))
    return actual


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers(name, options, dtype, device):
    """Outputs, states and all gradients, from a state, with padding, documents and neither."""
    rnn = make(name, **options, batch_first=True, dtype=dtype)
    x = torch.randn(4, T, M, dtype=dtype, requires_grad=True)
    state = random_state(rnn, x, grad=True)
    lengths, reset = torch.tensor([T, 0, 3, 1]), torch.rand(4, T) < 0.3
    leaves = [x, *flat(state), *rnn.parameters()]
    limit = OF_CUDNN if (device, dtype) == ("cuda", torch.float32) else DTYPES[dtype]
    tolerance = {"rtol": limit, "atol": limit}
    for given in ({}, {"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        close(*both(rnn, x, state, leaves=leaves, **given), **tolerance)


@cases
def test_packed_and_poisoned(name, options, device):
    rnn = make(name, **options, dtype=F64)
    rows = [torch.randn(n, M, dtype=F64) for n in (2, T, 5)]
    padded = pad_sequence(rows, padding_value=float("nan"))
    options = {"lengths": torch.tensor([2, T, 5])}
    packed = pack_padded_sequence(padded, options["lengths"].cpu(), enforce_sorted=False)
    close(*both(rnn, packed, leaves=list(rnn.parameters())))
    close(*both(rnn, padded, leaves=list(rnn.parameters()), **options))


@pytest.mark.parametrize("name", EXPRESSED)
def test_windows(name, device):
    rnn = make(name, num_layers=2, dtype=F64, backend="cudnn")
    x = torch.randn(T, B, M, dtype=F64)
    whole, state, outputs = rnn(x), None, []
    for start, end in itertools.pairwise([0, 1, 4, 4, T]):
        y, state = rnn(x[start:end], state)
        outputs.append(y)
    close((torch.cat(outputs), state), whole)


# Gates as their users may write them: the order of the inputs does not matter.


@lrnn.gate
def unused_between(z, o, f):
    g = torch.sigmoid(f)
    return g, (1 - g) * torch.tanh(z)


@lrnn.gate
def free(z, i, f):
    return torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(z)


@lrnn.gate
def of_all(h, z, i, f):
    return h * torch.relu(z) + torch.sigmoid(i)


@lrnn.gate
def lstm_readout(h, z, i, f):
    """With a pre-activation that is a gate too for o."""
    return torch.sigmoid(f) * torch.tanh(h)


@lrnn.gate
def without_state(h, z, i, f):
    """Of the same form, but not of the cell."""
    return torch.sigmoid(f) * torch.tanh(z)


def tanh_first(f, z):
    z, f = torch.tanh(z), torch.sigmoid(f)
    return f, (1 - f) * z


def by_sign(z, f):
    return torch.sigmoid(f), torch.sigmoid(-f) * torch.tanh(z)


def by_input(g, z):
    g = torch.sigmoid(g)
    return 1 - g, g * torch.tanh(z)


def by_input_sign(z, g):
    return torch.sigmoid(-g), torch.sigmoid(g) * torch.tanh(z)


@pytest.mark.parametrize("gate", [tanh_first, by_sign, by_input, by_input_sign])
def test_forms_of_the_tied_gate(gate, device):
    gate = lrnn.gate(gate)
    pre = [torch.randn(B, T, H, dtype=F64), torch.randn(H, dtype=F64)]
    leaves = [p.requires_grad_() for p in pre]
    options = {"reset": torch.rand(B, T) < 0.3, "lengths": torch.tensor([T, 0, 5])}
    actual = []
    for backend in ("serial", "cudnn"):
        results = lrnn.gated_recurrence(gate, *pre, backend=backend, **options)
        actual.append((results, torch.autograd.grad(weighted(results), leaves)))
    close(*actual)


READOUTS = {"state": None, "all": of_all, "lstm": lstm_readout, "inputs": without_state}


@pytest.mark.parametrize("gate", [unused_between, free], ids=["tied", "free"])
@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16, torch.float16], ids=str)
def test_gates(gate, readout, reverse, exclusive, dtype, device):
    if device == "cuda" and not torch.cudnn_is_acceptable(torch.ones(1, dtype=dtype)):
        pytest.skip(f"this PyTorch gives cuDNN no {dtype}")
    sequences = [torch.randn(B, T, H, dtype=dtype) for _ in range(3)]
    sequences[1] = torch.randn(B, H, dtype=F64 if dtype == F64 else torch.float32)  # a parameter
    reset, lengths = torch.rand(B, T) < 0.3, torch.tensor([T, 0, 5])
    for p in (sequences[0], sequences[2]):
        p[torch.arange(T) >= lengths[:, None]] = float("nan")
    h0 = torch.randn(B, H, dtype=torch.promote_types(dtype, torch.float32))
    leaves = [p.requires_grad_() for p in (*sequences, h0)]
    options = {"readout": readout, "reverse": reverse, "exclusive": exclusive}
    options |= {"reset": reset, "lengths": lengths}
    actual = []
    for backend in ("serial", "cudnn"):
        results = lrnn.gated_recurrence(gate, *sequences, h0=h0, backend=backend, **options)
        grads = torch.autograd.grad(weighted(results), leaves, materialize_grads=True)
        actual.append((results, grads))
    rough = {"rtol": 8e-2, "atol": 8e-2}
    close(*actual, **({"rtol": 1e-9, "atol": 1e-9} if dtype == F64 else rough))


@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
def test_outputs_are_dense(readout, device):
    pre = torch.randn(3, B, T, H)
    y, _ = lrnn.gated_recurrence(free, *pre, readout=readout, backend="cudnn")
    assert y.shape == (B, T, H) and y.is_contiguous()


def test_a_parameter_has_more_bits_than_the_sequences(device):
    """5.015 is not a bfloat16, and the decay that is made of it, 0.9934, is none either."""
    gate, f = lrnn.gate(tanh_first), torch.tensor([5.015])
    z = torch.ones(1, 150, 1).bfloat16()
    actual = [lrnn.gated_recurrence(gate, f, z, backend=name) for name in ("serial", "cudnn")]
    assert actual[1][0].dtype == torch.bfloat16
    close(actual[1][1], actual[0][1], rtol=3e-3, atol=0)


@pytest.mark.parametrize("start", [0.0, 5000.0])
def test_a_scaled_cell_keeps_its_digits(start, device):
    """The cell itself, from an LSTM whose output is squashed: as exact as `serial`."""
    f, i, z = torch.full((1, 4000, 64), 20.0), torch.randn(1, 4000, 64), torch.randn(1, 4000, 64)
    z += start / 1000  # it rises or wanders
    h0 = torch.full((1, 64), start)

    def cell(backend, dtype):
        pre = [x.to(dtype) for x in (z, i, f)]
        c, _ = lrnn.gated_recurrence(free, *pre, h0=h0.to(dtype), backend=backend)
        return c.double()

    exact = cell("serial", F64)
    ours, theirs, wide = (
        ((cell(*by) - exact) / exact.abs().max()).abs().max()
        for by in (("serial", torch.float32), ("cudnn", torch.float32), ("cudnn", F64))
    )
    assert 0 < theirs < 1.5 * ours
    assert wide < 1e-13


def test_cudnn_gets_what_it_wants(device, monkeypatch):
    """No copies and no warnings: dense inputs, dense states, weights as cuDNN keeps them."""
    seen = []

    def vendor(rnn, parts, pre, state, *, reverse):
        def spy(x, state, weights, *options):
            seen.append((parts, x, state, weights))
            return rnn(x, state, weights, *options)

        return original(spy, parts, pre, state, reverse=reverse)

    original = cudnn._vendor
    monkeypatch.setattr(cudnn, "_vendor", vendor)
    rnn = make("GILRLSTM", batch_first=True, bidirectional=True, backend="cudnn")
    x = torch.randn(B, T, M)
    rnn(x, random_state(rnn, x))
    assert [parts for parts, *_ in seen] == 2 * [3, 4] * 2
    for parts, x, state, (of_input, recurrent) in seen:
        assert x.shape[:2] == (T, B) and x.is_contiguous()
        assert all(s.is_contiguous() for s in (state if parts == 4 else [state]))
        rows = parts * H
        assert of_input.shape == (rows, x.shape[-1]) and recurrent.shape == (rows, H)
        assert not recurrent.any() and of_input.sum() == x.shape[-1]
        assert recurrent.data_ptr() - of_input.data_ptr() == of_input.nbytes
        biases = 2 * rows * of_input.element_size()
        assert of_input.untyped_storage().nbytes() == of_input.nbytes + recurrent.nbytes + biases


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)], ids=str)
def test_nothing_to_do(shape, device):
    f, z = torch.zeros(shape, requires_grad=True), torch.zeros(shape)
    h0 = torch.randn(shape[0], shape[2], requires_grad=True)
    y, h_n = lrnn.gated_recurrence(unused_between, f, z, f, h0=h0, backend="cudnn")
    assert y.shape == shape
    close(h_n, h0)
    (y.sum() + h_n.sum()).backward()
    assert h0.grad.eq(1).all() and f.grad.shape == shape


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it after a graph break
def test_compile(device):
    rnn = make("GILRLSTM", batch_first=True, backend="cudnn")
    x, lengths = torch.randn(B, 4, M), torch.tensor([4, 2, 0])
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=device == "cpu", backend="aot_eager")
    if device == "cuda":
        with pytest.raises(lrnn.BackendError, match=r"torch\.compile"):
            compiled(x, lengths=lengths)
        return
    results = [f(x, lengths=lengths) for f in (rnn, compiled)]
    close(*results)
    close(*(torch.autograd.grad(weighted(r), list(rnn.parameters())) for r in results))


def test_autocast(device):
    rnn = make("GILRLSTM", backend="cudnn")
    x, dtype = torch.randn(T, B, M), torch.float16 if device == "cuda" else torch.bfloat16
    with torch.autocast(device, dtype):
        y, _ = rnn(x)
    assert y.dtype == dtype
    close(y.float(), rnn(x)[0], rtol=0.1, atol=0.1)
    weighted(y).backward()
    assert all(p.grad.dtype == torch.float32 for p in rnn.parameters())


# What it refuses.


@pytest.mark.parametrize("name", [name for name in CELLS if name not in EXPRESSED])
def test_other_cells_say_why(name, device):
    rnn = make(name, backend="cudnn")
    reason = {
        "LRU": "cuDNN's recurrent layers are real, not torch.complex64",
        "S5": "cuDNN's recurrent layers are real, not torch.complex64",
        **dict.fromkeys(("GILRGRU", "GILRRNN", "HGRN"), "cuDNN has no mode for this gate"),
        "TGRU": "cuDNN has no mode for this gate",
    }.get(name, "cuDNN has no mode for an untransformed candidate")
    with pytest.raises(lrnn.BackendError, match=f"'cudnn' cannot run on .*: {reason}"):
        rnn(torch.zeros(T, B, M))


def test_decays_are_refused(device):
    a = torch.rand(B, T, H)
    with pytest.raises(lrnn.BackendError, match="computes decays and impulses itself"):
        lrnn.linear_recurrence(a, a, backend="cudnn")
    with pytest.raises(lrnn.BackendError, match="computes decays and impulses itself"):
        lrnn.gated_recurrence(lambda f: (torch.sigmoid(f), f), a, backend="cudnn")


def test_without_a_gpu():
    assert cudnn.missing(torch.device("cpu")) == ["cuDNN runs on NVIDIA GPUs, not on cpu"]
    if not torch.backends.cudnn.is_available():
        with pytest.raises(lrnn.BackendError, match="cuDNN runs on NVIDIA GPUs, not on cpu"):
            make("GILR", backend="cudnn")(torch.zeros(T, B, M))
        assert cudnn.missing(torch.device("cuda")) == ["PyTorch finds no cuDNN and no GPU here"]


class OnCuda:
    is_cuda, dtype = True, torch.bfloat16


@pytest.mark.parametrize("acceptable, compiling, why", [
    (True, False, ""),
    (False, False, "cudnn is disabled, or PyTorch gives it no torch.bfloat16"),
    (True, True, "torch.compile takes the layer apart"),
])  # fmt: skip
def test_kernels_that_are_not_cudnns_are_refused(acceptable, compiling, why, monkeypatch):
    monkeypatch.setattr(torch, "cudnn_is_acceptable", lambda x: acceptable)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert why in cudnn._replaced(OnCuda) and bool(why) == bool(cudnn._replaced(OnCuda))
    assert cudnn._replaced(torch.zeros(1)) == ""


def test_auto_never_takes_it(device):
    make("GILR")(torch.zeros(T, B, M))
    assert lrnn.last_backend() != "cudnn"
    names = backends.names()
    assert names.index("cudnn") > names.index("serial")
    assert backends.reasons("serial", Request(torch.device("xpu"), F64)) == []


@pytest.mark.parametrize("program", [lrnn.nn.cells.gilr.gilr.program, free.program], ids=str)
def test_a_canonical_program_computes_the_same(program):
    text, order = cudnn.canonical(program)
    inputs = [torch.randn(5, dtype=F64) for _ in range(3)]
    used = inputs[: gates.parse(program).inputs]
    close(gates.evaluate(text, [used[k] for k in order]), gates.evaluate(program, used))
