"""The registry: how a recurrence is computed, by name.

A backend is a module with two functions, imported when it is first used:

    unsupported_reasons(request: Request) -> list[str]      # [] = it runs
    run(a, b, h0, lengths, reset, *, reverse, exclusive) -> (y, h_final)

and, if it has a faster adjoint than the one made of `run`,

    run_backward(a, y, h0, dy, dh_final, lengths, reset, *, reverse, exclusive) -> (da, db, dh0)

or, made of operations that PyTorch itself differentiates, for all gates that it takes,

    run_differentiable(gate, readout, pre, h0, lengths, reset, *, reverse, exclusive)
        -> (y, h_final)

and, if it can compile gates and readouts into its loop,

    fuses(request: Request) -> bool
    run_gated(gate, readout, pre, h0, lengths, reset, *, reverse, exclusive)
        -> (y, h, h_final)                                  # h: the states that were emitted
    run_gated_backward(gate, readout, pre, h, h0, dy, dh_final, lengths, reset, *, reverse,
                       exclusive, into=None) -> ([dpre, ...], dh0)

where `gate` and `readout` are programs (`lightning_lrnn.gates`), `readout` "" for none, and `pre`
are sequences (B, T, D) and parameters (D,) or (B, D). Backward, those that
`lightning_lrnn.gates.derivative.needed` leaves out have a shape and a dtype, but no values.
`into`: where the gradients of sequences go if not into new tensors, (B, T, D) of equal strides,
that of D 1; None in the places of parameters.

Shapes and meanings are those of `lightning_lrnn.linear_recurrence`; `T`, `B`, `D` are at least 1.
A third party adds one through the entry point group `lightning_lrnn.backends`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import NamedTuple

import torch

__all__ = [
    "BackendError",
    "Request",
    "default",
    "differentiable",
    "explain",
    "fuses",
    "load",
    "loaded",
    "names",
    "reasons",
    "resolve",
    "use_backend",
]

BUILT_IN = {
    "scan": "lightning_lrnn.backends.scan",
    "serial": "lightning_lrnn.backends.serial",
    "cudnn": "lightning_lrnn.backends.cudnn",
}
"""In the order in which "auto" tries them."""

ENTRY_POINT_GROUP = "lightning_lrnn.backends"
ENVIRONMENT_VARIABLE = "LIGHTNING_LRNN_BACKEND"


class BackendError(RuntimeError):
    """The backend that was asked for cannot run, or does not exist."""


class Request(NamedTuple):
    """What a backend is asked for, as far as it decides whether it can run.

    Attributes:
        device: of all tensors.
        dtype: of the sequences.
        gate: program of the gate; "" where only the machine is asked about.
        readout: program of the readout, or "".
    """

    device: torch.device
    dtype: torch.dtype
    gate: str = ""
    readout: str = ""


@cache
def _modules() -> dict[str, str]:
    """Name -> module: ours, then the entry points, which cannot replace one of ours."""
    third_party = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**BUILT_IN, **{n: m for n, m in third_party.items() if n not in BUILT_IN}}


def names() -> tuple[str, ...]:
    """All registered backends, in the order in which "auto" tries them."""
    return tuple(_modules())


loaded: dict[str, ModuleType] = {}
"""What `load` has loaded: a dict, through which torch.compile can look."""


@cache
def load(name: str) -> ModuleType:
    """The module of a backend, imported at the first call.

    Raises:
        BackendError: if no backend has this name; the message lists those that exist.
    """
    check_name(name)
    loaded[name] = importlib.import_module(_modules()[name])
    return loaded[name]


def check_name(name: str) -> None:
    """Raises `BackendError` unless `name` is "auto" or a registered backend."""
    if name != "auto" and (not isinstance(name, str) or name not in _modules()):
        raise BackendError(
            f"there is no backend {name!r}; known are: auto, {', '.join(_modules())}"
        )


def reasons(name: str, request: Request) -> list[str]:
    """Why a backend cannot do what it is asked for; [] = it can."""
    found: list[str] = load(name).unsupported_reasons(request)
    return found


def explain(device: str | torch.device, dtype: torch.dtype = torch.float32) -> dict[str, list[str]]:
    """For every backend the reasons why it cannot run for this device and dtype; [] = it runs."""
    request = Request(torch.device(device), dtype)
    return {name: reasons(name, request) for name in names()}


def fuses(name: str, request: Request) -> bool:
    """Whether a backend compiles gates into its loop for this device and dtype."""
    return _fuses(name, str(request.device), request.dtype)


def _fuses(name: str, device: str, dtype: torch.dtype) -> bool:
    return _fuses_here(name, device, dtype)


@cache
def _fuses_here(name: str, device: str, dtype: torch.dtype) -> bool:
    asked = getattr(load(name), "fuses", None)
    return asked is not None and bool(asked(Request(torch.device(device), dtype)))


def differentiable(name: str) -> bool:
    """Whether a backend is made of operations that PyTorch differentiates."""
    return hasattr(load(name), "run_differentiable")


# A plain global, not a context variable: torch.compile traces and guards it, so that a compiled
# model is compiled anew when the choice changes.
_chosen: str | None = None


def default() -> str:
    """What "auto" stands for now: `use_backend`, else the environment variable, else "auto"."""
    return _chosen or os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Decides what "auto" means inside the `with` block, in the whole process.

    A backend named by an argument or by a layer's `backend` is not overridden. The backward pass
    uses the backend of its forward pass, also outside the block.

    Args:
        name: a registered backend, or "auto".

    Raises:
        BackendError: if no backend has this name.
    """
    check_name(name)
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def resolve(backend: str, request: Request) -> str:
    """The name of the backend that will run.

    Precedence: a named backend > `use_backend` > the environment variable > the first backend
    without reasons. A named one is never replaced.

    Raises:
        BackendError: with the reasons, if it cannot run here.
    """
    name = default() if backend == "auto" else backend
    if not isinstance(name, str):
        check_name(name)
    return _resolve(name, str(request.device), *request[1:])


def _resolve(name: str, device: str, dtype: torch.dtype, gate: str, readout: str) -> str:
    return _resolved(name, device, dtype, gate, readout)


# A constant for torch.compile: it depends on nothing that changes while a process runs except its
# arguments, and `default()` is read outside, where Dynamo guards it. This is the mark that
# torch.compiler.assume_constant_result sets; calling that would import Dynamo, 2 s, at import.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]
_fuses._dynamo_marked_constant = True  # type: ignore[attr-defined]
differentiable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _resolved(name: str, device: str, dtype: torch.dtype, gate: str, readout: str) -> str:
    check_name(name)
    request = Request(torch.device(device), dtype, gate, readout)
    if name != "auto":
        if why := reasons(name, request):
            raise BackendError(
                f"backend {name!r} cannot run on {device} with {dtype}: {'; '.join(why)}"
            )
        return name
    skipped: list[str] = []
    for candidate in names():
        why = reasons(candidate, request)
        if not why:
            if skipped and request.device.type != "meta":
                # Everything before the last resort is compiled; the user should know and can act.
                warnings.warn(
                    f"backend 'auto' uses {candidate!r} on {device}: {'; '.join(skipped)}. "
                    f"Name a backend, or set {ENVIRONMENT_VARIABLE}, to choose it silently",
                    stacklevel=2,
                )
            return candidate
        skipped.append(f"{candidate!r} cannot run ({'; '.join(why)})")
    raise BackendError(f"no backend can run on {device} with {dtype}: {'; '.join(skipped)}")
