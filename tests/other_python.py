"""Runs scripts on `nvrtc` with another interpreter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lightning_lrnn.backends.cuda import nvrtc

OTHER = "LIGHTNING_LRNN_OTHER_PYTHON"


other_python = pytest.mark.skipif(OTHER not in os.environ, reason=f"{OTHER} is not set")


def run_elsewhere(script: str, *arguments: str) -> str:
    """Runs a script on `nvrtc` with another interpreter, which needs cuda-python but no PyTorch.

    $LIGHTNING_LRNN_OTHER_PYTHON names it: one with cuda-core, cuda-bindings 12.9 and NVRTC 12.9
    (nvidia-cuda-nvrtc-cu12), or any other version.
    """
    root = Path(nvrtc.__file__).parents[2]
    packages = {
        ".".join(["lightning_lrnn", *inside]): str(root.joinpath(*inside))
        for inside in ((), ("backends",), ("backends", "cuda"))
    }
    preamble = (
        "import io, json, pathlib, re, sys, types\n"
        f"for name, path in {packages!r}.items():\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [path]\n"
        "from lightning_lrnn.backends.cuda import nvrtc\n"
    )
    command = [os.environ[OTHER], "-c", preamble + script, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
