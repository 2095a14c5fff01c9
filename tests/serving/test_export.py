"""Whole layers where this package is not: ONNX by onnxruntime, saved programs, AOTInductor.

Seen to fail: no walk from the last step in reverse; padding walked over as other steps; resets, the
first state and the readout left out; the operator in the place of the scan; the number of rows not
told to Inductor.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import pytest
import torch
from layers import CELLS, H, M, flat, make, random_state
from torch.utils._pytree import tree_map

import lightning_lrnn as lrnn

close = torch.testing.assert_close
ROWS, TIME = torch.export.Dim("rows"), torch.export.Dim("time")
SIZES = ((3, 6), (1, 1), (4, 1), (2, 3), (5, 40), (H, M))
"""Rows and time steps; a program is exported of the first."""
COMPLEX = ("LRU", "S5")
SOME = {("GILR", 2), ("GILRLSTM", 1), ("LRU", 2), ("SurrogateRNN", 1)}
"""Cells and directions of `make test`: a recurrence, two of them, complex numbers, and passes.

The gates of all the others are in its `test_onnx_of_a_step`.
"""
WAYS = [
    pytest.param(*case, marks=[pytest.mark.nightly] * (case not in SOME), id=f"{case[0]}-{case[1]}")
    for case in itertools.product(CELLS, (1, 2))
]
needs_onnx = pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning")


def dynamic(values, batch_first=True):
    """What may vary in inputs of these names."""
    time = {0: ROWS, 1: TIME} if batch_first else {1: ROWS, 0: TIME}
    every = {"input": time, "reset": time, "lengths": {0: ROWS}}
    every["hx"] = tree_map(lambda _: {1: ROWS}, values.get("hx"))
    return {name: every[name] for name in values}


def drawn(rnn, rows, steps, names):
    """Random values of the inputs of a layer."""
    size = (rows, steps) if rnn.batch_first else (steps, rows)
    x = torch.randn(*size, M)
    every = {
        "lengths": lambda: torch.randint(0, steps + 1, (rows,)),
        "reset": lambda: torch.rand(size) < 0.3,
        "hx": lambda: random_state(rnn, x),
    }
    return {"input": x} | {name: every[name]() for name in names}


def check_onnx(rnn, *names):
    """Exports a layer with some of its inputs, and runs it with others by onnxruntime."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    values = drawn(rnn, *SIZES[0], names)
    shapes = dynamic(values, rnn.batch_first)
    program = torch.onnx.export(
        rnn.eval(), kwargs=values, dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert {node.domain for node in program.model.graph} == {""}
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    asked = [i.name for i in session.get_inputs()]
    for size in SIZES:
        values = drawn(rnn, *size, names)
        given = [v.numpy() for v in flat(values)]
        outputs = session.run(None, dict(zip(asked, given, strict=True)))
        for output, expected in zip(outputs, flat(rnn(**values)), strict=True):
            # Of a complex state the two parts, side by side.
            parts = torch.view_as_real(expected) if expected.is_complex() else expected
            largest = max(1.0, parts.abs().max().item())  # 30, where an S5 is drawn so
            close(torch.from_numpy(output), parts, rtol=0, atol=1e-5 * largest)


@needs_onnx
@torch.no_grad()
def test_onnx_of_a_layer():
    check_onnx(make("GILR"))


@needs_onnx
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name, ways", WAYS)
def test_onnx_of_every_cell(name, ways):
    rnn = make(name, bidirectional=ways == 2, batch_first=True)
    check_onnx(rnn, "lengths", *([] if name in COMPLEX else ["hx"]))


@needs_onnx
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("ways", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_onnx_of_two_layers_over_documents(ways):
    check_onnx(make("QRNN", num_layers=2, bidirectional=ways == 2), "hx", "lengths", "reset")


@needs_onnx
@pytest.mark.slow
def test_onnx_of_a_lightning_module(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = lrnn.pl.SequenceClassifier(M, 3, hidden_size=H, num_layers=1).eval()
    file = tmp_path / "model.onnx"
    shapes = ({0: ROWS, 1: TIME},)
    model.to_onnx(file, torch.randn(2, 9, M), dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file)
    x = torch.randn(3, 11, M)
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(outputs[0]), model(x)[0])


def saved(rnn, folder, *names):
    """Saves a layer as a program of PyTorch's operators, and what it gives for other sizes."""
    values = drawn(rnn, *SIZES[0], names)
    program = torch.export.export(rnn.eval(), (), values, dynamic_shapes=dynamic(values))
    program = program.run_decompositions(lrnn.decompositions())
    assert not any("lightning_lrnn" in str(node.target) for node in program.graph.nodes)
    folder.mkdir(exist_ok=True)
    torch.export.save(program, folder / "layer.pt2")
    pairs = [(v, rnn(**v)) for v in (drawn(rnn, *size, names) for size in SIZES)]
    torch.save(pairs, folder / "pairs.pt")
    return program


def run_without_the_package(folders, load):
    """Runs what was saved in a process in which the package cannot be imported."""
    code = f"""
        import sys, torch
        sys.modules["lightning_lrnn"] = None
        for folder in sys.argv[1:]:
            layer = {load}
            with torch.no_grad():
                for values, expected in torch.load(f"{{folder}}/pairs.pt"):
                    torch.testing.assert_close(layer(**values), expected, rtol=1e-4, atol=1e-5)
            print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, folders)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout == "done\n" * len(folders), ran.stderr


@torch.no_grad()
@pytest.mark.slow
def test_saved_programs_without_the_package(tmp_path):
    folders = {name: tmp_path / name for name in ("LRU", "QRNN")}
    for name, folder in folders.items():
        rnn = make(name, bidirectional=True, batch_first=True)
        saved(rnn, folder, "hx", "lengths", "reset")
    load = 'torch.export.load(f"{folder}/layer.pt2").module()'
    run_without_the_package(folders.values(), load)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("ways", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_what_aotinductor_compiles_without_the_package(ways, tmp_path):
    program = saved(make("GILR", bidirectional=ways == 2, batch_first=True), tmp_path, "lengths")
    compiled, how = str(tmp_path / "compiled.pt2"), {"aot_inductor.compile_wrapper_opt_level": "O0"}
    torch._inductor.aoti_compile_and_package(program, package_path=compiled, inductor_configs=how)
    load = 'torch._inductor.aoti_load_package(f"{folder}/compiled.pt2")'
    run_without_the_package([tmp_path], load)


@needs_onnx
@torch.no_grad()
def test_onnx_of_an_exported_program(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    rnn = make("GILR", batch_first=True)
    program = torch.onnx.export(saved(rnn, tmp_path), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    x = drawn(rnn, 5, 40, ())["input"]
    outputs = [torch.from_numpy(v) for v in session.run(None, {"input": x.numpy()})]
    close(outputs, list(rnn(x)), rtol=1e-5, atol=1e-5)
