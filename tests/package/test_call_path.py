"""The road of one call, as docs/architecture.md shows it: few functions, few files, one direction.

Seen to fail: the road as it was before (245 calls, 21 files, 86 changes of file).
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path

import torch

import lightning_lrnn as lrnn
from lightning_lrnn import backends
from lightning_lrnn.backends.cuda.launch import FIELDS

ROOT = Path(lrnn.__file__).parent


def files_of(function):
    """The package's files in which Python functions are called, in order."""
    files = []

    def on_event(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            files.append(str(path.relative_to(ROOT)))

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


def test_a_warm_call_takes_a_short_road():
    backends.forget()  # else there may be as many guards as are kept
    rnn = lrnn.nn.GILRLSTM(16, 32, batch_first=True, backend="scan")
    x = torch.randn(4, 64, 16)
    for _ in range(3):
        rnn(x)[0].sum().backward()
    files = files_of(lambda: rnn(x))
    changes = sum(a != b for a, b in itertools.pairwise(files))
    assert len(files) <= 100 and len(set(files)) <= 12 and changes <= 35


def test_a_backend_is_resolved_once(monkeypatch):
    resolved, resolve = [], backends.resolve
    monkeypatch.setattr(backends, "resolve", lambda *a: resolved.append(a) or resolve(*a))
    backends.forget()
    a = torch.rand(2, 5, 3, requires_grad=True)
    for _ in range(3):
        lrnn.linear_recurrence(a, a)[0].sum().backward()
    assert len(resolved) == 1


def test_the_fields_of_a_launch_are_those_of_the_kernel():
    source = (ROOT.parent / "cuda_src" / "recurrence.cu").read_text()
    inside = re.search(r"struct Problem \{(.*?)\n\n  __device__", source, re.DOTALL)[1]
    names = []
    for line in inside.splitlines():
        declaration = line.split("//")[0].strip().rstrip(";")
        if not declaration:
            continue
        kind, *rest = re.sub(r"const |unsigned ", "", declaration).split(maxsplit=1)
        for name in rest[0].split(","):
            name = re.sub(r"\[.*\]", "[]", name.strip().lstrip("*"))
            words = [f".{w}" for w in ("data", "row", "step", "feature")]
            names += [name + word for word in (words if kind == "Input" else [""])]
    assert tuple(names) == FIELDS


BELOW = "gates", "core", "ops", "backends"
SAME_AS_PUBLIC = {"core/reference.py"}
"""Its function has the signature of `linear_recurrence`, of which it is the definition."""


def test_signatures_below_the_recurrence_are_small():
    """At most six parameters, and no boolean by position."""
    for file in sorted(f for room in BELOW for f in (ROOT / room).rglob("*.py")):
        if str(file.relative_to(ROOT)) in SAME_AS_PUBLIC:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [a for a in node.args.args if a.arg not in ("self", "cls")]
                where = f"{file.name}: {node.name}"
                assert len(given) + len(node.args.kwonlyargs) <= 6, where
                kinds = [ast.unparse(a.annotation) for a in given if a.annotation]
                assert "bool" not in kinds, where


def test_no_folder_is_crowded():
    """At most 14 files, 8 at the top; every cell has a file of its own."""
    for folder in (ROOT, *(f for f in ROOT.rglob("*") if f.is_dir())):
        if folder.relative_to(ROOT).as_posix() != "nn/cells":
            files = list(folder.glob("*.py"))
            assert len(files) <= (8 if folder == ROOT else 14), folder
