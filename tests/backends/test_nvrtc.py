"""Compile, cache, load and launch: everything but the driver, which is faked where it is needed.

Seen to fail: macros not handed to NVRTC; a program without a name; the key
without the headers, the macros, the architecture or NVRTC's version; no lock around loading; a
higher minor architecture taken; the stream not read at each launch; the
context replaced although one is current; each reason of `missing` left out.
"""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
import threading
import time
import types
from array import array

import pytest
import torch
from other_python import other_python, run_elsewhere

from lightning_lrnn.backends import kernel_cache
from lightning_lrnn.backends.cuda import nvrtc
from lightning_lrnn.core import pytorch

pytest.importorskip("cuda.core")
pytest.importorskip("cuda.bindings.nvrtc")

TINY = """
#include "tiny.cuh"
extern "C" __global__ void tiny(FLOAT* x, long long n, int k) {
    if (threadIdx.x < n) x[threadIdx.x] = scaled(x[threadIdx.x]) + k;
}
"""
HEADER = "__device__ FLOAT scaled(FLOAT x) { return 3 * x; }\n"
MACROS = (("FLOAT", "float"),)


@pytest.fixture(scope="module", autouse=True)
def needs_nvrtc():
    try:
        return nvrtc.version()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error}")


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """A folder of sources of our own, an empty disk cache and nothing in memory."""
    (tmp_path / "tiny.cu").write_text(TINY)
    (tmp_path / "tiny.cuh").write_text(HEADER)
    monkeypatch.setattr(nvrtc, "source_folder", lambda: tmp_path)
    monkeypatch.setenv(kernel_cache.ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "_warned", False)
    monkeypatch.setattr(nvrtc, "_kernels", {})
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """The variants that were really compiled, in order."""
    seen = []
    compile_program = nvrtc.compile_program

    def counting(source, macros, arch):
        seen.append((macros, arch))
        return compile_program(source, macros, arch)

    monkeypatch.setattr(nvrtc, "compile_program", counting)
    return seen


def test_compiles_a_variant():
    log = io.StringIO()
    code = nvrtc.compile_program("tiny.cu", MACROS, "sm_80", ptxas_options=["-v"], log=log)
    assert code.startswith(b"\x7fELF")
    assert "Compiling entry function 'tiny' for 'sm_80'" in log.getvalue()
    assert code != nvrtc.compile_program("tiny.cu", (("FLOAT", "double"),), "sm_80")


def test_failed_compile_points_at_the_line(sources):
    (sources / "tiny.cu").write_text(TINY.replace("long long n", "long long m"))
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.compile_program("tiny.cu", MACROS, "sm_80")
    message = str(caught.value)
    assert f'{sources / "tiny.cu"}(4): error: identifier "n" is undefined' in message
    assert "-arch=sm_80" in message and "FLOAT=float" in message


def test_second_process_finds_it_on_disk(compiled):
    first = nvrtc.cubin("tiny.cu", MACROS, "sm_80")
    assert nvrtc.cubin("tiny.cu", MACROS, "sm_80") == first
    assert compiled == [(MACROS, "sm_80")]


@pytest.mark.parametrize("change", ["source", "header", "macros", "architecture", "version"])
def test_any_change_compiles_anew(change, sources, compiled, monkeypatch):
    macros, arch = MACROS, "sm_80"
    nvrtc.cubin("tiny.cu", macros, arch)
    if change == "source":
        (sources / "tiny.cu").write_text(TINY + "\n")
    elif change == "header":
        (sources / "tiny.cuh").write_text(HEADER.replace("3", "4"))
    elif change == "macros":
        macros = (("FLOAT", "double"),)
    elif change == "architecture":
        arch = "sm_86"
    else:
        monkeypatch.setattr(nvrtc, "version", lambda: (13, 99))
    nvrtc.cubin("tiny.cu", macros, arch)
    assert compiled == [(MACROS, "sm_80"), (macros, arch)]
    assert kernel_cache.clear_cache()[0] == 2


def test_sources_may_move(sources, compiled, tmp_path_factory, monkeypatch):
    """An upgrade in place or another environment with the same sources finds the same entries."""
    nvrtc.cubin("tiny.cu", MACROS, "sm_80")
    moved = tmp_path_factory.mktemp("moved")
    for name in ("tiny.cu", "tiny.cuh"):
        (moved / name).write_text((sources / name).read_text())
    monkeypatch.setattr(nvrtc, "source_folder", lambda: moved)
    nvrtc.cubin("tiny.cu", MACROS, "sm_80")
    assert len(compiled) == 1


def test_corrupt_entry_is_compiled_anew(compiled):
    code = nvrtc.cubin("tiny.cu", MACROS, "sm_80")
    (path,) = kernel_cache.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="corrupt"):
        assert nvrtc.cubin("tiny.cu", MACROS, "sm_80") == code
    assert nvrtc.cubin("tiny.cu", MACROS, "sm_80") == code
    assert len(compiled) == 2


def test_threads_share_one_load(compiled, monkeypatch):
    loads = []

    def load(code, name):
        loads.append(name)
        time.sleep(0.02)
        return object()

    monkeypatch.setattr(nvrtc, "load", load)
    barrier, got = threading.Barrier(8), []

    def ask():
        barrier.wait()
        got.append(nvrtc.kernel("tiny.cu", MACROS, (8, 0)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1 and len(got) == 8
    assert loads == ["tiny"] and len(compiled) == 1
    assert nvrtc.loaded("tiny.cu", MACROS, (8, 0))
    assert not nvrtc.loaded("tiny.cu", MACROS, (9, 0))
    assert nvrtc.kernel("tiny.cu", MACROS, (9, 0)) is not got[0]


def test_failed_load_is_not_kept(monkeypatch):
    def load(code, name):
        raise RuntimeError("no context")

    monkeypatch.setattr(nvrtc, "load", load)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no context"):
            nvrtc.kernel("tiny.cu", MACROS, (8, 0))


@pytest.fixture
def knows(monkeypatch):
    """Sets NVRTC's version and the architectures that it knows."""

    def set_to(version, architectures):
        monkeypatch.setattr(nvrtc, "version", lambda: version)
        monkeypatch.setattr(nvrtc, "_architectures", lambda: architectures)
        nvrtc.architecture.cache_clear()

    yield set_to
    nvrtc.architecture.cache_clear()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), 75), ((8, 0), 80), ((8, 9), 86), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
)
def test_architecture(knows, capability, expected):
    knows((13, 0), (75, 80, 86, 90, 100, 120))
    assert nvrtc.architecture(capability) == f"sm_{expected}"


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [((7, 0), r"lightning-lrnn\[cuda12\]"), ((11, 0), "upgrade nvidia"), ((13, 0), "upgrade")],
)
def test_architecture_unknown(knows, capability, remedy):
    knows((13, 0), (75, 80, 86, 90, 100, 120))
    with pytest.raises(nvrtc.CompileError, match=remedy) as caught:
        nvrtc.architecture(capability)
    assert "NVRTC 13.0" in str(caught.value) and "sm_75 to sm_120" in str(caught.value)


@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything; a test takes something away."""

    def absent(*names):
        monkeypatch.setattr(nvrtc, "_importable", lambda name: name not in names)

    def fails(name, error):
        def raising():
            raise error

        monkeypatch.setattr(nvrtc, name, raising)

    monkeypatch.setattr(sys, "platform", "linux")
    absent()
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "_driver_version", lambda: (13, 1))
    nvrtc._missing.cache_clear()
    yield types.SimpleNamespace(absent=absent, fails=fails, set=monkeypatch.setattr)
    nvrtc._missing.cache_clear()


def test_nothing_missing(machine):
    assert nvrtc.missing() == []
    assert nvrtc.missing_for((9, 0)) == []


def test_missing_packages(machine):
    machine.absent("cuda.core")
    (reason,) = nvrtc.missing()
    assert reason.startswith("cuda-core is not installed: pip install")
    assert '"lightning-lrnn[cuda]"' in reason and '"lightning-lrnn[cuda12]"' in reason
    nvrtc._missing.cache_clear()
    machine.absent("cuda.core", "cuda.bindings")
    assert nvrtc.missing()[0].startswith("cuda-bindings and cuda-core are not installed")


def test_missing_sources(machine):
    machine.absent("lightning_lrnn.cuda_src")
    (reason,) = nvrtc.missing()
    assert "CUDA sources" in reason and "pip install" in reason


def test_cuda_core_that_does_not_fit(machine):
    def refuse(name):
        raise ImportError("cuda.bindings 11 is not supported")

    machine.set(nvrtc.importlib, "import_module", refuse)
    (reason,) = nvrtc.missing()
    assert "cuda.bindings 11 is not supported" in reason


@pytest.mark.parametrize(("major", "extra"), [(12, "[cuda12]"), (13, "[cuda]")])
def test_missing_nvrtc(machine, major, extra):
    machine.fails("version", RuntimeError("libnvrtc.so.13"))
    machine.set(nvrtc, "_bindings_major", lambda: major)
    (reason,) = nvrtc.missing()
    assert reason.startswith("NVRTC (libnvrtc) was not found") and extra in reason


def test_missing_driver(machine):
    machine.fails("_driver_version", RuntimeError("libcuda.so.1"))
    (reason,) = nvrtc.missing()
    assert reason.startswith("no NVIDIA driver")


def test_driver_older_than_nvrtc(machine):
    machine.set(nvrtc, "_driver_version", lambda: (12, 8))
    (reason,) = nvrtc.missing()
    assert "driver is for CUDA 12.8, NVRTC is 13.0" in reason and "[cuda12]" in reason


def test_nvrtc_older_than_the_device(machine, knows):
    knows((13, 0), (75, 80, 90))
    (reason,) = nvrtc.missing_for((13, 0))
    assert "the device is sm_130" in reason
    machine.fails("_driver_version", RuntimeError("libcuda.so.1"))
    nvrtc._missing.cache_clear()
    assert "no NVIDIA driver" in nvrtc.missing_for((13, 0))[0]


def test_no_cuda_on_macos(machine):
    machine.set(sys, "platform", "darwin")
    assert nvrtc.missing() == ["there is no CUDA on macOS"]


def test_finds_what_is_really_there():
    """The functions that the fakes above replace."""
    assert nvrtc._importable("cuda.core") and not nvrtc._importable("cuda.no_such_thing")
    assert not nvrtc._importable("no_such_thing.at_all")
    assert nvrtc._bindings_major() in (12, 13)
    assert {80, 90} <= set(nvrtc._architectures())
    assert nvrtc.version() >= (12, 9)


@pytest.fixture
def driver(monkeypatch):
    """PyTorch's and cuda-python's side of a launch, recorded; `stream` is PyTorch's current one."""
    import cuda.bindings.driver
    import cuda.core

    seen = types.SimpleNamespace(stream=0, context=1, calls=[], status="CUDA_SUCCESS")

    class Device:
        def __init__(self, index):
            self.index = index

        def set_current(self):
            seen.calls.append(("context", self.index))
            seen.context = 1

    def get_current():
        return 0, seen.context

    monkeypatch.setattr(pytorch, "current_stream", lambda _: seen.stream)
    monkeypatch.setattr(cuda.bindings.driver, "cuCtxGetCurrent", get_current)

    def launch(kernel, *arguments):
        *sizes, shared, stream, parameters, extra = arguments
        (struct,) = (ctypes.c_void_p * 1).from_address(parameters)
        fields = list((ctypes.c_int64 * 3).from_address(struct))
        assert shared == extra == 0
        seen.calls.append(("launch", int(kernel), tuple(sizes), int(stream), fields))
        status = seen.status if seen.context else "CUDA_ERROR_INVALID_CONTEXT"
        return (getattr(cuda.bindings.driver.CUresult, status),)

    monkeypatch.setattr(cuda.core, "Device", Device)
    monkeypatch.setattr(cuda.bindings.driver, "cuLaunchKernel", launch)
    return seen


def start(index):
    parameter = array("q", [1, 0, -(2**40)])
    nvrtc.launch(77, 5, 128, parameter, torch.device("cuda", index))


def test_launch(driver):
    start(1)
    assert driver.calls == [("launch", 77, (5, 1, 1, 128, 1, 1), 0, [1, 0, -(2**40)])]


def test_stream_is_read_at_each_launch(driver):
    for stream in (0, 7, 0):
        driver.stream = stream
        start(0)
    assert [call[3] for call in driver.calls if call[0] == "launch"] == [0, 7, 0]


def test_a_refused_launch_says_why(driver):
    driver.status = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match=r"5 blocks of 128 threads.*CUDA_ERROR_INVALID_VALUE"):
        start(0)


def test_thread_without_context_gets_the_devices(driver):
    start(1)
    assert ("context", 1) not in driver.calls
    driver.calls.clear()
    driver.context = 0
    start(1)
    done = [call for call in driver.calls if call[0] in ("context", "launch")]
    assert [call[0] for call in done] == ["launch", "context", "launch"]
    assert done[1] == ("context", 1) and done[0] == done[2]


def test_an_error_of_the_launch_is_not_taken_for_one_of_the_context(driver):
    driver.status = "CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        start(0)
    assert [call[0] for call in driver.calls] == ["launch"]


def test_import_needs_no_cuda_python():
    script = (
        "import sys, torch\n"
        "before = {name for name in sys.modules if name.startswith('cuda')}\n"
        "import lightning_lrnn.backends.cuda.nvrtc, lightning_lrnn.backends.cuda.launch\n"
        "assert {name for name in sys.modules if name.startswith('cuda')} == before\n"
        "assert 'cuda.core' not in before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@other_python
def test_other_nvrtc(sources):
    script = (
        "nvrtc.source_folder = lambda: pathlib.Path(sys.argv[1])\n"
        "for _ in range(2):\n"
        "    code = nvrtc.cubin('tiny.cu', (('FLOAT', 'float'),), nvrtc.architecture((9, 0)))\n"
        "    assert code.startswith(b'\\x7fELF')\n"
        "assert 'torch' not in sys.modules\n"
        "print(nvrtc.version(), nvrtc.missing())\n"
    )
    print(run_elsewhere(script, str(sources)))
    assert kernel_cache.clear_cache()[0] == 1
