"""The registry: how a recurrence is computed, by name.

A backend is an object as `Backend` describes it, imported when it is first used. A third party adds
one through the entry point group `lightning_lrnn.backends`; what that names is such an object, or a
module as `modules.ModuleBackend` describes it. `T`, `B` and `D` of what a backend is given are at
least 1.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import torch

from lightning_lrnn.backends import recipes
from lightning_lrnn.backends.base import Backend, BackendError, Prepared, Request
from lightning_lrnn.backends.modules import ModuleBackend
from lightning_lrnn.backends.unfused import EMPTY
from lightning_lrnn.core.problem import Gradients, Problem, States
from lightning_lrnn.core.pytorch import constant

__all__ = [
    "Backend",
    "BackendError",
    "Gradients",
    "Prepared",
    "Problem",
    "Request",
    "States",
    "check_name",
    "default",
    "explain",
    "forget",
    "load",
    "loaded",
    "names",
    "prepared",
    "reasons",
    "resolve",
    "use_backend",
    "uses_autograd",
]

BUILT_IN = {
    "scan": "lightning_lrnn.backends.compiled:SCAN",
    "serial": "lightning_lrnn.backends.compiled:SERIAL",
    "cudnn": "lightning_lrnn.backends.cudnn:CUDNN",
}
"""In the order in which "auto" tries them."""

ENTRY_POINT_GROUP = "lightning_lrnn.backends"
ENVIRONMENT_VARIABLE = "LIGHTNING_LRNN_BACKEND"
PROTOCOL = "uses_autograd", "reasons", "prepared"


@cache
def _modules() -> dict[str, str]:
    """Name -> module: ours, then the entry points, which cannot replace one of ours."""
    third_party = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**BUILT_IN, **{n: m for n, m in third_party.items() if n not in BUILT_IN}}


def names() -> tuple[str, ...]:
    """All registered backends, in the order in which "auto" tries them."""
    return tuple(_modules())


loaded: dict[str, Backend] = {}
"""What `load` has loaded: a dict, through which torch.compile can look."""


@cache
def load(name: str) -> Backend:
    """A backend, imported at the first call.

    Raises:
        BackendError: if no backend has this name, or what has it is none; the message lists those
            that exist, or what a backend must have.
    """
    check_name(name)
    module, _, attribute = _modules()[name].partition(":")
    backend: Any = import_module(module)
    if attribute:
        backend = getattr(backend, attribute)
    if isinstance(backend, ModuleType):
        backend = ModuleBackend(backend)
    if lacks := [wanted for wanted in PROTOCOL if not hasattr(backend, wanted)]:
        raise BackendError(
            f"backend {name!r} ({_modules()[name]}) has no {', '.join(lacks)}: see "
            "`lightning_lrnn.backends.Backend`, or hand out a module with `unsupported_reasons` "
            "and `run`"
        )
    loaded[name] = backend
    return loaded[name]


def check_name(name: str) -> None:
    """Raises `BackendError` unless `name` is "auto" or a registered backend."""
    if name != "auto" and (not isinstance(name, str) or name not in _modules()):
        raise BackendError(
            f"there is no backend {name!r}; known are: auto, {', '.join(_modules())}"
        )


def reasons(name: str, request: Request) -> list[str]:
    """Why a backend cannot do what it is asked for; [] = it can."""
    return load(name).reasons(request)


def explain(device: str | torch.device, dtype: torch.dtype = torch.float32) -> dict[str, list[str]]:
    """For every backend the reasons why it cannot run for this device and dtype; [] = it runs."""
    request = Request(torch.device(device), dtype)
    return {name: reasons(name, request) for name in names()}


@constant
def uses_autograd(name: str) -> bool:
    """Whether a backend is made of operations that PyTorch differentiates."""
    return load(name).uses_autograd


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
    # `default()` is read out here, where torch.compile guards it.
    return _resolve(name, str(request.device), *request[1:])


@constant
def _resolve(name: str, device: str, dtype: torch.dtype, gate: str, readout: str) -> str:
    return _resolved(name, device, dtype, gate, readout)


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


_prepared: dict[tuple[object, ...], Prepared] = {}
"""What `prepared` returned, by name of the backend and form of the problem."""


def prepared(name: str, problem: Problem) -> Prepared:
    """What computes problems of the form of this one, made at the first of them."""
    key = name, problem.form()
    backend = _prepared.get(key)
    if backend is None:
        backend = EMPTY if problem.x.numel() == 0 else load(name).prepared(problem)
        recipes.remember(_prepared, key, backend)
    return backend


def forget() -> None:
    """Forgets what was loaded, resolved and prepared: what was registered may be another now."""
    for cached in (_modules, load, _resolved):
        if hasattr(cached, "cache_clear"):  # a test may have put something in its place
            cached.cache_clear()
    _prepared.clear()
    recipes.clear()
