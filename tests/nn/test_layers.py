"""Every cell of the registry: its equations, its states, and the habits of torch.nn.LSTM.

Seen to fail: the surrogate not shifted; the reverse walk forward; h_0 in place of c_0; the state
of a layer handed to the next; NaN of padding not masked; `reset` not transposed; the last output at
T - 1 with lengths; dropout after the last layer; the bias of f not by memory; a 16-bit state;
`decays` without `torch.no_grad`; a time-major input made contiguous; backend not passed on; inputs
of another document in a window, and of one in the padding; a bias begun twice; lengths above T.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle

import pytest
import torch
from equations import EQUATIONS, reference
from layers import (
    DEEP,
    F64,
    B,
    H,
    M,
    T,
    cases,
    every_cell,
    flat,
    is_pair,
    make,
    random_state,
    weighted,
)
from sweeps import TOLERANCE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import lightning_lrnn as lrnn
from lightning_lrnn.nn import CELLS

close = torch.testing.assert_close


@pytest.fixture
def backend(backend, device):
    """Every backend that runs, with its device for all tensors that are made."""
    with torch.device(device) if device != "cpu" else contextlib.nullcontext():
        yield backend


def test_every_cell_has_its_equations_here():
    assert set(EQUATIONS) == set(CELLS)
    assert all(CELLS[name].__name__ == name for name in CELLS)


@cases
def test_equations(name, options, backend):
    rnn = make(name, **options, batch_first=True, dtype=F64, backend=backend)
    x = torch.randn(B, T, M, dtype=F64, requires_grad=True)
    state = random_state(rnn, x, grad=True)
    wide = state[1] if is_pair(rnn) else state
    y, h_n, carry_n, decays = reference(rnn, x, wide)
    expected = (y, (h_n, carry_n) if is_pair(rnn) else carry_n)
    actual = rnn(x, state)
    assert lrnn.last_backend() == backend
    close(actual, expected)
    leaves = [x, wide, *rnn.parameters()]
    close(
        torch.autograd.grad(weighted(actual), leaves),
        torch.autograd.grad(weighted(expected), leaves),
    )
    noted = rnn.decays(x, state)
    assert not any(a.requires_grad for a in noted.values())
    close(noted, {place: a.detach() for place, a in decays.items()})


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_see_the_surrogate_of_the_step_before(reverse):
    rnn = make("GILRLSTM", bidirectional=True, batch_first=True, dtype=F64)
    for cell in rnn.cells:  # gates that see x through the surrogate alone
        cell.weight_ih.data[:] = 0
    x = torch.randn(1, 3, M, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: rnn(x)[0][0], x)[:, :, 0]
    first, second = (2, 1) if reverse else (0, 1)
    features = slice(H, 2 * H) if reverse else slice(0, H)
    assert (jacobian[first, features, first] == 0).all()
    assert (jacobian[second, features, second] == 0).all()
    assert (jacobian[second, features, first] != 0).all()


@every_cell
def test_bidirectional_is_two_runs(name, backend):
    rnn = make(name, bidirectional=True, batch_first=True, dtype=F64, backend=backend)
    x = torch.randn(B, T, M, dtype=F64)
    y, state = rnn(x)
    for direction, part in enumerate(y.chunk(2, -1)):
        one = CELLS[name](M, H, batch_first=True, dtype=F64)
        one.cells[0].load_state_dict(rnn.cells[direction].state_dict())
        flipped, its_state = one(x.flip(1) if direction else x)
        close(part, flipped.flip(1) if direction else flipped)
        close(tree_map(lambda s, k=direction: s[k : k + 1], state), its_state)


@cases
@pytest.mark.parametrize("cuts", [range(T + 1), [0, 2, 2, T]], ids=["steps", "windows"])
def test_windows_with_carried_state_equal_the_whole(name, options, cuts, backend):
    options = {**options, "bidirectional": False}
    rnn = make(name, **options, dtype=F64, backend=backend)
    x = torch.randn(T, B, M, dtype=F64, requires_grad=True)
    initial = random_state(rnn, x)
    state, outputs = initial, []
    for start, end in itertools.pairwise(cuts):
        y, state = rnn(x[start:end], state)
        outputs.append(y)
    whole, windows = rnn(x, initial), (torch.cat(outputs), state)
    close(windows, whole)
    leaves = [x, *rnn.parameters()]
    close(*(torch.autograd.grad(weighted(r), leaves) for r in (windows, whole)))


@every_cell
def test_state_of_16_bit_is_float32_and_continues(name, backend):
    rnn = make(name, dtype=torch.bfloat16, backend=backend)
    x = torch.randn(T, B, M, dtype=torch.bfloat16)
    y, state = rnn(x)
    first, middle = rnn(x[:3])
    second, end = rnn(x[3:], middle)
    assert y.dtype == torch.bfloat16
    assert flat(state)[-1].dtype in (torch.float32, torch.complex64)
    assert not is_pair(rnn) or state[0].dtype == y.dtype
    close(torch.cat([first, second]), y, **TOLERANCE[y.dtype])
    close(end, state, **TOLERANCE[y.dtype])
    assert all(a.dtype == torch.float32 for a in rnn.decays(x).values())


@every_cell
def test_no_steps(name):
    rnn = make(name, num_layers=2)
    x = torch.randn(0, B, M)
    y, zeros = rnn(x)
    assert y.shape == (0, B, H) and all((s == 0).all() for s in flat(zeros))
    state = random_state(rnn, x)
    close(rnn(x, state)[1], state)


def test_states_of_the_lstm(backend):
    rnn = make("GILRLSTM", num_layers=2, proj_size=3, dtype=F64, backend=backend)
    x = torch.randn(T, B, M, dtype=F64)
    h_0 = torch.randn(2, B, 3, dtype=F64, requires_grad=True)
    c_0 = torch.randn(2, B, H, dtype=F64, requires_grad=True)
    narrow = rnn(x, (h_0, c_0))
    _, (h_n, c_n) = narrow
    assert h_n.shape == (2, B, 3) and c_n.shape == (2, B, H + 3)
    close(h_n[-1], narrow[0][-1])
    wide = torch.cat([c_0, h_0], -1).detach().requires_grad_()
    unused = torch.full_like(h_0, 7.0).requires_grad_()
    close(rnn(x, (unused, wide)), narrow)
    of_h, of_c = torch.autograd.grad(weighted(narrow), [h_0, c_0])
    of_wide, none = torch.autograd.grad(
        weighted(rnn(x, (unused, wide))), [wide, unused], allow_unused=True
    )
    close(torch.cat([of_c, of_h], -1), of_wide)
    assert none is None and (of_h != 0).all() and (of_c != 0).all()


@pytest.mark.parametrize("proj", [0, 3])
def test_number_of_parameters(proj):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    s = proj or H
    extra = 2 * s * M + 2 * s  # the surrogate
    ours = CELLS["GILRLSTM"](M, H, proj_size=proj)
    assert count(ours) == count(torch.nn.LSTM(M, H, proj_size=proj)) + extra
    assert count(CELLS["GILR"](M, H)) == 2 * H * M + 2 * H


@every_cell
def test_dropout_is_between_layers(name):
    rnn = make(name, hidden=50, num_layers=2, dropout=0.3)
    x = torch.randn(40, 20, M)
    seen = []
    rnn.cells[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output, _ = rnn(x)
    assert (output[-1] != 0).all()
    rnn.eval()(x)
    dropped, kept = seen
    zero = dropped == 0
    # 40,000 draws: five standard deviations are 0.0115.
    assert abs(zero.float().mean() - 0.3) < 0.0115
    close(dropped[~zero], kept[~zero] / 0.7)
    before = torch.get_rng_state()
    rnn.train().decays(x)
    assert torch.equal(before, torch.get_rng_state())
    close(seen[-1], kept)


@every_cell
def test_layouts(name, backend):
    options = {"num_layers": 2, "bidirectional": True, "backend": backend, "dtype": F64}
    rnn = make(name, **options)
    first = CELLS[name](M, H, **options, batch_first=True)
    first.load_state_dict(rnn.state_dict())
    x = torch.randn(B, T, M, dtype=F64)
    reset = torch.rand(B, T) < 0.3
    state = random_state(first, x)
    y, end = first(x, state, reset=reset)
    y_time, end_time = rnn(x.transpose(0, 1).contiguous(), state, reset=reset.T)
    close(y_time.transpose(0, 1), y)
    close(end_time, end)
    for b in range(B):
        row = tree_map(lambda s, b=b: s[:, b], state)
        y_row, end_row = rnn(x[b], row, reset=reset[b])
        close(y_row, y[b])
        close(end_row, tree_map(lambda s, b=b: s[:, b], end))
    close(rnn(x[0], lengths=torch.tensor(2))[0][:2], rnn(x[0, :2])[0])


class Copies(TorchDispatchMode):
    """Notes what is copied."""

    def __init__(self, size):
        super().__init__()
        self.size, self.functions = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        copying = function.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous")
        if copying and result.numel() >= self.size:
            self.functions.append(str(function))
        return result


@every_cell
@pytest.mark.parametrize("batch_first", [True, False])
def test_no_layout_copies(name, batch_first):
    rnn = make(name, size=64, hidden=64, num_layers=2, batch_first=batch_first)
    x = torch.randn(8, 16, 64)
    with torch.no_grad(), Copies(x.numel()) as copies:
        rnn(x)
    assert copies.functions == []


@cases
def test_lengths_are_truncated_rows(name, options, backend):
    rnn = make(name, **options, batch_first=True, dtype=F64, backend=backend)
    lengths = torch.tensor([T, 0, 3, 1])
    x = torch.randn(4, T, M, dtype=F64)
    padding = torch.arange(T) >= lengths[:, None]
    x[padding] = float("nan")
    x.requires_grad_()
    state = random_state(rnn, torch.zeros(4, 1, M, dtype=F64), grad=True)
    leaves = [x, *flat(state), *rnn.parameters()]

    def gradients(results):
        return torch.autograd.grad(
            weighted(results), leaves, allow_unused=True, materialize_grads=True
        )

    y, end = rnn(x, state, lengths=lengths)
    assert (y[padding] == 0).all()
    rows = []
    for b, n in enumerate(lengths.tolist()):
        row = tree_map(lambda s, b=b: s[:, b : b + 1], state)
        y_row, end_row = rnn(x[b : b + 1, :n], row)
        rows.append((torch.nn.functional.pad(y_row, (0, 0, 0, T - n)), end_row))
    expected = (
        torch.cat([r[0] for r in rows]),
        tree_map(lambda *s: torch.cat(s, 1), *(r[1] for r in rows)),
    )
    close((y, end), expected)
    close(gradients((y, end)), gradients(expected))


@cases
def test_reset_is_separate_documents(name, options, backend):
    rnn = make(name, **options, batch_first=True, dtype=F64, backend=backend)
    x = torch.randn(1, 9, M, dtype=F64, requires_grad=True)
    borders = [0, 4, 5, 9]
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, borders[1:-1]] = True
    documents = [rnn(x[:, s:e]) for s, e in itertools.pairwise(borders)]
    y, end = rnn(x, reset=reset)
    close(y, torch.cat([d[0] for d in documents], 1))
    for k in range(len(rnn.cells)):
        document = documents[0 if k % rnn.directions else -1][1]
        close(tree_map(lambda s, k=k: s[k], end), tree_map(lambda s, k=k: s[k], document))
    leaves = [x, *rnn.parameters()]
    expected = torch.autograd.grad(weighted(torch.cat([d[0] for d in documents], 1)), leaves)
    close(torch.autograd.grad(weighted(y), leaves), expected)
    reset[0, 0] = True  # what comes in is forgotten, NaN too
    poison = tree_map(lambda s: torch.full_like(s, float("nan")), random_state(rnn, x))
    forward = slice(0, rnn.proj_size or H)
    if not rnn.bidirectional:
        close(rnn(x, poison, reset=reset)[0][..., forward], y[..., forward])


@cases
def test_resets_with_lengths(name, options, backend):
    """Those in the padding are none."""
    rnn = make(name, **options, batch_first=True, dtype=F64, backend=backend)
    lengths = torch.tensor([T, 0, 3, 1])
    x, reset = torch.randn(4, T, M, dtype=F64), torch.rand(4, T) < 0.5
    state = random_state(rnn, x)
    y, end = rnn(x, state, lengths=lengths, reset=reset)
    for b, n in enumerate(lengths.tolist()):
        row = tree_map(lambda s, b=b: s[:, b : b + 1], state)
        expected = rnn(x[b : b + 1, :n], row, reset=reset[b : b + 1, :n])
        close((y[b : b + 1, :n], tree_map(lambda s, b=b: s[:, b : b + 1], end)), expected)


def kolmogorov_smirnov(sample, distribution):
    """Largest distance between the sample's and the distribution function."""
    steps = torch.linspace(0, 1, len(sample) + 1)
    ideal = distribution(sample.sort().values)
    return max((ideal - steps[:-1]).abs().max(), (ideal - steps[1:]).abs().max())


OF_THE_PAPER = {
    # a^2 uniform in [0.9^2, 0.999^2] at r = 1; a new gate starts at r = 1/2.
    "RGLRU": lambda a: (a**4 - 0.9**2) / (0.999**2 - 0.9**2),
    # |a|^2 uniform in [0, 1].
    "LRU": lambda a: a**2,
    # |a| = exp(-step / 2), the step log-uniform in [0.001, 0.1].
    "S5": lambda a: 1 - torch.log(-2 * a.log() / 0.001) / torch.log(torch.tensor(100.0)),
}
"""Distribution functions of the first decays, where a paper gives one."""

AS_TORCH = ("GILRGRU", "GILRLSTM", "GILRRNN", "SurrogateRNN")
"""Layers whose biases are drawn as those of `torch.nn`, where no memory is asked for."""


@every_cell
@pytest.mark.parametrize("memory", [(20.0, 500.0), None])
def test_memory_of_a_new_layer(name, memory):
    N = 1000
    rnn = CELLS[name](1, N, memory=memory)
    for parameter, p in rnn.named_parameters():
        assert "weight_" not in parameter or 0.99 < p.abs().max() * N**0.5 <= 1
    with torch.no_grad():
        for p in rnn.parameters():
            p.mul_(p.ndim == 1)
    for place, decay in rnn.decays(torch.zeros(1, 1, 1)).items():
        if name == "GILRRNN" and place.endswith("cell"):
            assert (decay == 0).all()
            continue
        u = decay[0, 0] / (1 - decay[0, 0])
        if memory is None and name in AS_TORCH:
            of_bias = u.log().abs() * N**0.5
            if place.endswith("surrogate"):
                assert (of_bias == 0).all()
            else:
                assert 0.9 < of_bias.max() <= 2 and of_bias.mean() > 0.4
            continue
        if memory:
            close(-1 / decay[0, 0].log(), u + 0.5, rtol=2e-3, atol=0)
            uniform = kolmogorov_smirnov(u, lambda u: (u - 20) / 480)
        elif name in OF_THE_PAPER:
            uniform = kolmogorov_smirnov(decay[0, 0], OF_THE_PAPER[name])
        else:
            uniform = kolmogorov_smirnov(u, lambda u: u.log() / torch.tensor(64.0).log())
        assert uniform < 1.95 / N**0.5  # exceeded by chance once in a thousand


def test_min_lstm_shares_tiny_gates():
    """f / (f + i), where both are 0 in float32."""
    f = torch.tensor([-200.0, -300.0, -1e4, 200.0, -150.0, 0.0], requires_grad=True)
    i = torch.tensor([-200.0, -299.0, 1e4, 200.0, 150.0, -1e4], requires_grad=True)
    a, b = lrnn.nn.cells.min_lstm.min_lstm(f, i, torch.ones(6))
    close(a, torch.tensor([0.5, 1 / (1 + torch.e), 0, 0.5, 0, 1]))
    close(a + b, torch.ones(6))
    of_f, of_i = torch.autograd.grad(a.sum(), (f, i))
    close(of_f, torch.tensor([0.25, 0.19661193, 0, 0, 0, 0]))
    close(of_i, torch.tensor([-0.25, -0.19661193, 0, 0, 0, 0]))


def test_input_gate_of_a_memory():
    rnn = CELLS["GILRLSTM"](M, H, memory=(5, 50))
    i, f, _, o = rnn.cells[0].bias_ih.chunk(4)
    assert torch.equal(i, -f / 2) and (o == 0).all() and (rnn.cells[0].bias_hh == 0).all()
    before = copy.deepcopy(rnn.state_dict())
    rnn.reset_parameters()
    # Biases of what has no memory stay 0.
    assert all((before[k] != v).any() or (v == 0).all() for k, v in rnn.state_dict().items())


@every_cell
def test_backends_share_parameters(name):
    serial = make(name, num_layers=2, backend="serial", dtype=F64)
    scan = CELLS[name](M, H, num_layers=2, backend="scan", dtype=F64)
    assert not any("backend" in key for key in serial.state_dict())
    scan.load_state_dict(serial.state_dict())
    x = torch.randn(T, B, M, dtype=F64)
    results = []
    for rnn in (serial, scan):
        results.append(rnn(x))
        assert lrnn.last_backend() == rnn.backend
    close(*results)
    serial.backend = "scan"
    serial(x)
    assert lrnn.last_backend() == "scan" and "backend='scan'" in repr(serial)
    with pytest.raises(lrnn.BackendError, match="no backend 'skan'; known are: auto, scan, serial"):
        serial.backend = "skan"
    serial.backend = "auto"
    with lrnn.use_backend("serial"):
        serial(x)
    assert lrnn.last_backend() == "serial"


# To the compiler a backend is a word that it hands on: each cell by one of them in `make test`.
COMPILED = [
    pytest.param(name, backend, marks=[pytest.mark.nightly] * ((i + j) % 2), id=f"{name}-{backend}")
    for i, name in enumerate(CELLS)
    for j, backend in enumerate(("scan", "serial"))
]


@pytest.mark.parametrize("name, backend", COMPILED, indirect=["backend"])
def test_compile_without_graph_breaks(name, backend):
    rnn = make(name, bidirectional=True, batch_first=True, backend=backend)
    x, lengths = torch.randn(B, T, M), torch.tensor([T, 2, 4])
    state = random_state(rnn, x)
    torch.compiler.reset()  # a process compiles one function eight times at most
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    results = [f(x, state, lengths=lengths) for f in (rnn, compiled)]
    close(*results)
    close(*(torch.autograd.grad(weighted(r), list(rnn.parameters())) for r in results))


@every_cell
def test_copies_of_the_module(name):
    rnn = make(name, **DEEP, backend="serial")
    x = torch.randn(B, T, M, dtype=F64)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        close(other(x), rnn(x))
        assert repr(other) == repr(rnn)
    shown = f"{name}(\n  4, 5, num_layers=2, batch_first=True, bidirectional=True, "
    assert repr(rnn).startswith(shown) and "backend='serial'" in repr(rnn)


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype, backend, device):
    rnn = make(name, num_layers=2, backend=backend)
    x = torch.randn(T, B, M)
    with torch.autocast(device, dtype):
        y, state = rnn(x)
        again, _ = rnn(x, state)
        close(rnn(x.to(dtype))[0], y)  # as what comes out of another layer
    assert y.dtype == again.dtype == dtype
    exact = rnn(x)[0].detach()
    close(y.float(), exact, rtol=0, atol=float(6e-2 * exact.abs().max()))
    weighted(again).backward()
    assert all(p.grad.dtype == torch.float32 for p in rnn.parameters())


@every_cell
def test_dropout_with_one_layer_warns(name):
    with pytest.warns(UserWarning, match=r"dropout=0.1 acts between layers"):
        CELLS[name](M, H, dropout=0.1)


@every_cell
def test_refused_inputs(name):
    rnn = make(name, num_layers=2, batch_first=True)
    x = torch.zeros(B, T, M)
    ones, zeros = torch.ones, torch.zeros
    inputs = [
        (ValueError, r"must be \(B, T, 4\) or \(T, 4\), got shape \(3, 6, 7\)", zeros(B, T, 7)),
        (ValueError, r"`input` must be .*, got list", [[1.0]]),
        (TypeError, "`input` is torch.float64, the parameters are torch.float32", x.double()),
        (TypeError, "`input` is on meta, the parameters on cpu", x.to("meta")),
    ]
    for error, message, refused in inputs:
        with pytest.raises(error, match=message):
            rnn(refused)
    steps = [
        (ValueError, r"have shape \(3,\), got shape \(6,\)", {"lengths": ones(T)}),
        (TypeError, "must be integers, got torch.float32", {"lengths": ones(B)}),
        (ValueError, "between 0 and T = 6, got 7 to 7", {"lengths": torch.tensor([7] * B)}),
        (ValueError, r"have shape \(3, 6\), got shape \(6, 3\)", {"reset": zeros(T, B)}),
        (TypeError, "must be torch.bool, got torch.float32", {"reset": zeros(B, T)}),
    ]
    for error, message, refused in steps:
        with pytest.raises(error, match=f"`{next(iter(refused))}` .*{message}"):
            rnn(x, **refused)


@every_cell
def test_refused_states(name):
    rnn = make(name, num_layers=2, batch_first=True)
    x = torch.zeros(B, T, M)
    good = rnn(x)[1]

    def refused(error, message, change):
        state = (*good[:-1], change(good[-1])) if is_pair(rnn) else change(good)
        with pytest.raises(error, match=message):
            rnn(x, state)

    part = "c_0" if is_pair(rnn) else "h_0"
    refused(ValueError, rf"`{part}` must have shape \(2, 3, .*got shape \(1, 3", lambda s: s[:1])
    refused(ValueError, rf"`{part}` .*, got shape \(2, 3, 3\)", lambda s: s[..., :3])
    held = flat(good)[-1].dtype
    wide = torch.promote_types(held, F64)
    refused(
        TypeError,
        rf"`{part}` is {wide}, which the state, {held}, cannot hold",
        lambda s: s.to(wide),
    )
    refused(TypeError, rf"`{part}` is torch.int64", lambda s: torch.zeros_like(s, dtype=int))
    refused(TypeError, rf"`{part}` is on meta, `input` on cpu", lambda s: s.to("meta"))
    if is_pair(rnn):
        with pytest.raises(ValueError, match=r"`hx` must be the pair \(h_0, c_0\), got shape \(2,"):
            rnn(x, good[0])
        with pytest.raises(ValueError, match=r"\(2, 3, 10\) or \(2, 3, 5\), got shape \(2, 3, 7\)"):
            rnn(x, (good[0], torch.zeros(2, 3, 7)))
