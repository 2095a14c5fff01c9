"""Compiles the CUDA kernel's own source for the host and launches it (host/emulator.h)."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from paths import ROOT, TESTS

from lightning_lrnn import gates
from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.backends.cuda.codegen import Fused, fused
from lightning_lrnn.backends.operands import STORAGE, Operand
from lightning_lrnn.core import pytorch

HOST = TESTS / "host"
SOURCES = ROOT / "cuda_src"
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++") or ""
LINKER = ["-fuse-ld=gold"] * bool(shutil.which("ld.gold"))
"""The faster one."""

CACHE = ROOT / "build" / "host_kernels"

needs_compiler = pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler on this machine")


def mutated(mutant: tuple[str, str, str] | None, folder: Path) -> Path:
    """The kernel's sources in a folder, with other words in a file; as they are for None."""
    sources = folder / "cuda_src"
    shutil.copytree(SOURCES, sources)
    if mutant is not None:
        file, old, new = mutant
        text = (sources / file).read_text()
        assert old in text, "the mutant no longer applies"
        (sources / file).write_text(text.replace(old, new))
    return sources


def named(mutants: dict[str, tuple[str, str, str]]) -> list:
    """None and the mutants' names, to parametrize a test that shows what it would notice.

    In `make test` the first mutant of every file and each fourth: what they test is the test.
    """
    files: set[str] = set()
    names: list = [None]
    for i, (name, (file, *_)) in enumerate(mutants.items()):
        nightly = i % 4 > 0 and file in files
        names.append(pytest.param(name, marks=[pytest.mark.nightly] * nightly))
        files.add(file)
    return names


def all_apply(mutants: dict[str, tuple[str, str, str]]) -> bool:
    return all(old in (SOURCES / file).read_text() for file, old, _ in mutants.values())


@cache
def version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout


class Launch(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint) for n in ("grid", "threads", "resident", "seed")]


class Traffic(ctypes.Structure):
    _fields_ = [(n, ctypes.c_longlong) for n in ("loaded", "stored", "words")]


class Compiler:
    """Compiles each variant once, and keeps it in build/ under all that it depends on."""

    def __init__(self) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self.emulator = self._compiled([HOST], ".o", "-O1", "-c", HOST / "emulator.cpp")
        # Read once, with the library's headers: a third of what a small kernel takes.
        self.header: list[object] = []
        if COMPILER.endswith("g++"):
            header = self._compiled([HOST], ".h.gch", "-x", "c++-header", HOST / "emulator.h")
            self.header = ["-include", header.with_suffix("")]
        self._loaded: dict[tuple, ctypes.CDLL] = {}

    def _compiled(self, folders: list[Path], suffix: str, *arguments: object) -> Path:
        strict = ["-Wall", "-Wextra", "-Werror"] if COMPILER.endswith("g++") else ["-w"]
        # Not optimised: most kernels run for less time than it would take.
        command = [COMPILER, "-std=c++17", "-O0", "-fPIC", *strict, *map(str, arguments)]
        key = hashlib.sha256(repr((version(), command)).encode())
        command += [f"-I{folder}" for folder in folders]
        for file in sorted(file for folder in folders for file in folder.glob("*.*")):
            key.update(file.name.encode() + file.read_bytes())
        path = CACHE / f"{key.hexdigest()[:32]}{suffix}"
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=CACHE, suffix=suffix, delete=False) as file:
                done = subprocess.run([*command, "-o", file.name], capture_output=True, text=True)
            if done.returncode:
                Path(file.name).unlink()
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            os.replace(file.name, path)  # others may compile the same
        return path

    def kernel(self, macros: nvrtc.Macros, sources: Path = SOURCES) -> ctypes.CDLL:
        key = macros, sources
        if key not in self._loaded:
            defines = [f"-D{n}={v}" for n, v in macros]
            files = [HOST / "recurrence.cpp", self.emulator]
            # The kernel's "#pragma unroll" is the one thing that this compiler does not know.
            options = ["-Wno-unknown-pragmas", "-shared", *LINKER, *defines]
            options += [*self.header, *files]
            library = ctypes.CDLL(str(self._compiled([HOST, sources], ".so", *options)))
            library.launch.restype = ctypes.c_char_p
            self._loaded[key] = library
        return self._loaded[key]


def launch(
    kernel: ctypes.CDLL, grid: int, threads: int, problem: list[int], *, seed: int = 0
) -> Traffic:
    """Runs a kernel; `problem` are the 64-bit fields of its parameter."""
    struct = (ctypes.c_int64 * len(problem))(*problem)
    how, traffic = Launch(grid, threads, 3, seed), Traffic()
    error = kernel.launch(
        ctypes.byref(how), ctypes.byref(struct), ctypes.sizeof(struct), ctypes.byref(traffic)
    )
    assert error is None, error.decode()
    return traffic


@contextlib.contextmanager
def as_cuda(compiler: Compiler):
    """CPU tensors can be given to `cuda/launch.py`; yields the launches, as (variant, traffic).

    Everything that touches a device is replaced; what is left is the whole path from the tensors
    to the kernel: programs, generated code, plan, workspace, pointers, strides.
    """
    seen: list[tuple[dict[str, str], Traffic]] = []

    def on_host(macros, grid, block, problem, device):
        seen.append((dict(macros), launch(compiler.kernel(macros), grid, block, problem)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(pytorch, "current_device", lambda: None)
        patch.setattr(pytorch, "current_stream", lambda _: 0)
        patch.setattr(nvrtc, "kernel", lambda source, macros, capability: macros)
        patch.setattr(nvrtc, "launch", on_host)
        yield seen


def plain(dtype: torch.dtype, step: str) -> tuple[Fused, tuple[Operand, ...]]:
    """The gate of the plain recurrence as CUDA compiles it, and its operands."""
    operands = (Operand(STORAGE[dtype], True),) * 2
    return fused(gates.IDENTITY, "", operands, step), operands
