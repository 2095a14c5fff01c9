"""CUDA kernels at run time: compile (NVRTC), cache, load and launch (cuda-python).

The only file that imports `cuda.*`, and only inside its functions: importing it needs neither
the packages nor a driver, and PyTorch only where a device is involved. A kernel is compiled for
exactly one variant (macros) and one architecture. The sources include nothing but each other, so
no CUDA headers, no compiler of the host and no toolkit are needed.

    device, macros -> kernel(...)    memory -> disk (`kernel_cache`) -> compile_program(...)
                   -> launch(...)    on PyTorch's current stream of the device, read at each launch

What is loaded does not belong to a context: one object serves all devices of one compute
capability.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading
from array import array
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lrnn.backends import kernel_cache

if TYPE_CHECKING:
    import torch

__all__ = [
    "CompileError",
    "Macros",
    "architecture",
    "compile_program",
    "kernel",
    "launch",
    "load",
    "missing",
    "missing_for",
    "version",
]

Macros = tuple[tuple[str, str], ...]
"""(name, value) of every macro: with the source, what makes a variant."""

SOURCES = "lightning_lrnn.cuda_src"
STANDARD = "c++17"

_lock = threading.RLock()
"""Reentrant: a signal handler may need a kernel while its own thread compiles one."""
_kernels: dict[tuple[str, Macros, tuple[int, int]], Any] = {}
_POINTER = array("q", [0])
_alive: list[Any] = []
"""What owns the loaded code, of which others have the driver's handles."""


class CompileError(RuntimeError):
    """NVRTC refused a program; the message holds the options and NVRTC's log."""


def source_folder() -> Path:
    """The folder of the CUDA sources, in a checkout and in an installed package alike."""
    return Path(str(files(SOURCES)))


@cache
def version() -> tuple[int, int]:
    """NVRTC's version, (major, minor).

    Raises:
        RuntimeError: if its library is not found.
    """
    from cuda.bindings import nvrtc

    status, major, minor = nvrtc.nvrtcVersion()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"nvrtcVersion: {status}")
    return int(major), int(minor)


@cache
def _architectures() -> tuple[int, ...]:
    from cuda.bindings import nvrtc

    status, architectures = nvrtc.nvrtcGetSupportedArchs()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"nvrtcGetSupportedArchs: {status}")
    return tuple(int(number) for number in architectures)


@cache
def architecture(capability: tuple[int, int]) -> str:
    """What to compile for, such as "sm_90", to run on a device of a compute capability.

    Machine code runs on devices of its own major number and an equal or higher minor one.

    Raises:
        CompileError: if this NVRTC knows no architecture for the device.
    """
    major, minor = capability
    fitting = [n for n in _architectures() if n // 10 == major and n % 10 <= minor]
    if fitting:
        return f"sm_{max(fitting)}"
    own = ".".join(map(str, version()))
    oldest, newest = min(_architectures()), max(_architectures())
    remedy = (
        'pip install "lightning-lrnn[cuda12]" brings one that knows devices back to sm_50'
        if 10 * major + minor < oldest
        else "pip install --upgrade nvidia-cuda-nvrtc may bring one that does"
    )
    raise CompileError(
        f"NVRTC {own} compiles for sm_{oldest} to sm_{newest}, the device is sm_{major}{minor}: "
        f"{remedy}"
    )


def compile_program(
    source: str,
    macros: Macros,
    arch: str,
    *,
    ptxas_options: Sequence[str] = (),
    log: io.StringIO | None = None,
) -> bytes:
    """Compiles a source to machine code. Needs no device and no driver, and uses no cache.

    Args:
        source: file name in `cuda_src`, such as "recurrence.cu".
        macros: the variant.
        arch: such as "sm_90".
        ptxas_options: options for the assembler; `["-v"]` reports registers and spills.
        log: receives what NVRTC and the assembler say.

    Returns:
        A cubin.

    Raises:
        CompileError: with the options and NVRTC's log.
    """
    from cuda.core import Program, ProgramOptions

    # Named by its path, so that messages point into the file.
    path = source_folder() / source
    options = ProgramOptions(
        name=str(path),
        arch=arch,
        std=STANDARD,
        define_macro=list(macros),
        include_path=str(path.parent),
        ptxas_options=list(ptxas_options) or None,
    )
    try:
        program = Program(path.read_text(encoding="utf-8"), "c++", options)
        try:
            return bytes(program.compile("cubin", logs=log).code)
        finally:
            program.close()
    # cuda.core has no public name for NVRTC's error; nothing is swallowed here.
    except Exception as error:
        flags = " ".join(flag.decode() for flag in options.as_bytes("nvrtc"))
        raise CompileError(f"NVRTC could not compile {path}\noptions: {flags}\n{error}") from error


def cubin(source: str, macros: Macros, arch: str) -> bytes:
    """Machine code of a variant, from the disk or compiled and kept there."""
    name = kernel_cache.key(_ingredients(source, macros, arch))
    code = kernel_cache.read(name)
    if code is None:
        code = compile_program(source, macros, arch)
        kernel_cache.write(name, code)
    return code


def _ingredients(source: str, macros: Macros, arch: str) -> list[bytes]:
    """Everything that the machine code depends on, except where the sources lie."""
    sources = sorted(p for p in source_folder().iterdir() if p.suffix in (".cu", ".cuh"))
    words = [source, arch, STANDARD, *map(str, version()), *(f"{n}={v}" for n, v in macros)]
    return [word.encode() for word in words] + [
        part for path in sources for part in (path.name.encode(), path.read_bytes())
    ]


def kernel(source: str, macros: Macros, capability: tuple[int, int]) -> Any:
    """The kernel `recurrence` of a variant, loaded; made at the first call, in any thread.

    Args:
        source: file name in `cuda_src`.
        macros: the variant.
        capability: compute capability of the device that will run it.

    Raises:
        CompileError: if it cannot be compiled for the device.
    """
    variant = (source, macros, capability)
    kernel = _kernels.get(variant)
    if kernel is None:
        with _lock:
            kernel = _kernels.get(variant)
            if kernel is None:
                code = cubin(source, macros, architecture(capability))
                kernel = _kernels[variant] = load(code, Path(source).stem)
    return kernel


def loaded(source: str, macros: Macros, capability: tuple[int, int]) -> Any | None:
    """What `kernel` would answer from memory, or None."""
    return _kernels.get((source, macros, capability))


def load(code: bytes, name: str) -> Any:
    """The driver's handle of a kernel in machine code, for `launch`; loaded as long as we live."""
    from cuda.core import ObjectCode

    function = ObjectCode.from_cubin(code, name=name).get_kernel(name)
    _alive.append(function)
    return _driver().CUfunction(int(function.handle))


def launch(
    function: Any, grid: int, block: int, parameter: array[int], device: torch.device
) -> None:
    """Launches a kernel on PyTorch's current stream of a device; does not wait for it.

    Args:
        function: from `kernel` or `load`. It takes one parameter, a struct of 64-bit fields.
        grid: number of blocks.
        block: number of threads in a block.
        parameter: the fields, pointers among them (0 for none). Neither their number nor their
            meaning is checked against the kernel's.
        device: PyTorch's current CUDA device, with its index.

    Raises:
        RuntimeError: if the driver refuses the launch; with its reason.
    """
    driver, index = _driver(), device.index
    pointer = _POINTER[:]  # copied in less time than made
    pointer[0] = parameter.buffer_info()[0]
    stream = driver.CUstream(_pytorch().current_stream(index))
    # The driver copies what the pointer points to before it returns.
    arguments = function, grid, 1, 1, block, 1, 1, 0, stream, pointer.buffer_info()[0], 0
    success = driver.CUresult.CUDA_SUCCESS
    (status,) = driver.cuLaunchKernel(*arguments)
    if status != success and _without_context(index):
        (status,) = driver.cuLaunchKernel(*arguments)
    if status != success:
        raise RuntimeError(f"cuLaunchKernel({grid} blocks of {block} threads): {status.name}")


def _without_context(index: int) -> bool:
    """Whether the calling thread had no context; it has the device's then.

    A thread whose tensors all came from PyTorch's cache has made no CUDA call before the launch. A
    context that is current, PyTorch's or another library's choice, is left as it is.
    """
    _, context = _driver().cuCtxGetCurrent()
    if int(context):
        return False
    from cuda.core import Device

    Device(index).set_current()
    return True


@cache
def _driver() -> Any:
    return importlib.import_module("cuda.bindings.driver")


@cache
def _pytorch() -> Any:
    return importlib.import_module("lightning_lrnn.core.pytorch")


@cache
def _missing() -> tuple[str, ...]:
    if sys.platform == "darwin":
        return ("there is no CUDA on macOS",)
    absent = [name for name in ("cuda.bindings", "cuda.core") if not _importable(name)]
    if absent:
        names = " and ".join(name.replace(".", "-") for name in absent)
        verb = "is" if len(absent) == 1 else "are"
        return (f"{names} {verb} not installed: {_remedy(None)}",)
    reasons = []
    if not _importable(SOURCES):
        reasons.append(f"the CUDA sources ({SOURCES}) are not installed: pip install -e . does it")
    try:
        importlib.import_module("cuda.core")
    except ImportError as error:
        return (*reasons, f"cuda-core cannot be imported ({error}): {_remedy(None)}")
    try:
        nvrtc: tuple[int, int] | None = version()
    # The loaders of all supported cuda-bindings raise a RuntimeError for a library not found.
    except RuntimeError:
        nvrtc = None
        reasons.append(f"NVRTC (libnvrtc) was not found: {_remedy(_bindings_major())}")
    try:
        supported = _driver_version()
    except RuntimeError:
        reasons.append("no NVIDIA driver (libcuda) was found: install the driver of the GPU")
    else:
        if nvrtc is not None and supported[0] < nvrtc[0]:
            reasons.append(
                f"the NVIDIA driver is for CUDA {supported[0]}.{supported[1]}, NVRTC is "
                f"{nvrtc[0]}.{nvrtc[1]}: update the driver, or {_remedy(supported[0])}"
            )
    return tuple(reasons)


def missing() -> list[str]:
    """What is missing here to compile and run kernels, with the remedies; [] = nothing.

    Initialises no device, so that the process can still be forked. The answer is kept.
    """
    return list(_missing())


def missing_for(capability: tuple[int, int]) -> list[str]:
    """Like `missing`, and whether this NVRTC knows devices of a compute capability."""
    if reasons := missing():
        return reasons
    try:
        architecture(capability)
    except CompileError as error:
        return [str(error)]
    return []


def _remedy(major: int | None) -> str:
    twelve = 'pip install "lightning-lrnn[cuda12]"'
    if major == 12:
        return twelve
    thirteen = 'pip install "lightning-lrnn[cuda]"'
    return thirteen if major else f"{thirteen} (for drivers of the CUDA 12 era, {twelve})"


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package
        return False


def _bindings_major() -> int:
    from cuda.bindings import __version__

    return int(__version__.split(".")[0])


def _driver_version() -> tuple[int, int]:
    from cuda.bindings import driver

    status, number = driver.cuDriverGetVersion()
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuDriverGetVersion: {status}")
    return number // 1000, number % 1000 // 10
