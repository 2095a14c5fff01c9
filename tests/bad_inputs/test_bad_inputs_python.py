"""Bad arguments of layers, models and functions: each is refused in words that name it.

A row is a call, what is wrong in it, and words of the message.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_lrnn as lrnn
from lightning_lrnn import SwitchRNN, backends, fit_surrogate, replace_rnn
from lightning_lrnn import callbacks as on
from lightning_lrnn.backends import BackendError
from lightning_lrnn.gates import GateError
from lightning_lrnn.modules import Forecaster, LanguageModel, SequenceClassifier, SequenceTagger
from lightning_lrnn.nn.memory import memory_bias_

X = torch.randn(2, 5, 3)
FEATURES = {"num_features": 2, "num_classes": 2}


def refuses(call: Any, error: type[Exception] | tuple[type[Exception], ...], words: str) -> None:
    with pytest.raises(error) as raised:
        call()
    # Not of a class below it: a KeyError, say, is no word of this package.
    assert words in str(raised.value)


def linear(**given: Any) -> Any:
    return lrnn.linear_recurrence(**({"a": X, "b": X} | given))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"a": 0.5}, ValueError, "`a` must be (B, T, D) = (2, 5, 3) or (D,), got float"),
        ({"a": X[0]}, ValueError, "`a` must be (B, T, D) = (2, 5, 3) or (D,), got shape (5, 3)"),
        ({"a": X.double()}, TypeError, "share one dtype, got torch.float64 and torch.float32"),
        ({"a": X.to("meta")}, TypeError, "on one device, got meta and cpu"),
        ({"b": [1.0]}, ValueError, "`b` must be a tensor (B, T, D), got list"),
        ({"b": X[0]}, ValueError, "`b` must be a tensor (B, T, D), got shape (5, 3)"),
        ({"b": X.to_sparse()}, TypeError, "`b` must be a dense tensor, got torch.sparse_coo"),
        ({"a": X.to_sparse()}, TypeError, "`a` must be a dense tensor, got torch.sparse_coo"),
        ({"a": X.int(), "b": X.int()}, BackendError, "dtype torch.int32 is not one of"),
        ({"h0": [0.0]}, ValueError, "`h0` must have shape (2, 3), got list"),
        ({"h0": X[0]}, ValueError, "`h0` must have shape (2, 3), got shape (5, 3)"),
        ({"h0": X[:, 0].double()}, TypeError, "`h0` must be torch.float32 (the dtype of the stat"),
        ({"h0": X[:, 0].to("meta")}, TypeError, "`h0` is on meta"),
        ({"lengths": [5, 5]}, ValueError, "`lengths` must have shape (2,), got list"),
        ({"lengths": torch.tensor([0, 6])}, ValueError, "between 0 and T = 5, got 0 to 6"),
        ({"lengths": torch.tensor([-1, 5])}, ValueError, "between 0 and T = 5, got -1 to 5"),
        ({"lengths": torch.tensor([0.0, 5.0])}, TypeError, "`lengths` must be integers"),
        ({"reset": torch.zeros(2, 4).bool()}, ValueError, "`reset` must have shape (2, 5)"),
        ({"reset": torch.zeros(2, 5)}, TypeError, "`reset` must be torch.bool"),
        ({"reverse": "yes"}, TypeError, "`reverse` must be True or False, got 'yes'"),
        ({"reverse": 2}, TypeError, "`reverse` must be True or False, got 2"),
        ({"exclusive": None}, TypeError, "`exclusive` must be True or False, got None"),
        ({"backend": "fast"}, BackendError, "there is no backend 'fast'; known are: auto, scan"),
        ({"backend": None}, BackendError, "there is no backend None; known are: auto, scan"),
        ({"backend": ["scan"]}, BackendError, "there is no backend ['scan']; known are: auto"),
        ({"length": 3}, TypeError, "unexpected keyword argument 'length'"),
    ],
)
def test_linear_recurrence(given: dict[str, Any], error: type[Exception], words: str) -> None:
    refuses(lambda: linear(**given), error, words)


def plain(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(f), z


def one(f: Tensor, z: Tensor) -> Tensor:
    return torch.sigmoid(f)


def three(f: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.sigmoid(f), z, z


def pair(h: Tensor, f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return h, z


def short(h: Tensor, f: Tensor) -> Tensor:
    return h * f


def wide(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


PAIR = "the gate must return decay and impulse, (a, b), returns "
ONE = "the readout must return one tensor, the output, returns "


@pytest.mark.parametrize(
    ("gate", "pre", "options", "error", "words"),
    [
        ("gilr", (X, X), {}, TypeError, "`gate` must be a function of tensors, got 'gilr'"),
        (None, (X, X), {}, TypeError, "`gate` must be a function of tensors, got None"),
        (plain, (), {}, ValueError, "at least one pre-activation of shape (B, T, D)"),
        (plain, (X, 0.5), {}, ValueError, "`pre[1]` must be (B, T, D) = (2, 5, 3), (D,) or (B, D)"),
        (plain, (X, X[:, :4]), {}, ValueError, "`pre[1]` must be (B, T, D) = (2, 5, 3), (D,)"),
        (plain, (X, X.double()), {}, TypeError, "`pre[1]` is torch.float64"),
        (plain, (X, X[0, 0].int()), {}, TypeError, "`pre[1]` must be floating or complex, got"),
        (plain, (X, X.to_sparse()), {}, TypeError, "`pre[1]` must be a dense tensor"),
        (plain, (X, X), {"reverse": "no"}, TypeError, "`reverse` must be True or False, got 'no'"),
        (plain, (X, X), {"h0": X}, ValueError, "`h0` must have shape (2, 3), got shape (2, 5, 3)"),
        (one, (X, X), {}, GateError, PAIR + "shape (2, 5, 3)"),
        (three, (X, X), {}, GateError, PAIR + "tuple"),
        (lambda f, z: (0.5, z), (X, X), {}, GateError, PAIR + "float"),
        (lambda f, z: "ab", (X, X), {}, GateError, PAIR + "str"),
        (lrnn.gate(one), (X, X), {}, GateError, PAIR + "1 values"),
        (lrnn.gate(three), (X, X), {}, GateError, PAIR + "3 values"),
        (plain, (X, X, X), {}, TypeError, "plain() takes 2 positional arguments but 3 were given"),
        (lrnn.gate(plain), (X, X, X), {}, GateError, "the gate takes 2 inputs, got 3"),
        (lrnn.gate(plain), (X,), {}, GateError, "the gate takes 2 inputs, got 1"),
        (
            lambda f, z: (f.sum(-1), z),
            (X, X),
            {},
            GateError,
            "of sequences (2, 5, 3) it returns (2",
        ),
        (lambda f, z: (f, z.sum(-1, True)), (X, X), {}, GateError, "it returns (2, 5, 1)"),
        (lambda f, z: (f, wide(z, z)), (X, X), {}, GateError, "it returns (2, 5, 6)"),
        (plain, (X, X), {"readout": "tanh"}, TypeError, "`readout` must be a function of tensors"),
        (lrnn.gate(plain), (X, X), {"readout": "tanh"}, TypeError, "`readout` must be a function"),
        (plain, (X, X), {"readout": pair}, GateError, ONE + "tuple"),
        (plain, (X, X), {"readout": lambda h, f, z: 1.0}, GateError, ONE + "float"),
        (lrnn.gate(plain), (X, X), {"readout": lrnn.gate(pair)}, GateError, ONE + "2 values"),
        (
            lrnn.gate(plain),
            (X, X),
            {"readout": lrnn.gate(short)},
            GateError,
            "the readout takes 2 inputs, got 3",
        ),
        *(
            (plain, (X, X), {"readout": readout}, GateError, f"it returns {shape}")
            for readout, shape in (
                (lambda h, f, z: h.sum(-1), "(2, 5)"),
                (lambda h, f, z: h.sum(-1, True), "(2, 5, 1)"),
                (lambda h, f, z: h.sum(1), "(2, 3)"),
                (lambda h, f, z: h.sum(), "()"),
                (lambda h, f, z: wide(h, h), "(2, 5, 6)"),
            )
        ),
    ],
)
def test_gated_recurrence(
    gate: Any, pre: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    refuses(lambda: lrnn.gated_recurrence(gate, *pre, **options), error, words)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (5, "a gate is a Python function of tensors, got 5"),
        (nn.Linear, "a gate is a Python function of tensors, got <class"),
        (torch.sigmoid, "a gate is a Python function of tensors, got <built-in"),
        (lambda f, *, z: (f, z), "a gate takes its tensors by position"),
        (lambda f, z: None, "must return tensors, returns (None,)"),
        (lambda f, z: (0.5, z), "must return tensors, returns (0.5, z)"),
        (lambda f, z: (f, z) if f > 0 else (z, f), "may not branch on values; use torch.where"),
        (lambda f, z: (f.sum(-1), z), "uses sum, which is not an operation of a gate"),
        (lambda f, z: (f[0], z), "uses getitem, which is not an operation of a gate"),
    ],
)
def test_gate(function: Any, words: str) -> None:
    refuses(lambda: lrnn.gate(function), GateError, words)


COUNT = "must be an integer of at least 1, got "
FLAG = "must be True or False, got "
SHARE = "must be a number from 0 to 1, got "
OF_ALL: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"`{name}` {COUNT}0") for name in ("input_size", "hidden_size", "num_layers")),
    *(({name: -1}, f"`{name}` {COUNT}-1") for name in ("input_size", "hidden_size", "num_layers")),
    *(({name: 2.0}, f"`{name}` {COUNT}2.0") for name in ("input_size", "hidden_size")),
    *(({name: "4"}, f"`{name}` {COUNT}'4'") for name in ("input_size", "hidden_size")),
    *(({name: None}, f"`{name}` {COUNT}None") for name in ("input_size", "hidden_size")),
    ({"num_layers": True}, f"`num_layers` {COUNT}True"),
    *(
        ({name: value}, f"`{name}` {FLAG}{value!r}")
        for name in ("bidirectional", "batch_first", "bias")
        for value in (2, "no", None)
    ),
    *(
        (
            {"dropout": value, "num_layers": 2},
            f"`dropout` must be a number from 0 to 1, got {value!r}",
        )
        for value in (1.5, -0.1, math.nan, "0.5", None, True)
    ),
    ({"proj_size": 5}, "`proj_size` must be"),
    ({"proj_size": -1}, "`proj_size` must be an integer of at least 0, got -1"),
    ({"proj_size": 1.5}, "`proj_size` must be an integer of at least 0, got 1.5"),
    *(
        ({"memory": value}, "`memory` must be (shortest, longest) steps, 0 < shortest <= longest")
        for value in (5, (9, 3), (0, 3), (1, math.inf), (math.nan, 3), ("1", "3"), (True, 3))
    ),
    *(
        ({"checkpoint_time": value}, "`checkpoint_time` must be a number of steps, at least 1, or")
        for value in (0, 2.5, "8", True)
    ),
    ({"dtype": "float32"}, "`dtype` must be a torch.dtype of real numbers, got 'float32'"),
    ({"dtype": torch.int64}, "`dtype` must be a torch.dtype of real numbers, got torch.int64"),
    ({"dtype": torch.complex64}, "`dtype` must be a torch.dtype of real numbers, got torch.compl"),
    ({"backend": "fast"}, "there is no backend 'fast'; known are: auto, scan, serial"),
    ({"backend": None}, "there is no backend None; known are: auto, scan, serial"),
    ({"windw": 3}, "unexpected keyword argument 'windw'"),
]


@pytest.mark.parametrize("name", lrnn.nn.CELLS)
def test_options_of_every_layer(name: str) -> None:
    for options, words in OF_ALL:
        given = {"input_size": 4, "hidden_size": 5} | options
        refusals = (ValueError, TypeError, BackendError)
        refuses(lambda given=given: lrnn.nn.CELLS[name](**given), refusals, words)


@pytest.mark.parametrize("name", lrnn.nn.CELLS)
def test_a_memory_needs_the_bias_that_it_sets(name: str) -> None:
    options: dict[str, Any] = {"memory": (1, 3), "bias": False}
    make = functools.partial(lrnn.nn.CELLS[name], 4, 5, **options)
    if lrnn.nn.CELLS[name].cell_type.memory_in_bias:
        refuses(make, ValueError, "`memory`=(1, 3) sets biases, and there are none")
    else:
        assert make().memory == (1, 3)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        *(("QRNN", {"window": w}, f"`window` {COUNT}{w!r}") for w in (0, 1.5, "2", True)),
        ("QRNN", {"pooling": "max"}, "`pooling` must be one of f, fo, ifo, got 'max'"),
        ("QRNN", {"pooling": ["f"]}, "`pooling` must be one of f, fo, ifo, got ['f']"),
        *(
            ("QRNN", {"zoneout": z}, f"`zoneout` must be a number from 0 to 1, got {z!r}")
            for z in (2, "0.1", math.nan)
        ),
        ("RGLRU", {"blocks": 3}, "`blocks` must divide hidden_size=5, got 3"),
        *(("RGLRU", {"blocks": b}, f"`blocks` {COUNT}{b!r}") for b in (0, -1, 2.0, "2")),
        *(
            ("LRU", {"ring": ring}, "`ring` must be radii, 0 <= inner < outer <= 1, got ")
            for ring in ((0.9, 0.1), 0.9, "0,1", (math.nan, 1), (0, 2))
        ),
        ("LRU", {"max_phase": 7}, "`max_phase` must be in (0, 2 pi], got 7"),
        ("LRU", {"max_phase": "1"}, "`max_phase` must be a number of at least 0, got '1'"),
        ("LRU", {"max_phase": 0}, "`max_phase` must be in (0, 2 pi], got 0"),
        (
            "GILRRNN",
            {"nonlinearity": "gelu"},
            "`nonlinearity` must be one of tanh, relu, got 'gelu'",
        ),
        (
            "GILRRNN",
            {"nonlinearity": ["tanh"]},
            "`nonlinearity` must be one of tanh, relu, got ['t",
        ),
        (
            "GILRLSTM",
            {"output_activation": "relu"},
            "`output_activation` must be one of tanh, identity, got 'relu'",
        ),
        ("GILR", {"proj_size": 2}, "GILR has no projection: `proj_size` must be 0, got 2"),
        ("GILR", {"output_activation": "tanh"}, "unexpected keyword argument 'output_activation'"),
        ("SurrogateRNN", {"cell": "lstm"}, "`cell` must be one of LSTM, LSTM_IDENTITY, GRU"),
        ("SurrogateRNN", {"cell": lrnn.gate(one)}, "`cell` must map pre-activations to decay and"),
        ("SurrogateRNN", {"cell": plain}, "or a gate, got <function plain"),
        ("SurrogateRNN", {"surrogate": "gilr"}, "`surrogate` must be one of GILR, HGRN, MinGRU"),
        ("SurrogateRNN", {"surrogate_size": 0}, "`surrogate_size` must be a whole number, or a sh"),
        ("SurrogateRNN", {"surrogate_size": "2"}, "`surrogate_size` must be a whole number"),
        ("SurrogateRNN", {"surrogate_layers": 1.5}, "`surrogate_layers` must be a whole number of"),
        ("SurrogateRNN", {"surrogate_options": {"windw": 1}}, "keyword argument 'windw'"),
    ],
)
def test_options_of_one_layer(name: str, options: dict[str, Any], words: str) -> None:
    for kind in (lrnn.nn.CELLS[name], lrnn.nn.CELLS[name].cell_type):
        refuses(lambda kind=kind: kind(4, 5, **options), (ValueError, TypeError), words)


LAYER = lrnn.nn.GILRLSTM(3, 4, batch_first=True)
MODEL = LanguageModel(hidden_size=8, num_layers=1)
BYTES = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: LAYER([[1.0]]), ValueError, "`input` must be (B, T, 3) or (T, 3), got list"),
        (lambda: LAYER(X[..., :2]), ValueError, "(B, T, 3) or (T, 3), got shape (2, 5, 2)"),
        (lambda: LAYER(X.double()), TypeError, "`input` is torch.float64, the parameters are torc"),
        (lambda: LAYER(X.to("meta")), TypeError, "`input` is on meta, the parameters on cpu"),
        (lambda: LAYER(X, X[:1]), ValueError, "`hx` must be the pair (h_0, c_0), got shape (1, 5"),
        (lambda: LAYER(X, ("a", "b")), ValueError, "`h_0` must have shape (1, 2, 4), got str"),
        (lambda: LAYER.step(X), ValueError, "`input` must be (B, 3) or (3,), got shape (2, 5, 3)"),
        (lambda: setattr(LAYER, "backend", "fast"), BackendError, "no backend 'fast'; known are"),
        (lambda: setattr(LAYER, "checkpoint_time", -1), ValueError, "at least 1, or None, got -1"),
        (
            lambda: LAYER.param_groups(-1),
            ValueError,
            "`weight_decay` must be a number of at least 0",
        ),
        (lambda: LAYER.param_groups("0"), ValueError, "`weight_decay` must be a number of at lea"),
        (lambda: LAYER.param_groups(lr=-1), ValueError, "`lr` must be a number of at least 0, got"),
        (lambda: LAYER.explain("gpu"), RuntimeError, "gpu"),
        (lambda: lrnn.nn.GILRCell(0, 4), ValueError, f"`input_size` {COUNT}0"),
        (lambda: lrnn.nn.GILRCell(3, 4)(X[0, :, :2]), ValueError, "must be (B, 3) or (3,), got sh"),
        (lambda: memory_bias_(torch.zeros(3), (3, 1)), ValueError, "`memory` must be (shortest, l"),
        (lambda: memory_bias_(torch.zeros(3), 5), ValueError, "0 < shortest <= longest, got 5"),
        (
            lambda: lrnn.use_backend("fast").__enter__(),
            BackendError,
            "no backend 'fast'; known are",
        ),
        (lambda: backends.explain("gpu"), RuntimeError, "gpu"),
        (lambda: lrnn.RecordedStep(None, X), TypeError, "got NoneType and Tensor"),
        (lambda: lrnn.RecordedStep(LAYER, [0.0]), TypeError, "got GILRLSTM and list"),
        (
            lambda: lrnn.RecordedStep(LAYER, X.to("meta")),
            TypeError,
            "`input` is on meta, steps are",
        ),
        (lambda: MODEL(X[0]), ValueError, "`inputs` must be bytes (B, T), integers below 256, got"),
        (lambda: MODEL(BYTES[0]), ValueError, "got torch.int64 of shape (3,)"),
        (lambda: MODEL(BYTES, []), ValueError, "`state` must be a list of 1 states, one for each"),
        (lambda: MODEL(BYTES, 5), ValueError, "one for each layer, got int"),
        (lambda: MODEL.generate(b"", -1), ValueError, "`length` must be an integer of at least 0"),
        (lambda: MODEL.generate(b"", 1.5), ValueError, "`length` must be an integer of at least 0"),
        (lambda: MODEL.generate(b"", 1, -1), ValueError, "`temperature` must be a number of at le"),
        (lambda: MODEL.generate(b"", 1, math.nan), ValueError, "`temperature` must be a number of"),
        (lambda: MODEL.generate("def", 1), TypeError, "`prompt` must be bytes, got 'def': `encod"),
    ],
)
def test_calls(call: Any, error: type[Exception], words: str) -> None:
    refuses(call, error, words)


NUMBER = "must be a number of at least 0, got "


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        *(
            (LanguageModel, {name: value}, f"`{name}` {COUNT}{value!r}")
            for name in ("hidden_size", "num_layers", "total_steps")
            for value in (0, -3, 1.5, "8", True)
        ),
        *(
            (LanguageModel, {name: value}, f"`{name}` {NUMBER}{value!r}")
            for name in ("lr", "weight_decay", "final_lr")
            for value in (-1, math.inf, "1", None)
        ),
        (LanguageModel, {"lr": math.nan}, f"`lr` {NUMBER}nan"),
        (
            LanguageModel,
            {"warmup_steps": -1},
            "`warmup_steps` must be an integer of at least 0, go",
        ),
        (LanguageModel, {"dropout": 2}, "`dropout` must be a number from 0 to 1, got 2"),
        (LanguageModel, {"dropout": "x"}, "`dropout` must be a number from 0 to 1, got 'x'"),
        (LanguageModel, {"tie_weights": "yes"}, f"`tie_weights` {FLAG}'yes'"),
        (LanguageModel, {"carry_state": "no"}, f"`carry_state` {FLAG}'no'"),
        (LanguageModel, {"wrong": 3}, "unexpected keyword argument 'wrong'"),
        (LanguageModel, {"rnn": None}, "`rnn` must be a class of layers, a functools.partial of"),
        (LanguageModel, {"rnn": 5}, "or a name, got 5; names are GILR, "),
        (LanguageModel, {"rnn": "GRU"}, "there is no layer 'GRU'; known are GILR, "),
        (LanguageModel, {"rnn": {}}, "or a name, got {}; names are GILR, "),
        (LanguageModel, {"rnn": LAYER}, "`rnn` must be a class of layers, a functools.partial of"),
        (
            LanguageModel,
            {"rnn": {"class_path": "GILR", "init_arg": {}}},
            "`rnn` has class_path and init_args, but no init_arg",
        ),
        (
            LanguageModel,
            {"rnn": {"class_path": "GILR", "init_args": 5}},
            "`rnn`: init_args must be options by name, got 5",
        ),
        (
            LanguageModel,
            {"rnn": {"class_path": "GILR", "init_args": {"windw": 5}}},
            "lightning_lrnn.nn.GILR does not take the options {'windw': 5}",
        ),
        *(
            (LanguageModel, {"rnn": functools.partial(lrnn.nn.QRNN, **options)}, words)
            for options, words in (
                ({"window": 0}, f"`window` {COUNT}0"),
                ({"num_layers": 0}, f"`num_layers` {COUNT}0"),
                ({"dtype": torch.float64}, "`rnn.dtype` must be None here, got torch.float64"),
                ({"bidirectional": True}, "`rnn.bidirectional` must be False here, got True"),
                ({"proj_size": 4}, "`rnn.proj_size` must be 0 here, got 4"),
                ({"hidden_size": 3}, "does not take the options {'hidden_size': 3}"),
            )
        ),
        *(
            (Forecaster, {"num_features": 2, "horizon": 2} | {name: 0}, f"`{name}` {COUNT}0")
            for name in ("num_features", "horizon", "num_targets")
        ),
        *(
            (
                Forecaster,
                {"num_features": 2, "horizon": 2, "quantiles": levels},
                "must rise, lie bet",
            )
            for levels in (
                *([], [0.1, 0.9], [0.5, 0.1], [0.0, 0.5], [0.5, 1.0], [0.5, 0.5]),
                *(0.5, "0.5", ["a"], [0.5, math.nan], None),
            )
        ),
        (
            Forecaster,
            {"num_features": 2, "horizon": 2, "rnn": functools.partial(nn.GRU, bidirectional=True)},
            "`rnn.bidirectional` must be False here, got True: only the last step is read",
        ),
        (
            SequenceTagger,
            FEATURES | {"rnn": functools.partial(nn.LSTM, proj_size=4)},
            "`rnn.proj_size` must be 0 here, got 4: the output is added",
        ),
        (
            Forecaster,
            {"num_features": 2, "horizon": 2, "head": "cauchy"},
            "`head` must be one of quantiles, normal, laplace, student_t, got 'cauchy'",
        ),
        *(
            (kind, FEATURES | options, words)
            for kind in (SequenceClassifier, SequenceTagger)
            for options, words in (
                ({"num_features": 0}, f"`num_features` {COUNT}0"),
                ({"num_classes": 0}, "`num_classes` must be an integer of at least 2, got 0"),
                ({"num_classes": 1}, "`num_classes` must be an integer of at least 2, got 1"),
                ({"num_classes": None}, "`num_classes` must be an integer of at least 2, got None"),
                ({"class_weights": [1]}, "`class_weights` must be 2 numbers, one for each class"),
                (
                    {"class_weights": [1, -1]},
                    "one for each class and none negative, got [1.0, -1.0]",
                ),
                ({"class_weights": ["a", "b"]}, "and none negative, got ['a', 'b']"),
                ({"class_weights": 5}, "`class_weights` must be 2 numbers, one for each class"),
            )
        ),
        (
            SequenceClassifier,
            FEATURES | {"pooling": "max"},
            "`pooling` must be one of last, mean, got 'max'",
        ),
        (
            SequenceClassifier,
            FEATURES | {"logit_scale": 0},
            "`logit_scale` must be a number above 0",
        ),
        (SequenceClassifier, FEATURES | {"logit_scale": "1"}, f"`logit_scale` {NUMBER}'1'"),
        (
            SequenceClassifier,
            FEATURES | {"checkpoint_time": 0},
            "`checkpoint_time` must be a numbe",
        ),
        (
            SequenceTagger,
            FEATURES | {"metrics_at": "all"},
            "`metrics_at` must be one of steps, end, got 'all'",
        ),
        (SequenceTagger, FEATURES | {"carry_state": 2}, f"`carry_state` {FLAG}2"),
    ],
)
def test_models(kind: Any, options: dict[str, Any], words: str) -> None:
    refuses(lambda: kind(**options), (ValueError, TypeError), words)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        *(
            (kind, {name: value}, f"`{name}` {COUNT}{value!r}")
            for kind, name in (
                (on.StopWhenSolved, "batches"),
                (on.MemoryHorizon, "every_n_steps"),
                (on.RecurrenceMonitor, "every_n_steps"),
                (on.RecurrenceMonitor, "window"),
                (on.Throughput, "window"),
                (SwitchRNN, "carry_steps"),
            )
            for value in (0, 1.5, "3")
        ),
        (on.SwitchBackend, {"backend": "fast"}, "there is no backend 'fast'; known are: auto"),
        (SwitchRNN, {"backend": "fast"}, "there is no backend 'fast'; known are: auto"),
        (SwitchRNN, {"rnn": "GRU"}, "there is no layer 'GRU'; known are GILR, "),
        (SwitchRNN, {"rnn": 5}, "or a name, got 5; names are GILR, "),
        (SwitchRNN, {"rnn": {}}, "`rnn` names no layer; leave it out for `auto`"),
        (SwitchRNN, {"rnn": {"LSTMM": "GILR"}}, "there is no 'LSTMM' among them"),
        (
            SwitchRNN,
            {"options": {"window": 2}},
            "`options` are of a layer that is named, and `rnn`",
        ),
        (SwitchRNN, {"rnn": "QRNN", "options": {"bias": False}}, "`options` may not have bias"),
        (SwitchRNN, {"rnn": "QRNN", "options": [1]}, "`options` must be options by name, got [1]"),
        (SwitchRNN, {"state": "loose"}, "`state` must be one of strict, carried, got 'loose'"),
        (SwitchRNN, {"weights": "old"}, "`weights` must be one of new, carried, got 'old'"),
        (SwitchRNN, {"where": 5}, "`where` must be patterns of paths, got 5"),
        (SwitchRNN, {"where": ["a", 5]}, "`where` must be patterns of paths, got ['a', 5]"),
        (SwitchRNN, {"measure": "yes"}, f"`measure` {FLAG}'yes'"),
        (SwitchRNN, {"measures": True}, "unexpected keyword argument 'measures'"),
    ],
)
def test_callbacks(kind: Any, options: dict[str, Any], words: str) -> None:
    refuses(lambda: kind(**options), (ValueError, TypeError, BackendError), words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: replace_rnn(None), "`module` must be a torch.nn.Module, got NoneType"),
        (lambda: replace_rnn(nn.GRU), "`module` must be a torch.nn.Module, got type"),
        (lambda: replace_rnn(nn.Module(), "QRNN", options=5), "must be options by name, got 5"),
        (lambda: replace_rnn(nn.Module(), where=5), "`where` must be patterns of paths, got 5"),
        (lambda: replace_rnn(nn.Module(), measure="yes"), f"`measure` {FLAG}'yes'"),
        (lambda: fit_surrogate(None, []), "`module` must be a torch.nn.Module, got NoneType"),
        (lambda: fit_surrogate(nn.Module(), [], steps=0), f"`steps` {COUNT}0"),
    ],
)
def test_switching_without_a_trainer(call: Any, words: str) -> None:
    refuses(call, (ValueError, TypeError), words)
