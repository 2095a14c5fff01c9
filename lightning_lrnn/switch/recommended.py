"""The default replacements of PyTorch's layers; `benchmarks/switch.py` measures them."""

from __future__ import annotations

from torch import nn

from lightning_lrnn.nn.cells.gilr import GILR
from lightning_lrnn.nn.cells.surrogate import SurrogateRNN
from lightning_lrnn.nn.layer import Layer

__all__ = ["of_the_same_function", "recommended"]

SMALL = 64
"""Most units of an LSTM with shared columns: better for forecasters of 25 to 40, not for 128."""
PASSES = 3
"""Fixed-point passes that reproduce a trained layer, see `benchmarks/carried.py`."""


def recommended(old: nn.RNNBase) -> Layer:
    """The layer in the place of a `torch.nn.LSTM`, `GRU` or `RNN`.

    A GRU without reset gate whose gates see the states of an LRU. In the place of an LSTM of more
    than `SMALL` units h is the state of the GRU, and c that of the LRU; of several such layers the
    GRU has an input gate, so that they start quieter. Elsewhere GRU and LRU share the columns of
    the state, so that linear states are among the outputs; in the place of an RNN its own function
    has that of the GRU, and all memory is in the LRU. One column cannot be shared: a GILR has it.
    """
    if old.hidden_size == 1:
        return Layer(GILR, {})
    if isinstance(old, nn.LSTM) and old.hidden_size > SMALL:
        cell = "GRU_WITHOUT_RESET" if old.num_layers == 1 else "GRU_WITH_INPUT_GATE"
        return Layer(SurrogateRNN, {"cell": cell, "surrogate": "LRU"})
    cell = old.mode if isinstance(old, nn.RNN) else "GRU_WITHOUT_RESET"
    options = {"cell": cell, "surrogate": "LRU", "surrogate_size": 0.5}
    return Layer(SurrogateRNN, options)


def of_the_same_function(old: nn.RNNBase) -> Layer:
    """The layer that takes over weights: fixed-point passes of the old layer's own function."""
    return Layer(SurrogateRNN, {"cell": old.mode, "surrogate": "LRU", "passes": PASSES})
