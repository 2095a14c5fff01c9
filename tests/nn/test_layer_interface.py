"""What every layer shares with torch.nn.LSTM and GRU, and what it can be used with.

Seen to fail: the rows or the lengths of a packed sequence not sorted; `lengths` beside one; weight
decay on vectors; a learning rate lost; no refusal in `torch.jit.trace`; a step without its decay; a
surrogate that sees its step; the output of a pair taken for the state; input gates open in zoneout;
zoneout in evaluation, and in `decays`; bounds with the first layer's share; a growing S5; the
variance of B, and the scale of LRU; FLOPs of a backward pass like the forward's, of complex numbers
like real ones; a narrow state as it is; a second derivative lost in a `detach`; a root twice as
steep; a warning about a meta device; a radius drawn in bfloat16, and a rare zoneout; wrapped cells
left out; `parameters()` of a replica; arguments of a step ignored; random numbers of `explain`.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import safetensors.torch
import torch
from layers import (
    CASES,
    F64,
    SINGLE_LAYERS,
    B,
    H,
    M,
    T,
    every_cell,
    flat,
    is_pair,
    make,
    random_state,
    weighted,
)
from lightning_fabric.utilities.throughput import measure_flops
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_summary import ModelSummary
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import lightning_lrnn as lrnn
from lightning_lrnn.nn import CELLS

close = torch.testing.assert_close


def torch_rnn(rnn):
    """PyTorch's layer with the same habits."""
    return torch.nn.LSTM if is_pair(rnn) else torch.nn.GRU


# Packed sequences.


DEEPER = {"num_layers": 2, "bidirectional": True}
# Sorted ones of one form of each layer in `make test`.
PACKED = [
    pytest.param(
        *case,
        lengths,
        id=f"{case}-{kind}",
        marks=[pytest.mark.nightly] * (i % 2 and case[1] != DEEPER),
    )
    for case in CASES
    for i, (kind, lengths) in enumerate({"unsorted": (2, 6, 3, 6, 1), "sorted": (6, 4, 4)}.items())
]


@pytest.mark.parametrize("name, options, lengths", PACKED)
def test_packed_is_a_loop_over_sequences(name, options, lengths, backend):
    rnn = make(name, **options, dtype=F64, backend=backend)
    sequences = [torch.randn(n, M, dtype=F64, requires_grad=True) for n in lengths]
    state = random_state(rnn, torch.zeros(1, len(lengths), M, dtype=F64), grad=True)
    in_order = list(lengths) == sorted(lengths, reverse=True)
    packed = pack_sequence(sequences, enforce_sorted=in_order)
    output, end = rnn(packed, state)

    assert isinstance(output, PackedSequence)
    for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(output, part) is getattr(packed, part)
    rows, of_rows = pad_packed_sequence(output)
    assert of_rows.tolist() == list(lengths)
    expected = [rnn(x, tree_map(lambda s, b=b: s[:, b], state)) for b, x in enumerate(sequences)]
    for b, (y, _) in enumerate(expected):
        close(rows[: len(y), b], y)
        assert (rows[len(y) :, b] == 0).all()
    close(end, tree_map(lambda *s: torch.stack(s, 1), *(state for _, state in expected)))

    leaves = [*sequences, *flat(state), *rnn.parameters()]
    unused = {"allow_unused": True, "materialize_grads": True}
    whole = torch.cat([y for y, _ in expected])
    in_turn = torch.cat([rows[:n, b] for b, n in enumerate(lengths)])
    close(
        torch.autograd.grad(weighted((in_turn, end)), leaves, **unused),
        torch.autograd.grad(
            weighted((whole, tree_map(lambda *s: torch.stack(s, 1), *(s for _, s in expected)))),
            leaves,
            **unused,
        ),
    )


@every_cell
def test_decays_of_packed(name):
    rnn = make(name)
    rows = [torch.randn(n, M) for n in (2, T, 4)]
    padded = torch.nn.utils.rnn.pad_sequence(rows)
    expected = rnn.decays(padded, lengths=torch.tensor([2, T, 4]))
    assert expected
    close(rnn.decays(pack_sequence(rows, enforce_sorted=False)), expected)


def test_packed_has_lengths_of_its_own():
    rnn = make("GILR")
    packed = pack_sequence([torch.randn(3, M)])
    with pytest.raises(ValueError, match="`lengths` and a PackedSequence"):
        rnn(packed, lengths=torch.tensor([3]))
    with pytest.raises(ValueError, match="`reset` and a PackedSequence"):
        rnn(packed, reset=torch.zeros(3, 1, dtype=torch.bool))


# The call of torch.nn.LSTM.


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("shape", [(T, B, M), (T, M), (1, B, M)], ids=["batch", "row", "step"])
def test_code_for_torch_runs(name, batch_first, bidirectional, shape):
    arguments = (M, H, 2, True, batch_first, 0.5, bidirectional)
    rnn = CELLS[name](*arguments)
    theirs = torch_rnn(rnn)(*arguments)
    for attribute in (
        *("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
        *("bidirectional", "proj_size"),
    ):
        assert getattr(rnn, attribute) == getattr(theirs, attribute)
    rnn.flatten_parameters()
    x = torch.randn(shape)
    (y, state), (their_y, their_state) = rnn(x), theirs(x)
    assert y.shape == their_y.shape
    assert type(state) is type(their_state)
    for part, their_part in zip(flat(state), flat(their_state), strict=True):
        assert part.shape[:-1] == their_part.shape[:-1] and part.shape[-1] >= their_part.shape[-1]
    detached = tuple(s.detach() for s in state) if is_pair(rnn) else state.detach()
    again, _ = rnn(x, detached)
    assert again.shape == y.shape
    zeros = tree_map(torch.zeros_like, their_state)
    rnn.eval()
    close(rnn(x, zeros), rnn(x))


@every_cell
def test_a_narrow_state_has_no_past(name):
    """hidden_size wide, as torch's: nothing came before."""
    rnn = make(name, dtype=F64)
    x = torch.randn(T, B, M, dtype=F64)
    h = torch.randn(1, B, H, dtype=F64).to(flat(random_state(rnn, x))[-1].dtype)
    wide = torch.nn.functional.pad(h, (0, rnn.cells[0].state_size - H))
    if is_pair(rnn):
        zero = torch.zeros(1, B, H, dtype=F64)
        close(rnn(x, (zero, h)), rnn(x, (zero, wide)))
    else:
        close(rnn(x, h), rnn(x, wide))


# Single steps.


def cell_of(name):
    return getattr(lrnn.nn, f"{name}Cell")


@pytest.mark.parametrize("name, options", SINGLE_LAYERS, ids=str)
@pytest.mark.parametrize("rows", [(B,), ()], ids=["batch", "row"])
def test_a_loop_over_a_cell_is_the_layer(name, options, rows):
    rnn = make(name, **options, dtype=F64)
    cell = cell_of(name)(M, H, dtype=F64, **options)
    cell.load_state_dict(rnn.cells[0].state_dict())
    x = torch.randn(T, *rows, M, dtype=F64, requires_grad=True)
    ys, state = [], None
    for x_t in x:
        state = cell(x_t, state)
        ys.append(state[0] if isinstance(state, tuple) else state)
    y, end = rnn(x)
    close(torch.stack(ys), y)
    steps = state if is_pair(rnn) or not isinstance(state, tuple) else state[1]
    close(steps, tree_map(lambda s: s[0], end))
    leaves = [x]
    close(
        torch.autograd.grad(weighted(torch.stack(ys)), leaves),
        torch.autograd.grad(weighted(y), leaves),
    )


@pytest.mark.parametrize("name, options", SINGLE_LAYERS, ids=str)
@pytest.mark.parametrize("rows", [(B,), ()], ids=["batch", "row"])
def test_steps_of_a_stack_are_the_layers(name, options, rows):
    rnn = make(name, **options, num_layers=2, dtype=F64)
    x = torch.randn(T, *rows, M, dtype=F64)
    ys, state = [], None
    for x_t in x:
        y, state = rnn.step(x_t, state)
        ys.append(y)
    close((torch.stack(ys), state), rnn(x))


@every_cell
def test_a_step_of_16_bit(name):
    rnn = make(name, num_layers=2, dtype=torch.bfloat16)
    x = torch.randn(1, B, M, dtype=torch.bfloat16)
    state = random_state(rnn, x)
    y, after = rnn.step(x[0], state)
    expected, end = rnn(x, state)
    assert y.dtype == torch.bfloat16
    close(y, expected[0], rtol=2e-2, atol=2e-2)
    close(after, end, rtol=2e-2, atol=2e-2)


@every_cell
def test_refused_steps(name):
    rnn = make(name)
    cell = rnn.cells[0]
    for step in (rnn.step, cell):
        with pytest.raises(ValueError, match=r"must be \(B, 4\) or \(4,\), got shape \(6, 3, 4\)"):
            step(torch.zeros(T, B, M))
        with pytest.raises(TypeError, match=r"torch.float64, the parameters are torch.float32"):
            step(torch.zeros(B, M, dtype=F64))
    with pytest.raises(ValueError, match="of a bidirectional stack would need what comes after"):
        make(name, bidirectional=True).step(torch.zeros(B, M))
    with pytest.raises(ValueError, match="`hidden_size` must be an integer of at least 1, got 0"):
        cell_of(name)(M, 0)


# What a layer is used with.


@every_cell
def test_param_groups(name):
    rnn = make(name, num_layers=2, bidirectional=True)
    optimizer = torch.optim.AdamW(rnn.param_groups(0.1, gate_lr=1e-4), lr=1e-2)
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert (matrices["lr"], vectors["lr"]) == (1e-2, 1e-4)
    names = {id(p): n.split(".")[-1] for n, p in rnn.named_parameters()}
    assert len(names) == len(matrices["params"]) + len(vectors["params"])
    slow = {
        "bias",
        "bias_ih",
        "bias_hh",
        "rate",
        "bound",
        "norm",
        "nu",
        "theta",
        "gamma",
        "frequency",
        "log_step",
    }
    assert {names[id(p)] for p in vectors["params"]} <= slow
    assert not {names[id(p)] for p in matrices["params"]} & slow
    assert make(name, bias=False).param_groups()[0]["weight_decay"] == 0.01


@every_cell
def test_parameters_as_safetensors(name, tmp_path):
    rnn = make(name, num_layers=2, bidirectional=True)
    safetensors.torch.save_model(rnn, str(tmp_path / "rnn.safetensors"))
    other = make(name, num_layers=2, bidirectional=True, backend="serial")
    x = torch.randn(T, B, M)
    assert not torch.equal(rnn(x)[0], other(x)[0])
    safetensors.torch.load_model(other, str(tmp_path / "rnn.safetensors"))
    other.backend = "auto"
    assert torch.equal(rnn(x)[0], other(x)[0])


@every_cell
def test_loading_is_strict(name):
    state_dict = make(name).state_dict()
    key, value = state_dict.popitem()
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{key}"'):
        make(name).load_state_dict(state_dict)
    with pytest.raises(RuntimeError, match=rf"size mismatch for {key}"):
        make(name).load_state_dict({**state_dict, key: value[:-1]})


@every_cell
def test_torchscript_is_refused(name):
    rnn = make(name)
    message = f"{name} is not for TorchScript.*torch.export"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(RuntimeError, match=message):
            torch.jit.script(torch.nn.Sequential(rnn))
        with pytest.raises(RuntimeError, match=f"{name}Cell is not for TorchScript"):
            torch.jit.script(rnn.cells[0])
        with pytest.raises(RuntimeError, match=message):
            torch.jit.trace(rnn, torch.zeros(T, B, M))


@every_cell
def test_export(name):
    rnn = make(name, num_layers=2)
    x = torch.randn(T, B, M)
    state = random_state(rnn, x)
    time = torch.export.Dim("time", min=2, max=4096)
    shapes = {"input": {0: time}, "hx": tree_map(lambda _: None, state)}
    program = torch.export.export(rnn, (x, state), dynamic_shapes=shapes)
    longer = torch.randn(T + 5, B, M)
    close(program.module()(longer, state), rnn(longer, state))


@every_cell
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(3, marks=pytest.mark.nightly, id="fewer rows"),
        pytest.param(H, id="as many rows as units"),
    ],
)
def test_export_with_any_number_of_rows_and_steps(name, rows):
    """Also where they are as many as there are units, inputs or pre-activations."""
    rnn = make(name, batch_first=True)
    B, T = torch.export.Dim("B", min=1, max=64), torch.export.Dim("T", min=1, max=64)
    x, lengths = torch.randn(rows, 7, M), torch.full((rows,), 7)
    shapes = {"input": {0: B, 1: T}, "lengths": {0: B}}
    options = {"lengths": lengths}
    program = torch.export.export(rnn, (x,), options, dynamic_shapes=shapes).module()
    for b, t in ((1, 1), (H, 3), (3, H), (H, H), (M, M), (2 * H, 3 * H), (9, 4 * H)):
        x, lengths = torch.randn(b, t, M), torch.randint(0, t + 1, (b,))
        close(program(x, lengths=lengths), rnn(x, lengths=lengths))


class Steps(torch.nn.Module):
    """One of each of several layers, for the same input."""

    def __init__(self, rnns):
        super().__init__()
        self.rnns = torch.nn.ModuleList(rnns)

    def forward(self, x, states):
        return [rnn.step(x, state) for rnn, state in zip(self.rnns, states, strict=True)]


@pytest.mark.slow
def test_onnx_of_a_step():
    """PyTorch's exporter does not know complex states. One program: each costs a second or two."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    names = [name for name in CELLS if name not in ("LRU", "S5")]
    steps = Steps(make(name, dropout=0.0) for name in names).eval()
    x = torch.randn(B, M)
    states = [random_state(rnn, x[None]) for rnn in steps.rnns]
    program = torch.onnx.export(steps, (x, states), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    asked = [i.name for i in session.get_inputs()]
    values = [v.numpy() for v in flat((x, states))]
    outputs = iter(session.run(None, dict(zip(asked, values, strict=True))))
    for name, expected in zip(names, steps(x, states), strict=True):
        for value in flat(expected):
            close(next(outputs), value.detach().numpy(), rtol=1e-5, atol=1e-6, msg=name)
    assert not list(outputs)


@every_cell
def test_flops(name, backend):
    """Of the matmuls, and of the recurrence: a multiply-add forward, and two backward."""
    rnn = make(name, backend=backend)
    x = torch.randn(T, B, M)
    with FlopCounterMode(display=False) as counter:
        y, _ = rnn(x)
        y.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    of_ours = sum(n for op, n in counts.items() if "lightning_lrnn" in str(op))
    recurrences = 2 if hasattr(rnn.cells[0], "surrogate") else 1
    each = 8 if flat(rnn(x)[1])[-1].is_complex() else 2
    assert of_ours == 3 * recurrences * each * T * B * H
    matmuls = sum(n for op, n in counts.items() if "mm" in str(op))
    assert matmuls >= 2 * 2 * T * B * M * H


@every_cell
@pytest.mark.parametrize("memory", [None, (2, 50)])
def test_a_deferred_start_is_that_of_the_constructor(name, memory):
    """Made on the meta device, put somewhere, and every module's own parameters filled there."""
    options = {"num_layers": 2, "bidirectional": True, "memory": memory}
    with torch.device("meta"):
        rnn = CELLS[name](M, H, **options)
    rnn.to_empty(device="cpu")
    for tensor in rnn.state_dict().values():
        tensor.fill_(math.nan)
    torch.manual_seed(0)
    for module in rnn.modules():
        if module is not rnn and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(0)
    expected = CELLS[name](M, H, **options).state_dict()
    torch.testing.assert_close(rnn.state_dict(), expected, rtol=0, atol=0)
    torch.manual_seed(0)
    rnn.reset_parameters()
    torch.testing.assert_close(rnn.state_dict(), expected, rtol=0, atol=0)


@every_cell
def test_flops_that_lightning_counts(name):
    """`measure_flops` runs a model without memory, the summary one with an example."""
    with torch.device("meta"):
        rnn, x = make(name), torch.zeros(T, B, M)
    matmul = 2 * T * B * M * H
    assert measure_flops(rnn, lambda: rnn(x)) > matmul

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn, self.example_input_array = make(name), torch.zeros(T, B, M)

        def forward(self, x):
            return self.rnn(x)[0]

    assert ModelSummary(Model()).total_flops > matmul


@every_cell
def test_deterministic(name, backend):
    rnn = make(name, num_layers=2, bidirectional=True, batch_first=True, backend=backend)
    x = torch.randn(B, T, M)
    options = {
        "lengths": torch.tensor([T, 0, 3]),
        "reset": torch.rand(B, T) < 0.3,
    }
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            results = rnn(x, random_state_of_seed(rnn, x), **options)
            grads = torch.autograd.grad(weighted(results), list(rnn.parameters()))
            runs.append((*flat(results), *grads))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def random_state_of_seed(rnn, x):
    torch.manual_seed(1)
    return random_state(rnn, x)


# What only some cells have.


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_zoneout_keeps_the_state(pooling):
    n = 400
    rnn = make("QRNN", hidden=n, pooling=pooling, zoneout=0.3, window=1, dtype=F64)
    x, c = torch.randn(20, 1, M, dtype=F64), torch.randn(1, 1, n, dtype=F64)
    kept = torch.stack([rnn(x[t : t + 1], c)[1] == c for t in range(len(x))]).double().mean()
    # 8,000 draws: five standard deviations are 0.026.
    assert abs(kept - 0.3) < 0.026
    y, _ = rnn.eval()(x, c)
    sure = make("QRNN", hidden=n, pooling=pooling, window=1, dtype=F64)
    sure.load_state_dict(rnn.state_dict())
    close(y, sure(x, c)[0])
    before = torch.get_rng_state()
    rnn.train().decays(x, c)
    assert torch.equal(before, torch.get_rng_state())


def test_bounds_of_hgrn_rise_with_the_layer():
    rnn = CELLS["HGRN"](M, H, num_layers=4, bidirectional=True)
    with torch.no_grad():
        for cell in rnn.cells:
            cell.weight_ih.zero_()
            cell.bias.fill_(-100.0)  # the gate itself forgets
    decays = rnn.decays(torch.randn(T, B, M))
    for layer in range(4):
        for direction in ("forward", "reverse"):
            lowest = decays[f"layer{layer}.{direction}.state"]
            close(lowest, torch.full_like(lowest, layer / 4))


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("memory", [None, (2, 300)], ids=str)
def test_first_gradients_are_finite(name, dtype, memory):
    """Whatever is drawn: thousands of units, in 16 bits too."""
    for seed in range(3):
        torch.manual_seed(seed)
        rnn = CELLS[name](4, 512, memory=memory, dtype=dtype)
        y, _ = rnn(torch.randn(5, 2, 4, dtype=dtype))
        loss = y.float().square().mean()
        gradients = torch.autograd.grad(loss, list(rnn.parameters()))
        for value in (y, *rnn.parameters(), *gradients):
            assert torch.isfinite(value).all()


def test_s5_does_not_fit_float16():
    with pytest.raises(TypeError, match=r"frequencies of S5 do not fit into torch.float16"):
        CELLS["S5"](M, 256).half()(torch.zeros(T, B, M).half())


def test_eigenvalues_do_not_depend_on_modes():
    with FakeTensorMode(), torch.device("cpu"):
        CELLS["S5"](3, 9)
    assert torch.isfinite(CELLS["S5"](3, 9).cells[0].frequency).all()


def test_blocks_of_rg_lru_are_scaled_by_their_width():
    for blocks in (1, 8):
        weight = cell_of("RGLRU")(M, 256, blocks=blocks).weight
        close(weight.std().item(), (blocks / 256) ** 0.5, rtol=0.05, atol=0)


@every_cell
def test_cells_may_be_wrapped(name):
    rnn = make(name, num_layers=2)
    x = torch.randn(T, B, M)
    expected = rnn(x, random_state_of_seed(rnn, x))
    apply_activation_checkpointing(rnn, check_fn=lambda m: isinstance(m, cell_of(name)))
    assert type(rnn.cells[0]) is not cell_of(name)
    actual = rnn(x, random_state_of_seed(rnn, x))
    close(actual, expected)
    weighted(actual).backward()


@every_cell
def test_replicas_have_no_parameters(name):
    """As `torch.nn.DataParallel` makes them: plain attributes."""
    rnn = make(name, num_layers=2)
    replica = copy.deepcopy(rnn)
    for module in replica.modules():
        for key, value in list(module._parameters.items()):
            del module._parameters[key]
            setattr(module, key, None if value is None else value.detach().clone())
    x = torch.randn(T, B, M)
    close(replica(x), rnn(x))
    close(replica.step(x[0]), rnn.step(x[0]))


def test_explain_draws_nothing():
    rnn = make("QRNN", num_layers=2, dropout=0.5, zoneout=0.5)
    before = torch.get_rng_state()
    assert rnn.explain("cpu")["scan"] == []
    assert rnn.explain("cuda")["serial"] == []
    assert torch.equal(before, torch.get_rng_state())


def test_zoneout_of_16_bit_is_as_rare_as_asked():
    rnn = make("QRNN", hidden=400, zoneout=0.002, window=1, pooling="f", dtype=torch.bfloat16)
    x, c = torch.randn(300, 1, M, dtype=torch.bfloat16), torch.full((1, 1, 400), 1e3)
    kept = torch.stack([rnn(x[t : t + 1], c)[1] == c for t in range(len(x))]).float().mean()
    # 120,000 draws: five standard deviations are 0.00065.
    assert abs(kept - 0.002) < 0.00065


def test_more_that_is_refused():
    rnn, cell = make("QRNN"), make("QRNN").cells[0]
    x = torch.zeros(B, M)
    for name in ("reset", "h_0"):
        with pytest.raises(TypeError, match=f"single step takes `input` and `hx`, not {name}"):
            cell(x, **{name: x})
    with pytest.raises(ValueError, match=r"must be the state, or \(output, state\), got 1 parts"):
        cell(x, (x,))
    y, state = cell(x)
    close(cell(x, [y, state]), cell(x, state))
    with pytest.raises(ValueError, match=r"must be packed rows \(T, 4\), got shape \(3,\)"):
        rnn(pack_sequence([torch.zeros(3)]))
    lengths, reset = torch.tensor([T] * B), torch.zeros(T, B)
    with pytest.raises(TypeError, match=r"`reset` must be torch.bool, got torch.float32"):
        rnn(torch.zeros(T, B, M), lengths=lengths, reset=reset)


def test_first_values_of_lru_and_s5():
    n = 600
    for name in ("LRU", "S5"):
        cell = cell_of(name)(7, n)
        for parameter, variance in ((cell.B, 1 / 14), (cell.C, 1 / n), (cell.D, 1 / 7)):
            close(parameter.var().item(), variance, rtol=0.1, atol=0)
    lru = cell_of("LRU")(7, n, ring=(0.8, 0.9), max_phase=0.3)
    a, scale = lru.transition(F64)
    assert 0.8 <= a.abs().min() < 0.81 and 0.89 < a.abs().max() <= 0.9
    assert 0 <= a.angle().min() and 0.29 < a.angle().max() <= 0.3
    close(scale, torch.sqrt(1 - a.abs() ** 2), rtol=1e-5, atol=0)


def test_first_eigenvalues_of_s5():
    """Those of the skew-symmetric part and -1/2 of the HiPPO matrix of twice the size."""
    n = 6
    P = torch.sqrt(1 + 2 * torch.arange(2 * n, dtype=F64))
    hippo = -(torch.outer(P, P).tril() - torch.diag(torch.arange(2 * n, dtype=F64)))
    low_rank = torch.sqrt(torch.arange(2 * n, dtype=F64) + 0.5)
    eigenvalues = torch.linalg.eigvals(hippo + torch.outer(low_rank, low_rank))
    positive = eigenvalues[eigenvalues.imag > 0]
    cell = cell_of("S5")(M, n, dtype=F64)
    close(cell.rate.detach(), positive.real)
    close(cell.frequency.detach().sort().values, positive.imag.sort().values)


def test_s5_may_not_grow():
    cell = cell_of("S5")(M, H, dtype=F64)
    with torch.no_grad():
        cell.rate.fill_(3.0)
    assert (cell.transition(F64)[0].abs() < 1).all()


@every_cell
def test_second_derivatives(name):
    rnn = make(name, dtype=F64)
    x = torch.randn(3, 1, M, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], (x,))


@pytest.mark.parametrize("rate, slope", [(-20.0, 1000.0), (-10.0, None)])
def test_the_root_of_rg_lru_is_clipped(rate, slope):
    """d sqrt(s) / ds is 1 / (2 sqrt(s)), but never above 1000."""
    rate = torch.tensor(rate, dtype=F64, requires_grad=True)
    zero, large, one = (torch.tensor(v, dtype=F64) for v in (0.0, 50.0, 1.0))
    a, b = lrnn.nn.cells.rg_lru.rg_lru(zero, large, one, rate)
    square = -torch.expm1(2 * a.detach().log())
    close(b, torch.sqrt(square), rtol=1e-6, atol=0)
    (actual,) = torch.autograd.grad(b, rate)
    of_square = 2 * a**2 * 4 * torch.sigmoid(rate)
    close(actual, (slope or 0.5 / b) * of_square, rtol=1e-6, atol=0)
