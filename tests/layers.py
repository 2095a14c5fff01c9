"""Every layer of the registry with its options, made with random parameters and states."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lrnn.nn import CELLS, scan_context
from lightning_lrnn.recurrence import gated_recurrence

F64 = torch.float64
B, T, M, H = 3, 6, 4, 5

OPTIONS = {
    "GILRGRU": [{"surrogate_size": 2}],
    "GILRLSTM": [
        {"proj_size": 3},
        {"output_activation": "identity"},
        {"surrogate_size": 0.4, "proj_size": 3},
    ],
    "GILRRNN": [{"nonlinearity": "relu", "surrogate_size": 3}],
    "QRNN": [
        {"pooling": "f", "window": 1},
        {"pooling": "f", "window": 3},
        {"pooling": "ifo"},
        {"window": 8},
    ],
    "RGLRU": [{"blocks": 5}],
    "SurrogateRNN": [
        {"cell": "GRU", "surrogate": "TRNN", "surrogate_layers": 2},
        {"cell": "GRU", "surrogate": "MinLSTM", "surrogate_size": 2, "surrogate_layers": 2},
        {"cell": "GRU_WITH_INPUT_GATE", "surrogate": "LRU"},
        {"cell": "GRU_WITHOUT_RESET", "surrogate": "LRU", "surrogate_size": 2},
        {"surrogate": "QRNN", "surrogate_options": {"window": 3, "pooling": "f"}},
        {"passes": 3},
        {"cell": "GRU", "passes": 2, "surrogate": "TRNN", "surrogate_layers": 2},
    ],
}
SINGLE_LAYERS = [(name, o) for name in CELLS for o in [{}, *OPTIONS.get(name, [])]]
"""Every cell with each of its options, in one layer."""

CASES = [
    (name, options)
    for name in CELLS
    for options in [
        {},
        {"bias": False},
        {"num_layers": 2},
        {"num_layers": 2, "bidirectional": True},
    ]
    + [{**o, "num_layers": 2, "bidirectional": True} for o in OPTIONS.get(name, [])]
]
DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dtype": F64}
cases = pytest.mark.parametrize("name, options", CASES, ids=str)
every_cell = pytest.mark.parametrize("name", CELLS)


def make(name, *, size=M, hidden=H, **options):
    """A layer whose parameters are all random, biases included."""
    rnn = CELLS[name](size, hidden, **options)
    with torch.no_grad():
        for p in rnn.parameters():
            p.normal_(0, 0.6)
    return rnn


def random_state(rnn, x, grad=False):
    """A random state of the right form for an input."""
    with torch.no_grad():
        state = rnn(x)[1]
    return tree_map(lambda s: torch.randn_like(s).requires_grad_(grad), state)


def recurrences(name, options, dtype=torch.float32):
    """(gate, readout, pre-activations) of every recurrence that a layer asks for."""
    seen = []

    def asked(gate, *pre, readout=None, **arguments):
        seen.append((gate, readout, pre))
        return gated_recurrence(gate, *pre, readout=readout, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_context, "gated_recurrence", asked)
        make(name, **options, dtype=dtype)(torch.zeros(T, B, M, dtype=dtype))
    return seen


def is_pair(rnn):
    return rnn.cells[0].remembers_output


def flat(results):
    return tree_leaves(results)


def weighted(results):
    """A scalar that depends on every number of the results in its own way."""
    parts = [torch.view_as_real(r) if r.is_complex() else r for r in flat(results)]
    return sum(
        (r.double() * torch.linspace(1, 2, r.numel()).to(r).view_as(r)).sin().sum() for r in parts
    )
