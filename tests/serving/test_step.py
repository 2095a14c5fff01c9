"""A recorded step is the layers' own, reads and writes the same memory, and refuses the rest.

Seen to fail: the state not written back; a recurrence from zeros at every step; its outputs not
kept alive; an `arange` that is written into not begun anew; a border of a padding overwritten; the
`out` overload of another operation; `prepared` flags not cleared; parameters watched by name alone,
or not at all; the inputs' own memory recorded; no refusal of dropout, of values, of autocast, of
two directions; copies of another dtype by their own `out` overload. One operation that allocates
fails `test_nothing_is_allocated`: see the one below it.
"""

from __future__ import annotations

import copy
import runpy
import sys
from functools import partialmethod

import pytest
import torch
from layers import F64, SINGLE_LAYERS, B, H, M, T, every_cell, flat, make
from paths import BENCHMARKS, ROOT, TESTS
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map

import lightning_lrnn as lrnn
from lightning_lrnn.data import ByteText
from lightning_lrnn.nn import CELLS
from lightning_lrnn.serving.replay import Replay

close = torch.testing.assert_close
every_option = pytest.mark.parametrize("name, options", SINGLE_LAYERS, ids=str)
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).split(".")[1])


def stepped(step, x):
    """The outputs of a step along x (T, B, ·)."""
    return torch.cat([step(x_t[None]).clone() for x_t in x])


def allocations(function):
    """Bytes of every tensor memory that is asked for on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as actual:
        function()
    events = actual.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]


@pytest.mark.parametrize("rows", [1, B])
@dtypes
@every_option
def test_steps_are_the_sequence(name, options, dtype, rows):
    rnn = make(name, num_layers=2, dtype=dtype, **options)
    with torch.no_grad():
        for p in rnn.parameters():  # states of the strongly typed cells grow
            p.mul_(0.5)
        x = torch.randn(T, rows, M, dtype=dtype)
        output, state = rnn(x)
    step = lrnn.RecordedStep(rnn, x[:1])
    close(stepped(step, x), output, **TOLERANCE[dtype])
    close(step.state, state, **TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["GILR", "MinGRU", "SRU"])
def test_bits_are_those_of_forward_step_by_step(name):
    """The same matmuls, the same compiled steps."""
    rnn = make(name, size=96, hidden=96, num_layers=2)
    x = torch.randn(T, B, 96)
    step, state = lrnn.RecordedStep(rnn, x[:1]), None
    for x_t in x:
        with torch.no_grad():
            y, state = rnn(x_t[None], state)
        assert torch.equal(step(x_t[None]), y)
    assert torch.equal(step.state, state)


@every_cell
def test_states_go_to_and_from_forward(name):
    rnn = make(name, num_layers=2, batch_first=True, dtype=F64)
    x = torch.randn(B, 3 * T, M, dtype=F64)
    with torch.no_grad():
        output, end = rnn(x)
        _, state = rnn(x[:, :T])
    step = lrnn.RecordedStep(rnn, x[:, :1])
    step.state = state
    ys = [step(x[:, t : t + 1]).clone() for t in range(T, 2 * T)]
    close(torch.cat(ys, 1), output[:, T : 2 * T])
    kept = step.state
    step(x[:, :1])
    with torch.no_grad():
        close(rnn(x[:, 2 * T :], kept), (output[:, 2 * T :], end))
    step.reset()
    close(step(x[:, :1]), output[:, :1])


@every_cell
def test_parameters_change_in_place(name):
    rnn, other = (make(name, num_layers=2, dtype=F64) for _ in range(2))
    x = torch.randn(T, B, M, dtype=F64)
    step = lrnn.RecordedStep(rnn, x[:1])
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    rnn(x)[0].square().mean().backward()
    changes = (
        optimizer.step,
        lambda: rnn.load_state_dict(other.state_dict()),
        lambda: [p.data.mul_(0.5) for p in rnn.parameters()],
    )
    before = stepped(step, x)
    for change in changes:
        change()
        step.reset()
        with torch.no_grad():
            close(stepped(step, x), rnn(x)[0])
        assert not torch.equal(step(x[:1]), before[:1])


@every_cell
def test_parameters_that_are_exchanged_are_refused(name):
    x = torch.randn(1, B, M)
    exchanges = (
        lambda rnn: rnn.double(),
        lambda rnn: rnn.load_state_dict(copy.deepcopy(rnn.state_dict()), assign=True),
        lambda rnn: setattr(next(rnn.parameters()), "data", torch.zeros(1)),
    )
    for exchange in exchanges:
        rnn = make(name)
        step = lrnn.RecordedStep(rnn, x)
        step(x)
        exchange(rnn)
        with pytest.raises(RuntimeError, match="is another tensor than the one recorded"):
            step(x)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@every_option
def test_nothing_is_allocated(name, options, dtype):
    """But for numbers, of which PyTorch makes tensors of one element."""
    rnn = make(name, size=40, hidden=70, num_layers=2, dtype=dtype, **options)
    x = torch.randn(1, B, 40, dtype=dtype)
    step = lrnn.RecordedStep(rnn, x)
    bytes_of = allocations(lambda: step(x))
    if name in ("HGRN", "S5"):
        assert max(bytes_of) <= 8
    else:
        assert bytes_of == []


def test_the_test_above_can_fail(monkeypatch):
    rnn, x = make("GILR", size=40, hidden=70), torch.randn(1, B, 40)
    assert allocations(lambda: torch.add(x, x, out=x)) == []
    assert allocations(lambda: x + x) == [x.nbytes]
    step = lrnn.RecordedStep(rnn, x)
    step._replay.calls.append(lambda: x[:, :1] + x[:, :1])
    assert allocations(lambda: step(x)) == [x[:, :1].nbytes]
    with torch.no_grad():
        assert max(allocations(lambda: rnn.step(x[0]))) > 8


def test_the_memory_is_the_same():
    step = lrnn.RecordedStep(make("GILRLSTM"), torch.zeros(1, B, M))
    x = torch.randn(1, B, M)
    first = step(x)
    place, value = first.data_ptr(), first.clone()
    second = step(x)
    assert second.data_ptr() == place and torch.equal(first, second)
    assert not torch.equal(second, value)
    assert not second.requires_grad
    kept = step.state
    values = tree_map(torch.clone, kept)
    step(x)
    for a, b in zip(flat(kept), flat(values), strict=True):
        assert torch.equal(a, b)


def test_a_model():
    model = lrnn.pl.LanguageModel(hidden_size=16).eval()
    tokens = torch.randint(256, (2, T))
    with torch.no_grad():
        output, _ = model(tokens)
    step = lrnn.RecordedStep(model, tokens[:, :1])
    actual = torch.cat([step(tokens[:, t : t + 1]).clone() for t in range(T)], 1)
    close(actual, output, rtol=1e-4, atol=1e-5)
    assert max(allocations(lambda: step(tokens[:, :1]))) <= 8  # an RMS norm's numbers


def test_a_few_steps_at_once():
    rnn, x = make("QRNN", num_layers=2, dtype=F64), torch.randn(3 * T, B, M, dtype=F64)
    step = lrnn.RecordedStep(rnn, x[:T])
    actual = torch.cat([step(x[k : k + T]).clone() for k in range(0, 3 * T, T)])
    close(actual, rnn(x)[0])


def test_in_inference_mode():
    """Where operations are seen that are made of others."""
    with torch.inference_mode():
        rnn, x = make("GILRLSTM", num_layers=2, dtype=F64), torch.randn(T, B, M, dtype=F64)
        step = lrnn.RecordedStep(rnn, x[:1])
        close(stepped(step, x), rnn(x)[0])
        assert allocations(lambda: step(x[:1])) == []
    step.reset()
    with torch.no_grad():  # parameters that were made there have no gradient elsewhere
        close(stepped(step, x), rnn(x)[0])


def test_layers_of_torch():
    rnn, x = torch.nn.LSTM(M, H, 2), torch.randn(T, B, M)
    close(stepped(lrnn.RecordedStep(rnn, x[:1]), x), rnn(x)[0])


class Own(torch.nn.Module):
    """A cell whose gate no backend compiles, with a border and with constants that change."""

    def forward(self, x, h=None):
        count = torch.arange(3, dtype=x.dtype)
        count += 1
        count *= x.sum()  # of what it began with, not of the step before
        padded = torch.nn.functional.pad(x, (1, 2), value=2.0) + count.sum()
        a = torch.polar(torch.full_like(padded, 0.5), padded)
        h0 = None if h is None else h
        h, state = lrnn.gated_recurrence(
            lambda a, b: (a.conj(), b * torch.exp(1j * b)), a.conj(), a, h0=h0
        )
        return torch.view_as_real(h).flatten(2), state


def test_a_module_of_ones_own():
    own, x = Own(), torch.randn(B, T, M, dtype=F64)
    state = None
    step = lrnn.RecordedStep(own, x[:, :1])
    for t in range(T):
        y, state = own(x[:, t : t + 1], state)
        close(step(x[:, t : t + 1]), y)
    close(step.state, state)


def test_a_tape_replays():
    x = torch.tensor([3.0, 4.0])
    with torch.no_grad(), Replay() as replay:
        parts, low = torch.split(x * x, 1), torch.aminmax(x)
        total = parts[0] + parts[1]
        whole = torch.cat([total, torch.zeros(1)]).to(F64)
    x.copy_(torch.tensor([-6.0, 8.0]))
    assert allocations(replay.run) == []
    assert (total.item(), whole.tolist(), [v.item() for v in low]) == (100, [100, 0], [-6, 8])


def test_refused():
    x = torch.zeros(1, B, M)
    two = make("GILR", bidirectional=True)
    with pytest.raises(ValueError, match="a bidirectional stack would need what comes after it"):
        lrnn.RecordedStep(torch.nn.Sequential(two)[0], x)
    with pytest.raises(TypeError, match="`input` is on meta, steps are recorded on a CPU"):
        lrnn.RecordedStep(make("GILR"), x.to("meta"))
    with pytest.raises(TypeError, match=r"must return \(output, state\), got Tensor"):
        lrnn.RecordedStep(torch.nn.Linear(M, H), x)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="outside of autocast"):
        lrnn.RecordedStep(make("GILR"), x)

    class Looks(torch.nn.Module):
        def forward(self, x, state=None):
            return (x if state is None or x.sum() > 0 else -x), x

    with pytest.raises(RuntimeError, match="depends on values"):
        lrnn.RecordedStep(Looks(), x)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"zoneout": 0.5}], ids=str)
def test_what_is_random_is_for_training(options):
    rnn, x = make("QRNN", num_layers=2, **options), torch.randn(T, B, M)
    with pytest.raises(RuntimeError, match=r"draws random numbers; `eval\(\)` the module"):
        lrnn.RecordedStep(rnn, x[:1])
    step = lrnn.RecordedStep(rnn.eval(), x[:1])
    close(stepped(step, x), rnn(x)[0], rtol=1e-4, atol=1e-5)


def test_refused_inputs_and_states():
    step = lrnn.RecordedStep(make("GILRLSTM"), torch.zeros(1, B, M))
    for wrong in (torch.zeros(1, B + 1, M), torch.zeros(1, M), None):
        with pytest.raises(ValueError, match=r"`input` was recorded with shape \(1, 3, 4\), got"):
            step(wrong)
    with pytest.raises(TypeError, match=r"`input` was recorded in torch.float32 on cpu, got torch"):
        step(torch.zeros(1, B, M, dtype=F64))
    h, c = step.state
    with pytest.raises(ValueError, match="`state` must be as the module returns it"):
        step.state = h
    with pytest.raises(ValueError, match=r"`state\[1\]` was recorded with shape \(1, 3, 10\), got"):
        step.state = (h, c[:, :1])
    with pytest.raises(TypeError, match=r"`state\[0\]` was recorded in torch.float32"):
        step.state = (h.double(), c)


class OneStep(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, state):
        return self.rnn.step(x, state)


STACKED = ("GILR", "GILRLSTM", "LRU")
"""Exported in two layers: states that are a tensor, a pair, and complex numbers."""


@every_cell
def test_an_exported_step_runs_a_sequence_in_any_batch(name, tmp_path):
    rnn = make(name, num_layers=2 if name in STACKED else 1)
    with torch.no_grad():
        for p in rnn.parameters():
            p.mul_(0.5)
        x = torch.randn(3 * T, B, M)
        state = tree_map(torch.zeros_like, rnn(x)[1])
    batch = torch.export.Dim("batch", min=2, max=1024)
    shapes = {"x": {0: batch}, "state": tree_map(lambda _: {1: batch}, state)}
    program = torch.export.export(OneStep(rnn), (x[0], state), dynamic_shapes=shapes)
    assert not any("lightning_lrnn" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "step.pt2")
    step = torch.export.load(tmp_path / "step.pt2").module()
    for rows in (B, 7):
        x = torch.randn(3 * T, rows, M)
        state = tree_map(lambda s, n=rows: s.new_zeros(s.shape[0], n, s.shape[2]), state)
        ys = []
        for x_t in x:
            y, state = step(x_t, state)
            ys.append(y)
        close((torch.stack(ys), state), rnn(x), rtol=1e-4, atol=1e-4)


# The example and the benchmark.


def test_the_example_runs(capsys, monkeypatch):
    monkeypatch.setattr(ByteText, "__init__", partialmethod(ByteText.__init__, path=str(TESTS)))
    actual = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    speeds = actual["main"](steps=1, length=5)
    assert set(speeds) == {"plain", "recorded"}
    assert capsys.readouterr().out.count("bytes per second") == 2


def test_the_example_continues_a_session():
    server = runpy.run_path(str(ROOT / "examples" / "serve.py"))["Server"]
    model = lrnn.modules.LanguageModel(hidden_size=16).eval()
    chosen, text = server(model), b"ab"
    for _ in range(2):  # the most probable byte each time
        text += b"".join(chosen.stream(b"c", 4, temperature=1e-9))
    expected = b""
    for _ in range(2):
        for k in range(4):
            expected += b"c" if k == 0 else b""
            expected += next(model.generate(expected, 1, temperature=0))
    assert text[2:] == bytes(b for i, b in enumerate(expected) if i % 5)


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("step", "timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import step

    threads = torch.get_num_threads()
    try:
        step.main(["--seconds", "0.01", "--size", "16", "--json", str(tmp_path / "step.json")])
    finally:
        torch.set_num_threads(threads)
    for name in ("step", "timing"):
        monkeypatch.delitem(sys.modules, name)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*step.CELLS, step.LSTM))
    assert set(step.CELLS) <= set(CELLS)

    with pytest.raises(AssertionError, match="not close"):
        step.difference(make("GILR"), lambda x: x.new_ones(1, 1, H), torch.randn(T, 1, M))
