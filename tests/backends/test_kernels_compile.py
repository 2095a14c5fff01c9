"""Every variant of the kernel compiles for every supported architecture, without spills.

No GPU and no driver is needed. `make test` compiles every gate once, and every macro's values for
one architecture or another, `make nightly` all variants for all; with
LIGHTNING_LRNN_RECORD_REGISTERS=1 that writes what the assembler reports to
benchmarks/results/registers.json.

Seen to fail: a variable renamed in one branch of the kernel; a macro misspelt; an unused variable
(a warning); 64 steps per thread for complex128 (spills); an array indexed at run time (stack); one
kernel argument more, and one of another type.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import pytest
import torch
from kernel_variants import (
    KINDS,
    PACKED_KINDS,
    PASSES,
    packed_variant,
    pair_variant,
    variant,
)
from other_python import other_python, run_elsewhere
from paths import BENCHMARKS
from plain_calls import PlainCalls

from lightning_lrnn.backends.cuda import launch, nvrtc
from lightning_lrnn.backends.cuda.workspace import REUSED
from lightning_lrnn.core import pytorch

pytest.importorskip("cuda.core")
pytest.importorskip("cuda.bindings.nvrtc")

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
WITH_ALL = "sm_90"
WITH_OWN_CODE = "sm_75", "sm_80"
ALIKE = tuple(arch for arch in ARCHITECTURES if arch not in WITH_OWN_CODE)
LEAST_AND_MOST = [
    f"{schedule} {step} {name}"
    for step, layout in zip(PASSES, ("ahead", "behind"), strict=True)
    for schedule, name in (
        ("scan", "bf16 x32"),
        *([("scan", "f32 whole x32")] * (step == "backward")),
        ("scan", "c128 x1"),
        ("scan", "lstm with readout f32 x32"),
        ("scan", "bf16 pair x32"),
        ("scan", "f32 given x32"),
        ("scan", "f32 folded reused x32"),
        *([("scan", "f32 whole reused x32")] * (step == "backward")),
        ("serial", "gilr of complex c64"),
        ("packed scan", "bf16"),
        ("packed scan", "lstm with readout bf16 folded"),
        ("packed scan", "lstm with readout bf16 quick"),
        ("scan", "lstm with readout bf16 quick x32"),
        ("scan", f"f32 {layout} x1"),
        ("scan", "c128 chained resets x32"),
        ("scan", "f32 chained known row together x32"),
    )
]


def of_whole_tiles(kind: object, step: str, carry: str = "chained") -> list[nvrtc.Macros]:
    """The variant for whole tiles alone, where the plan asks for it: where it has more blocks."""
    any_tile, whole = (variant(kind, step, True, 32, carry, tiles=t) for t in ("any", "whole"))
    blocks = [int(dict(macros)["LRNN_BLOCKS"]) for macros in (any_tile, whole)]
    return [whole] * (blocks[1] > blocks[0])


OTHERS = {
    "known": ("LRNN_EMIT", "state_after"),
    "row": ("LRNN_COMBINE", "row"),
    "together": ("LRNN_FOLD", "together"),
}
QUICK = "LRNN_TANH", "approx"
"""What `benchmarks/ab.py` compares with the plan."""


def listed() -> Iterator[tuple[str, nvrtc.Macros]]:
    """Every gate in either schedule; every other macro with gates small and large."""
    some = ("f32", "c128", "lstm with readout f32")
    for step, layout in zip(PASSES, ("ahead", "behind"), strict=True):
        for name, kind in KINDS.items():
            yield f"scan {step} {name} x32", variant(kind, step, True, 32)
            yield f"serial {step} {name}", variant(kind, step, False, 1)
            for how in of_whole_tiles(kind, step):
                yield f"scan {step} {name} whole x32", how
        for name in some:
            yield f"scan {step} {name} x1", variant(KINDS[name], step, True, 1)
        for name in (*some, "gilr f32"):
            yield f"scan {step} {name} folded x32", variant(KINDS[name], step, True, 32, "folded")
            for how in of_whole_tiles(KINDS[name], step, "folded"):
                yield f"scan {step} {name} folded whole x32", how
        for name in (*some, "bf16", "gilr f32", "sru with parameters f32"):
            yield f"scan {step} {name} given x32", variant(KINDS[name], step, True, 32, "given")
            for how in of_whole_tiles(KINDS[name], step, "given"):
                yield f"scan {step} {name} given whole x32", how
        for name, carry, width in (
            ("c128", "chained", 32),
            ("gilr f32", "folded", 1),
            ("gilr f32", "given", 1),
            ("c64", "given", 32),
            ("lstm with readout bf16", "chained", 32),
        ):
            how = variant(KINDS[name], step, True, width, carry, True)
            yield f"scan {step} {name} {carry} resets x{width}", how
        for name in ("f32", "c64"):
            how = variant(KINDS[name], step, True, 1, "folded", False, layout)
            yield f"scan {step} {name} {layout} x1", how
        for name in ("f32", "lstm with readout bf16"):
            for carry in ("chained", "folded"):
                how = variant(KINDS[name], step, True, 32, carry)
                yield f"scan {step} {name} {carry} {' '.join(OTHERS)} x32", (*how, *OTHERS.values())
        for name, carry in (
            ("f32", "chained"),
            ("f32", "folded"),
            ("lstm with readout bf16", "chained"),
            ("c128", "folded"),
            ("f64", "chained"),
        ):
            how = variant(KINDS[name], step, True, 32, carry)
            yield f"scan {step} {name} {carry} reused x32", (*how, REUSED)
        how = variant(KINDS["c128"], step, True, 32, "chained", True)
        yield f"scan {step} c128 resets reused x32", (*how, REUSED)
        for how in of_whole_tiles(KINDS["f32"], step):
            yield f"scan {step} f32 whole reused x32", (*how, REUSED)
        for name, kind in KINDS.items():
            alone, kept = (pair_variant(kind, step, 32, kept=kept) for kept in (False, True))
            yield f"scan {step} {name} pair x32", alone
            if kept != alone:
                yield f"scan {step} {name} pair kept x32", kept
        for name in some:
            yield f"scan {step} {name} pair resets x32", pair_variant(KINDS[name], step, 32, True)
            yield f"scan {step} {name} pair x1", pair_variant(KINDS[name], step, 1)
        how = pair_variant(KINDS["f32"], step, 1, False, layout)
        yield f"scan {step} f32 pair {layout} x1", how
        yield from packed(step)


def packed(step: str) -> Iterator[tuple[str, nvrtc.Macros]]:
    """Two features of 16 bits to a thread: every gate by either carry, some by all else."""
    tiles = "any" if step == "forward" else "whole"
    for name, kind in PACKED_KINDS.items():
        yield f"packed scan {step} {name}", packed_variant(kind, step, True, tiles=tiles)
        how = packed_variant(kind, step, True, "folded", tiles="whole")
        yield f"packed scan {step} {name} folded", how
    for name in ("bf16", "f16", "gilr bf16", "lstm with readout bf16"):
        kind = PACKED_KINDS[name]
        yield f"packed serial {step} {name}", packed_variant(kind, step, False)
        how = packed_variant(kind, step, True, "folded", True, tiles="whole")
        yield f"packed scan {step} {name} folded resets", how
        if step == "forward":
            how = packed_variant(kind, step, True, tiles="whole")
            yield f"packed scan {step} {name} whole", how
        how = packed_variant(kind, step, True, tiles=tiles)
        yield f"packed scan {step} {name} known", (*how, OTHERS["known"])
        if name in ("gilr bf16", "lstm with readout bf16"):
            yield f"packed scan {step} {name} quick", (*how, QUICK)
            yield f"scan {step} {name} quick x32", (*variant(kind, step, True, 32), QUICK)
        how = pair_variant(kind, step, 32, False, "packed")
        yield f"packed scan {step} {name} pair", how


VARIANTS = dict(listed())
RECORD = "LIGHTNING_LRNN_RECORD_REGISTERS"
RESULTS = BENCHMARKS / "results" / "registers.json"


class Report(NamedTuple):
    """What the assembler says of one variant."""

    variant: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int
    warnings: str


def report(name: str, arch: str) -> Report:
    log = io.StringIO()
    nvrtc.compile_program(launch.SOURCE, VARIANTS[name], arch, ptxas_options=["-v"], log=log)
    said = log.getvalue()

    def figures(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, said)]

    (registers,) = figures(r"Used (\d+) registers")
    return Report(
        name,
        arch,
        registers,
        sum(figures(r"(\d+) bytes smem")),
        # A report without these words would be no evidence: unpacking fails.
        *figures(r"(\d+) bytes stack frame"),
        sum(figures(r"(\d+) bytes spill (?:stores|loads)")),
        said if "warning" in said else "",
    )


def table(whole: bool) -> list[tuple[str, str]]:
    """Variants and their architectures.

    Of a sample: every gate backward, where it has more to hold in registers; of all else what has
    the least and the most, each for one architecture. Those with the same code share a third.
    """
    if whole:
        return [(name, arch) for arch in ARCHITECTURES for name in VARIANTS]
    pairs = [(f"scan backward {name} x32", WITH_ALL) for name in KINDS]
    for i, name in enumerate(LEAST_AND_MOST):
        pairs.append((name, (*WITH_OWN_CODE, ALIKE[i // 3 % len(ALIKE)])[i % 3]))
    return pairs


def values(names: Iterable[str]) -> set[tuple[str, str, str]]:
    """Every value of a macro in either pass, but for the gate's."""
    variants = [dict(VARIANTS[name]) for name in names]
    return {
        (variant["LRNN_PASS"], macro, value)
        for variant in variants
        for macro, value in variant.items()
        if macro != "LRNN_GATE"
    }


EXTENTS = [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.nightly)]


@pytest.fixture(scope="module", params=EXTENTS)
def whole(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def reports(whole: bool) -> list[Report]:
    """All by two processes: NVRTC does not compile side by side within one."""
    try:
        nvrtc.version()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error}")
    if not whole:
        return [report(*pair) for pair in table(whole)]
    context = multiprocessing.get_context("spawn")  # forking beside PyTorch's threads is unsafe
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        of_table = list(pool.map(report, *zip(*table(whole), strict=True), chunksize=8))
    if os.environ.get(RECORD):
        record(of_table)
    return of_table


def record(reports: list[Report]) -> None:
    """By variant and architecture: [registers, bytes of shared memory]."""
    table: dict[str, dict[str, list[int]]] = {}
    for r in reports:
        table.setdefault(r.variant, {})[r.architecture] = [r.registers, r.shared]
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items()))
    version = ".".join(map(str, nvrtc.version()))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        f'{{\n  "nvrtc": "{version}",\n  "unit": ["registers per thread", "bytes of shared memory '
        f'per block"],\n  "variants": {{\n{lines}\n  }}\n}}\n'
    )


@pytest.mark.slow
def test_table_is_whole(reports, whole):
    expected = set(table(whole))
    assert len(expected) > (1000 if whole else 50)
    names, architectures = map(set, zip(*expected, strict=True))
    assert architectures == set(ARCHITECTURES) and values(names) == values(VARIANTS)
    assert {(r.variant, r.architecture) for r in reports} == expected


def test_no_spills_no_stack(reports):
    # The sine of a large angle is reduced in memory: 32 bytes of stack, no spill.
    allowed = {"gilr of complex c64": 32, "gilr of complex c64 pair kept": 32}
    assert [
        r
        for r in reports
        if r.spills or r.stack > allowed.get(r.variant.split(" ", 2)[2].split(" x")[0], 0)
    ] == []


def test_no_warnings(reports):
    assert [r.warnings for r in reports if r.warnings] == []


def test_as_many_blocks_fit_as_the_plan_says(reports):
    """A multiprocessor has 65,536 registers, given out by eight to a thread."""
    for r in reports:
        variant = dict(VARIANTS[r.variant])
        scan = variant["LRNN_SCHEDULE"] == "scan"
        threads = int(variant["LRNN_THREADS"]) if scan else 128
        fewer = {"sm_75": 2, "sm_80": 1}.get(r.architecture, 0)
        blocks = max(int(variant["LRNN_BLOCKS"]) - fewer, 2) if scan else 2
        assert blocks * threads * -(-r.registers // 8) * 8 <= 65_536, r
        assert r.shared <= 48 * 1024, r


def test_more_blocks_than_two_where_segments_are_small():
    """As many as the README says, so that a change of the rule is seen."""

    def blocks(name, step, *how, tiles="any"):
        return dict(variant(KINDS[name], step, True, 32, *how, tiles=tiles))["LRNN_BLOCKS"]

    assert blocks("f32", "forward") == blocks("bf16", "forward") == "4"
    assert blocks("gilr f32", "forward") == blocks("lstm with readout bf16", "forward") == "4"
    assert blocks("f32", "forward", "folded") == blocks("sru f32", "forward") == "3"
    assert blocks("minLSTM f32", "forward") == blocks("f32", "forward", "chained", True) == "2"
    assert blocks("f32", "backward", tiles="whole") == "3"
    assert blocks("f32", "backward") == blocks("bf16", "backward", tiles="whole") == "2"


def parameters(cubin: bytes, kernel: str) -> list[int]:
    """Sizes of a kernel's parameters in bytes, from the section `.nv.info.<kernel>` of its ELF."""
    offset, entry_size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    headers = [struct.unpack_from("<IIQQQQ", cubin, offset + i * entry_size) for i in range(count)]
    strings = headers[names][4]
    wanted = f".nv.info.{kernel}".encode() + b"\0"
    (section,) = (h for h in headers if cubin.startswith(wanted, strings + h[0]))
    sizes, at, end = {}, section[4], section[4] + section[5]
    while at < end:
        form, attribute, value = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form == 4:  # `value` bytes follow
            if attribute == 0x17:  # KPARAM_INFO: index, ordinal, offset, bits with the size on top
                _, ordinal, _, bits = struct.unpack_from("<IHHI", cubin, at)
                sizes[ordinal] = bits >> 18
            at += value
    return [sizes[ordinal] for ordinal in range(len(sizes))]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("step", PASSES)
def test_arguments_fit_the_kernel(step, parallel, launched):
    """What is launched has the number and the sizes of the compiled kernel's own parameters."""
    x = torch.zeros(2, 200, 5)
    options = {"reverse": False, "exclusive": False, "parallel": parallel}
    plain_calls = PlainCalls(launch.backend)
    if step == "forward":
        plain_calls.run(x, x, None, None, None, **options)
    else:
        plain_calls.run_backward(x, x, None, x, None, None, None, **options)
    ((macros, problem),) = launched
    assert dict(macros)["LRNN_SCHEDULE"] == ("scan" if parallel else "serial")
    code = nvrtc.compile_program(launch.SOURCE, macros, "sm_90")
    assert [8 * len(problem)] == parameters(code, "recurrence")


@pytest.fixture
def launched(monkeypatch):
    """(variant, arguments) of every launch, none of which takes place."""
    seen = []
    monkeypatch.setattr(pytorch, "current_device", lambda: None)  # as `index` of a CPU is
    monkeypatch.setattr(launch, "_kernel", lambda variant, _: variant)
    monkeypatch.setattr(nvrtc, "launch", lambda k, g, b, args, _: seen.append((k, args)))
    return seen


@other_python
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_other_nvrtc(arch, tmp_path):
    """Every storage, pass and schedule with the NVRTC of another interpreter, without spills."""
    variants = [macros for name, macros in VARIANTS.items() if not name.endswith(" x1")]
    script = (
        "nvrtc.source_folder = lambda: pathlib.Path(sys.argv[1])\n"
        "for macros in json.loads(pathlib.Path(sys.argv[3]).read_text()):\n"
        "    log = io.StringIO()\n"
        "    macros = tuple(map(tuple, macros))\n"
        "    nvrtc.compile_program('recurrence.cu', macros, sys.argv[2],\n"
        "                           ptxas_options=['-v'], log=log)\n"
        "    print(*re.findall(r'(\\d+) bytes spill stores', log.getvalue()))\n"
    )
    path = tmp_path / "variants.json"
    path.write_text(json.dumps(variants))
    folder = str(nvrtc.source_folder())
    assert run_elsewhere(script, folder, arch, str(path)).split() == ["0"] * len(variants)
