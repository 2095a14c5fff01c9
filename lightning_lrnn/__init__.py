"""Linear recurrences for PyTorch Lightning: h_t = a_t * h_{t-1} + b_t, parallel over time."""

from lightning_lrnn import _flops as _flops  # registers
from lightning_lrnn import nn
from lightning_lrnn.backends import BackendError, use_backend
from lightning_lrnn.backends._cuda import warmup
from lightning_lrnn.gates import GateError, gate
from lightning_lrnn.recurrence import gated_recurrence, last_backend, linear_recurrence

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "GateError",
    "gate",
    "gated_recurrence",
    "last_backend",
    "linear_recurrence",
    "nn",
    "use_backend",
    "warmup",
]
