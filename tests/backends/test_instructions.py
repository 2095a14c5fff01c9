"""Instructions per step of the kernel, from its disassembly.

A step's instructions are the difference between a kernel of S and one of S / 2 steps per thread,
over S / 2. "all" is the whole kernel over S: an upper bound of what a thread of a full tile
executes per step, as every instruction stands there once and some are for other threads or other
tiles. Both without the path of tiles that are not full, and of one column: halved where a thread
has two features. LIGHTNING_LRNN_RECORD_INSTRUCTIONS=1 lets `make nightly` write
benchmarks/results/instructions.json.

Seen to fail: gates evaluated twice; a test of the padding at every step; 4-byte accesses in rows of
one feature; a product of two features not fused with the sum.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from kernel_variants import KINDS, PACKED_KINDS, PASSES, variant
from paths import BENCHMARKS

from lightning_lrnn.backends.cuda import launch, nvrtc

ARCHITECTURE = "sm_90"
NAMES = (
    "f32", "bf16", "gilr f32", "minGRU f32", "minLSTM f32", "sru f32", "RGLRU f32",
    "lstm with readout f32", "lstm with readout bf16", "gilr bf16", "minGRU bf16",
)  # fmt: skip
BOTH = "bf16", "gilr bf16", "minGRU bf16", "lstm with readout bf16"
"""With one feature to a thread and with two."""
ALL = *NAMES, *(f"packed {name}" for name in BOTH)
LEAST_AND_MOST = "f32", "lstm with readout bf16"
SOME = tuple(name for name in ALL if name.removeprefix("packed ") in LEAST_AND_MOST)
"""Of the gates those with the least and the most to compute; the others by `make nightly`."""
RESULTS = BENCHMARKS / "results" / "instructions.json"


def disassembler() -> Path | None:
    """Of the package nvidia-cuda-nvdisasm."""
    folder = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    return next(iter(folder.glob("*/bin/nvdisasm")), None)


pytestmark = pytest.mark.skipif(
    disassembler() is None, reason="the package nvidia-cuda-nvdisasm is not installed"
)


@cache
def instructions(macros: nvrtc.Macros) -> Counter:
    whole = tuple({**dict(macros), "LRNN_TILES": "whole"}.items())
    code = nvrtc.compile_program(launch.SOURCE, whole, ARCHITECTURE)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(disassembler()), "-c", file.name]
        said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)"
    actual = Counter(re.findall(pattern, said, re.MULTILINE))
    del actual["NOP"]  # what fills the last lines
    return actual


def of_lengths(
    name: str, step: str, layout: str = "apart", steps: int = 0
) -> tuple[Counter, Counter, int]:
    """Instructions of a kernel of so many steps, or the plan's; of half as many; how many."""
    macros = dict(variant((PACKED_KINDS | KINDS)[name], step, True, 32, "chained", False, layout))
    steps = steps or int(macros["LRNN_STEPS"])
    more, fewer = (
        instructions(tuple({**macros, "LRNN_STEPS": str(n)}.items())) for n in (steps, steps // 2)
    )
    return more, fewer, steps


def per_step(name: str, step: str) -> tuple[float, float]:
    """Instructions of a step, and all."""
    packed = name.startswith("packed ")
    layout = "packed" if packed else "apart"
    more, fewer, steps = of_lengths(name.removeprefix("packed "), step, layout)
    per_column = (more.total() - fewer.total()) / (steps - steps // 2), more.total() / steps
    return per_column[0] / (1 + packed), per_column[1] / (1 + packed)


def record(actual: dict[str, dict[str, tuple[float, float]]]) -> None:
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in actual.items())
    version = ".".join(map(str, nvrtc.version()))
    RESULTS.write_text(
        f'{{\n  "nvrtc": "{version}",\n  "architecture": "{ARCHITECTURE}",\n  "unit": '
        f'["instructions of a step", "all instructions over steps"],\n  "variants": '
        f"{{\n{lines}\n  }}\n}}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [pytest.param(SOME, id="some"), pytest.param(ALL, id="all", marks=pytest.mark.nightly)]
)
def test_as_recorded(names):
    """Within a tenth: another NVRTC may place an instruction differently."""
    actual = {name: {step: per_step(name, step) for step in PASSES} for name in names}
    if names is ALL and os.environ.get("LIGHTNING_LRNN_RECORD_INSTRUCTIONS"):
        record(actual)
    recorded = json.loads(RESULTS.read_text())["variants"]
    assert set(recorded) == set(ALL)
    for name, passes in actual.items():
        for step, figures in passes.items():
            assert figures == pytest.approx(recorded[name][step], rel=0.1), (name, step)


@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_lstm_gate_with_readout(storage):
    own, _ = per_step(f"lstm with readout {storage}", "forward")
    # Four loads, two stores, and ten operations of the unit for special functions at least.
    assert 16 < own <= 70


both = pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.nightly) for n in BOTH]
)


@pytest.mark.slow
@both
def test_two_features_to_a_thread_take_fewer_instructions(name):
    for step in PASSES:
        (own, whole), (packed, packed_whole) = (per_step(n, step) for n in (name, f"packed {name}"))
        assert packed < 0.95 * own and packed_whole < 0.95 * whole


@pytest.mark.slow
@both
def test_two_features_are_computed_as_one_is(name):
    """As many products are fused with a sum for each: so the bits are the same on a GPU too."""
    for step in PASSES:
        more, fewer, steps = of_lengths(name, step, "packed")
        one, half, _ = of_lengths(name, step, steps=steps)
        assert more["FFMA"] - fewer["FFMA"] == 2 * (one["FFMA"] - half["FFMA"]) > 0
        assert more["LDG.E.U16"] == more["STG.E.U16"] == 0 < one["LDG.E.U16"]


@pytest.mark.parametrize("step, layout", [("forward", "ahead"), ("backward", "behind")])
def test_steps_side_by_side_are_moved_16_bytes_at_a_time(step, layout):
    apart, together = (
        instructions(variant(KINDS["f32"], step, True, 1, "folded", False, where))
        for where in ("apart", layout)
    )
    sequences = 1 if step == "forward" else 2
    assert together["STG.E.128"] == sequences * 16 // 4
    assert together["LDG.E.128"] >= 2 * 16 // 4
    assert apart["LDG.E.128"] == apart["STG.E.128"] == 0
