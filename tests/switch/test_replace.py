"""Layers of this package in the places of PyTorch's, in any module.

Seen to fail: the state in the cell's own form; evaluation mode forgotten; only the first child of
a module looked at; `strict` ignored; weights that are made anew, or tied, not looked at; hooks
of the new layer; buffers, or the old weights, in the wrong hands; no `__reduce_ex__`; methods of
`torch.nn.RNNBase`; a complex h_0.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from layers import every_cell
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lrnn import BackendError, SwitchError, replace_rnn
from lightning_lrnn.nn import CELLS, GILRLSTM, QRNN, MinGRU
from lightning_lrnn.nn.stack import Stack

close = torch.testing.assert_close
B, T, M, H, LAYERS = 4, 7, 5, 6, 2
KINDS = ["LSTM", "GRU", "RNN"]
every_kind = pytest.mark.parametrize("kind", KINDS)


class Holder(nn.Module):
    """A user's module around one recurrent layer."""

    def __init__(self, kind="LSTM", **options):
        super().__init__()
        options = {"num_layers": LAYERS, "batch_first": True, **options}
        self.rnn = getattr(nn, kind)(M, H, **options)


WIDER = {name: "features, not 6" for name in ("QRNN", "TGRU", "TLSTM")}
WIDER |= {"LRU": "is complex", "S5": "is complex"}
"""Layers whose state is not that of `torch.nn`, and why."""
pairs = pytest.mark.parametrize("name, kind", [(name, kind) for name in CELLS for kind in KINDS])


def switched(name, kind="LSTM", state=None, **options):
    holder = Holder(kind, **options)
    replace_rnn(holder, name, state=state or ("carried" if name in WIDER else "strict"))
    return holder


def states(hx):
    return hx if isinstance(hx, tuple) else (hx,)


# What the code around a layer sees.


@pairs
def test_a_layer_looks_like_the_one_it_replaces(name, kind):
    old = Holder(kind, bidirectional=True, dropout=0.3).rnn
    new = switched(name, kind, bidirectional=True, dropout=0.3).rnn
    x = torch.randn(B, T, M)
    y, state = new(x)
    expected, expected_state = old(x)
    assert y.shape == expected.shape and y.dtype == expected.dtype
    assert type(state) is type(expected_state)
    assert states(state)[0].shape[:2] == states(expected_state)[0].shape[:2]
    if kind == "LSTM":
        assert state[0].shape == expected_state[0].shape
        close(state[0][-2], y[:, -1, :H])
        close(state[0][-1], y[:, 0, H:])
    assert isinstance(new, getattr(nn, kind)) and isinstance(new, CELLS[name])
    same = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size mode"
    for attribute in same.split():
        assert getattr(new, attribute) == getattr(old, attribute), attribute
    new.flatten_parameters()


@pairs
def test_state_can_be_carried_detached_repeated_and_made_of_zeros(name, kind):
    rnn = switched(name, kind).rnn
    x = torch.randn(B, T, M)
    zeros = torch.zeros(LAYERS, B, H)
    hx = (zeros, zeros) if kind == "LSTM" else zeros
    whole, last = rnn(x, hx)
    close(whole, rnn(x)[0])
    pieces = []
    for piece in x.split([3, 1, 1, 2], 1):
        hx = tree_map(lambda h: h.detach(), hx)
        y, hx = rnn(piece, hx)
        pieces.append(y)
    close(torch.cat(pieces, 1), whole)
    close(hx, last)
    samples = tree_map(lambda h: h.repeat_interleave(3, 1), hx)
    token = torch.randn(B, 1, M)
    one, _ = rnn(token, hx)
    many, _ = rnn(token.repeat_interleave(3, 0), samples)
    close(many, one.repeat_interleave(3, 0))


@every_cell
def test_initial_states_may_be_learned(name):
    rnn = switched(name).rnn
    h_0 = torch.randn(LAYERS, B, H, requires_grad=True)
    c_0 = torch.randn(LAYERS, B, H, requires_grad=True)
    x = torch.randn(B, T, M)
    y, _ = rnn(x, (h_0, c_0))
    assert not torch.equal(y, rnn(x)[0])
    y.square().sum().backward()
    assert c_0.grad.abs().amin(-1).count_nonzero() == c_0.grad[..., 0].numel()


@pytest.mark.parametrize("name", ["GILRLSTM", "GILRGRU", "SurrogateRNN"])
def test_h_0_reaches_a_layer_with_a_surrogate_beside_its_cells(name):
    h_0 = torch.randn(LAYERS, B, H, requires_grad=True)
    y, _ = switched(name, state="carried").rnn(torch.randn(B, T, M), (h_0, torch.zeros(h_0.shape)))
    y.square().sum().backward()
    assert h_0.grad.abs().amin(-1).all()


@every_cell
def test_packed_sequences_with_unsorted_lengths(name):
    rnn = switched(name).rnn
    lengths = torch.tensor([3, 7, 1, 4])
    x = torch.randn(B, T, M)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, (h, c) = rnn(packed)
    y, _ = pad_packed_sequence(output, batch_first=True)
    for row, length in enumerate(lengths):
        alone, (h_1, c_1) = rnn(x[row : row + 1, :length])
        close(y[row, :length], alone[0])
        close(h[:, row], h_1[:, 0])
        close(c[:, row], c_1[:, 0])


@every_kind
@every_cell
def test_strict_states_have_the_shapes_of_torch(name, kind):
    holder = Holder(kind)
    expected = states(holder.rnn(torch.randn(B, T, M))[1])
    if name in WIDER:
        with pytest.raises(SwitchError, match=f"{WIDER[name]}.*`state`: carried"):
            replace_rnn(holder, name)
        assert not isinstance(holder.rnn, Stack)
        assert replace_rnn(holder, name, state="carried").replaced
        return
    replace_rnn(holder, name)
    for part, like in zip(states(holder.rnn(torch.randn(B, T, M))[1]), expected, strict=True):
        assert part.shape == like.shape and part.dtype == like.dtype
        nn.Linear(H, 2)(part[-1])


def test_options_that_keep_the_state_narrow_are_strict():
    holder = Holder()
    with pytest.raises(SwitchError, match=r"rnn: c_n of QRNN has 24 features, not 6.*carried"):
        replace_rnn(holder, {"LSTM": "QRNN"})
    assert replace_rnn(holder, partial(QRNN, window=1)).replaced


def test_projection_keeps_its_size():
    holder = Holder(proj_size=3)
    expected = [part.shape for part in tree_leaves(holder.rnn(torch.randn(B, T, M)))]
    narrow = copy.deepcopy(holder)
    (report,) = replace_rnn(narrow, "GILRLSTM")
    assert [part.shape for part in tree_leaves(narrow.rnn(torch.randn(B, T, M)))] == expected
    assert not report.notes
    (report,) = replace_rnn(holder, "GILRLSTM", state="carried")
    y, (h, c) = holder.rnn(torch.randn(B, T, M))
    assert [y.shape, h.shape] == expected[:2] and c.shape == (LAYERS, B, H + 3)
    zeros = torch.zeros(LAYERS, B, 3), torch.zeros(LAYERS, B, H)
    close(holder.rnn(torch.ones(B, T, M), zeros)[0], holder.rnn(torch.ones(B, T, M))[0])
    assert "9 features" in report.notes[0]
    with pytest.raises(SwitchError, match=r"QRNN has no projection.*proj_size=3"):
        replace_rnn(Holder(proj_size=3), "QRNN", state="carried")


# What is replaced, and what is said about it.


class Project(nn.Module):
    """Recurrent layers in every place where a project may have them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"text": nn.LSTM(M, H), "tags": nn.GRU(M, H)})
        self.blocks = nn.ModuleList([nn.Sequential(nn.LSTM(H, H), nn.Identity())])
        self.decoder = nn.LSTM(H, H)
        self.same = self.decoder
        self.rnn = nn.RNN(H, H)
        self.cell = nn.GRUCell(H, H)


def test_by_name_by_path_and_shared():
    project = Project()
    report = replace_rnn(project, {"LSTM": "GILRLSTM", "torch.nn.GRU": MinGRU})
    assert [r.path for r in report.replaced] == [
        "encoder.text",
        "encoder.tags",
        "blocks.0.0",
        "decoder",
    ]
    assert type(project.encoder["tags"]).__name__ == "MinGRU"
    assert isinstance(project.blocks[0][0], GILRLSTM)
    assert project.same is project.decoder and isinstance(project.same, GILRLSTM)
    assert type(project.rnn) is nn.RNN and type(project.cell) is nn.GRUCell
    assert {r.path: r.notes for r in report.left} == {
        "rnn": ("`rnn` names nothing for RNN",),
        "cell": ("a single cell, which is called step by step, is not replaced",),
    }
    assert replace_rnn(project, {"LSTM": "GILRLSTM", "GRU": "MinGRU"}).replaced == ()

    project = Project()
    assert replace_rnn(project, "GILR", where="same").replaced[0].path == "decoder"
    assert project.same is project.decoder and type(project.rnn) is nn.RNN

    project = Project()
    report = replace_rnn(project, "QRNN", where=["encoder.*", "decoder"], options={"window": 1})
    assert [r.path for r in report] == ["encoder.text", "encoder.tags", "decoder"]
    assert project.decoder.options == {"pooling": "fo", "window": 1, "zoneout": 0.0}


def test_a_bare_name_takes_what_fits_and_reports_the_rest():
    project = Project()
    project.single = nn.GRU(H, 1)
    report = replace_rnn(project, "GILRLSTM", backend="serial")
    paths = ["encoder.text", "encoder.tags", "blocks.0.0", "decoder", "rnn"]
    assert [r.path for r in report.replaced] == paths
    assert "hidden_size=1" in next(r for r in report if r.path == "single").notes[0]
    assert {m.backend for m in project.modules() if isinstance(m, Stack)} == {"serial"}
    text = str(report)
    assert "LSTM(5, 6)\n  -> GILRLSTM(5, 6, output_activation='tanh', surrogate_size=0.5" in text
    assert "start anew" in text and "left as it is" in text
    parameters = sum(p.numel() for p in project.decoder.parameters())
    last = next(r for r in report if r.path == "decoder")
    assert (last.before, last.after) == (4 * H * (2 * H + 2), parameters)
    assert f"{last.before:,} -> {last.after:,} parameters" in text


def test_what_is_impossible_is_refused_and_nothing_is_changed():
    def state(module):
        return {name: id(child) for name, child in module.named_modules()}

    for rnn, options, message in [
        (
            {"LSTM": "MinGRU", "GRU": "QRNN"},
            {},
            r"encoder.tags: h_n of QRNN has 24 features, not 6",
        ),
        ({"RNN": "QRNN"}, {"options": {"window": 0}}, "rnn: QRNN cannot be made: .*window"),
        ({"RNN": "QRNN"}, {"options": {"wide": 3}}, "rnn: QRNN cannot be made: .*wide"),
        ("S5", {"where": "rnn"}, "nothing could be replaced: rnn: h_n of S5 is complex"),
    ]:
        project = Project()
        before = state(project)
        with pytest.raises(SwitchError, match=message):
            replace_rnn(project, rnn, **options)
        assert state(project) == before
    for rnn, options, error, message in [
        ("GILRLSMT", {}, ValueError, "there is no layer 'GILRLSMT'; known are .*GILRLSTM"),
        (
            "torch.nn.LSTM",
            {},
            ValueError,
            "must name layers of lightning_lrnn.nn .* got torch.nn.LSTM$",
        ),
        ({"GRU": "torch.nn.GRU"}, {}, ValueError, "got torch.nn.GRU for GRU$"),
        ({"LSTN": "GILR"}, {}, ValueError, "replaces LSTM, GRU, RNN; there is no 'LSTN'"),
        (partial(QRNN, num_layers=3), {}, ValueError, "num_layers.*layer that is replaced"),
        (partial(QRNN, backend="scan"), {}, ValueError, "give it as `backend`"),
        ("QRNN", {"options": {"num_layers": 3}}, ValueError, "`options` may not have num_layers"),
        ("QRNN", {"state": "Strict"}, ValueError, "`state` must be one of .* got 'Strict'"),
        ("QRNN", {"backend": "skan"}, BackendError, "skan"),
    ]:
        with pytest.raises(error, match=message):
            replace_rnn(Project(), rnn, **options)
    with pytest.raises(SwitchError, match="the module is itself a LSTM"):
        replace_rnn(nn.LSTM(M, H), "GILR")
    assert str(replace_rnn(nn.Linear(2, 2), "GILR")) == "no torch.nn.LSTM, GRU or RNN"


class Dropped(nn.Module):
    """Keeps a weight of its layer itself, and puts a changed copy in its place."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.raw = rnn, rnn._parameters.pop("weight_hh_l0")
        self.rnn.weight_hh_l0 = self.raw * 0.5


@pytest.mark.parametrize(
    "how",
    [
        lambda rnn: nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: prune.l1_unstructured(rnn, "weight_hh_l0", 0.3),
        lambda rnn: nn.utils.spectral_norm(rnn, "weight_hh_l0"),
        Dropped,
    ],
    ids=["parametrization", "prune", "spectral_norm", "a module around it"],
)
def test_weights_that_something_recomputes(how):
    rnn = nn.LSTM(M, H)
    made = how(rnn)
    holder = made if isinstance(made, Dropped) else nn.ModuleDict({"rnn": rnn})
    with pytest.raises(SwitchError, match=r"rnn: its weights \(weight_hh_l0\) are made of other"):
        replace_rnn(holder, {"LSTM": "GILR"})
    assert not any(isinstance(m, Stack) for m in holder.modules())


def test_weights_that_another_module_has_too():
    model = nn.ModuleDict({"a": nn.LSTM(M, H), "b": nn.LSTM(M, H), "c": nn.GRU(M, H)})
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    report = replace_rnn(model, "GILR")
    assert [r.path for r in report.replaced] == ["c"]
    assert report.left[0].notes[0].startswith("its weight_hh_l0 is also b.weight_hh_l0")


@pytest.mark.parametrize("keywords", [False, True])
def test_hooks_before_a_call_are_kept(keywords):
    holder, seen = Holder(), []

    def hook(rnn, args, *more):
        rnn.flatten_parameters()
        seen.append(rnn)
        return (((2 * args[0], *args[1:]), *more)) if keywords else (2 * args[0], *args[1:])

    holder.rnn.register_forward_pre_hook(hook, with_kwargs=keywords)
    replace_rnn(holder, "GILR")
    x = torch.randn(B, T, M)
    y, _ = holder.rnn(x)
    assert seen == [holder.rnn]
    holder.rnn._forward_pre_hooks.clear()
    close(y, holder.rnn(2 * x)[0])


def test_mode_dtype_device_hooks_and_frozen_layers():
    holder = Holder(device="meta", dtype=torch.bfloat16).eval().requires_grad_(False)
    (report,) = replace_rnn(holder, "GILR")
    parameter = next(holder.parameters())
    assert not holder.rnn.training and parameter.dtype == torch.bfloat16 and parameter.is_meta
    assert "frozen" in report.notes[-1] and parameter.requires_grad

    holder, seen = Holder(), []
    handle = holder.rnn.register_forward_hook(lambda rnn, args, output: seen.append(rnn))
    replace_rnn(holder, "GILR")
    holder.rnn(torch.randn(B, T, M))
    assert seen == [holder.rnn]
    handle.remove()
    holder.rnn(torch.randn(B, T, M))
    assert len(seen) == 1

    holder, seen = Holder(), []
    holder.rnn.register_full_backward_hook(lambda rnn, gin, gout: seen.append(rnn))
    replace_rnn(holder, "GILR")
    holder.rnn(torch.randn(B, T, M, requires_grad=True))[0].sum().backward()
    assert seen == [holder.rnn]


# Subclasses with methods of their own.


class Counting(nn.LSTM):
    """Brings an attribute, a parameter, a buffer, a module and a method, and changes `forward`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = 0
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.register_buffer("offset", torch.ones(1))
        self.register_buffer("unsaved", torch.ones(1), persistent=False)
        self.norm = nn.LayerNorm(self.input_size)

    def forward(self, input, hx=None):
        self.calls += 1
        y, hx = super().forward(self.norm(input), hx)
        return self.scale * y + self.offset, hx

    def zeros(self, rows):
        h = torch.zeros(self.num_layers, rows, self.hidden_size)
        return h, h.clone()


class Deeper(Counting):
    def forward(self, input, hx=None):
        return super().forward(input, self.zeros(input.shape[0]) if hx is None else hx)


@pytest.mark.parametrize("kind", [Counting, Deeper])
def test_a_subclass_keeps_what_it_brings(kind):
    holder = nn.Module()
    holder.rnn = old = kind(M, H, batch_first=True)
    (report,) = replace_rnn(holder, "GILRLSTM")
    rnn = holder.rnn
    assert (
        isinstance(rnn, kind) and isinstance(rnn, GILRLSTM) and type(rnn).__name__ == kind.__name__
    )
    assert rnn.scale is old.scale and rnn.offset is old.offset and rnn.norm is old.norm
    x = torch.randn(B, T, M)
    y, hx = rnn(x)
    assert rnn.calls == 1 and old.calls == 0
    plain = GILRLSTM(M, H, batch_first=True, surrogate_size=0.5)
    plain.cells.load_state_dict(rnn.cells.state_dict())
    expected, _ = plain(old.norm(x), rnn.zeros(B))
    close(y, 2 * expected + 1)
    y.sum().backward()
    assert all(p.grad is not None for p in rnn.parameters())
    assert not any("weight_hh_l0" in name for name, _ in rnn.named_parameters())
    assert "offset" in rnn.state_dict() and "unsaved" not in rnn.state_dict()
    assert report.after == sum(p.numel() for p in plain.parameters())
    close(rnn(x, tuple(part.detach() for part in hx))[0], 2 * plain(old.norm(x), hx)[0] + 1)


def test_attributes_by_the_same_name_are_told():
    class Backend(nn.LSTM):
        def __init__(self, *args):
            super().__init__(*args)
            self.options = {}

    holder = nn.Module()
    holder.rnn = Backend(M, H)
    with pytest.raises(SwitchError, match="has attributes by names that GILR uses: options"):
        replace_rnn(holder, {"LSTM": "GILR"})


# Copies, files, other dtypes.


@pytest.mark.parametrize("make", [partial(Holder, "LSTM"), lambda: Deep()], ids=["plain", "own"])
def test_copies_and_pickles(make):
    holder = make()
    replace_rnn(holder, "GILRLSTM")
    x = torch.randn(B, T, M)
    for other in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert type(other.rnn) is type(holder.rnn)
        close(other.rnn(x), holder.rnn(x))
        with torch.no_grad():
            next(other.rnn.parameters()).add_(1)
        assert not torch.equal(other.rnn(x)[0], holder.rnn(x)[0])
        other.load_state_dict(holder.state_dict())
        close(other.rnn(x), holder.rnn(x))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = Deeper(M, H, batch_first=True)


def test_half_and_double():
    holder = switched("GILRLSTM")
    for dtype in (torch.float64, torch.bfloat16):
        holder.to(dtype)
        y, (h, _) = holder.rnn(torch.randn(B, T, M, dtype=dtype))
        assert y.dtype == h.dtype == dtype


def test_torch_compile_runs_it():
    holder = switched("MinGRU", "GRU")

    def run(x):
        return holder.rnn(2 * x)[0] + 1

    x = torch.randn(B, T, M)
    with warnings.catch_warnings():
        # A graph breaks at a torch.nn.GRU, and PyTorch then warns of what it traces inside.
        warnings.simplefilter("ignore")
        compiled = torch.compile(run, backend="eager")(x)
    close(compiled, run(x))
