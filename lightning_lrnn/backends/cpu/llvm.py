"""LLVM IR into machine code for this processor, kept on disk: what needs no compiler but llvmlite.

The IR is written as it shall run: no pass optimises it, only instructions are selected and
registers allotted, which takes tens of milliseconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from lightning_lrnn.backends import kernel_cache

__all__ = ["lacks", "load", "missing", "vector_bytes"]

SUFFIX = "o"
SCHEME = b"1"
"""Of this file: changes when the same IR shall become other code."""

_lock = threading.RLock()
"""Reentrant: a signal handler may need code, or fork, while its own thread compiles."""
if hasattr(os, "register_at_fork"):
    # A child that is forked while a thread compiles would wait for that thread forever.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_engines: list[Any] = []
"""Own the code in memory, which is never given back."""


@cache
def _host() -> tuple[str, str]:
    """Name and features of the processor."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@cache
def _machine() -> Any:
    if hasattr(llvm, "initialize") and tuple(llvm.llvm_version_info) < (20,):
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = _host()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=2, codemodel="jitdefault", jit=True
    )


@cache
def vector_bytes() -> int:
    """Of the widest registers; of two registers where those are of 16 bytes."""
    return 64 if "+avx512f" in _host()[1].split(",") else 32


def lacks(feature: str) -> bool:
    """Whether the processor is known not to have a feature."""
    return f"-{feature}" in _host()[1].split(",")


@cache
def missing(symbol: str) -> bool:
    """Whether code cannot call a function of the C library."""
    _machine()
    return not llvm.address_of_symbol(symbol)


def load(name: str, parts: Iterable[bytes], write: Callable[[], str]) -> int:
    """The address of a function, for as long as the process lives.

    Args:
        name: of the function.
        parts: everything that the IR depends on.
        write: the IR of a module with that function, called if no compiled one is found.
    """
    with _lock:
        machine = _machine()
        host = "\n".join((*_host(), llvm.get_default_triple(), llvmlite.__version__))
        key = kernel_cache.key(
            [SCHEME, host.encode(), repr(llvm.llvm_version_info).encode(), *parts]
        )
        code = kernel_cache.read(key, SUFFIX)
        if code is None:
            module = llvm.parse_assembly(write())
            module.verify()
            code = machine.emit_object(module)
            kernel_cache.write(key, code, SUFFIX)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        return int(engine.get_function_address(name))
