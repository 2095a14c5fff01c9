"""Linear recurrences for PyTorch Lightning: h_t = a_t * h_{t-1} + b_t, parallel over time."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_lrnn import nn
from lightning_lrnn.backends import BackendError, use_backend
from lightning_lrnn.backends.cuda.warmup import warmup
from lightning_lrnn.gates import GateError, gate
from lightning_lrnn.recurrence import gated_recurrence, last_backend, linear_recurrence
from lightning_lrnn.serving import RecordedStep, decompositions
from lightning_lrnn.switch import loading as loading  # hooks into loading
from lightning_lrnn.switch.distil import fit_surrogate
from lightning_lrnn.switch.replace import SwitchError, replace_rnn

if TYPE_CHECKING:
    from lightning_lrnn import L as L
    from lightning_lrnn import pl as pl
    from lightning_lrnn.callbacks import SwitchBackend, SwitchRNN, load_switched

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "GateError",
    "RecordedStep",
    "SwitchBackend",
    "SwitchError",
    "SwitchRNN",
    "decompositions",
    "fit_surrogate",
    "gate",
    "gated_recurrence",
    "last_backend",
    "linear_recurrence",
    "load_switched",
    "nn",
    "replace_rnn",
    "use_backend",
    "warmup",
]

_PUBLIC_MODULES = ("backends", "callbacks", "data", "modules", "strategies")
_OF_LIGHTNING = ("SwitchBackend", "SwitchRNN", "load_switched")


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and the layers do not need it.
    if name in _OF_LIGHTNING:
        from lightning_lrnn import callbacks

        return getattr(callbacks, name)
    if name in ("L", "pl"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # Of the modules only those that are public, and of those only what is imported already.
    own = [name for name in globals() if name.startswith("__") or name in _PUBLIC_MODULES]
    of_packages = ["pl"] if find_spec("lightning") is None else ["pl", "L"]
    return sorted({*__all__, *own, *of_packages})
