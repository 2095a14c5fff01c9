"""`benchmarks/gpu.py` without a GPU: what it finds, keeps, repeats and refuses to call passed.

Seen to fail: the checkout before the assembled package; a stage run again after it passed; one not
run again after it failed, or after the sources changed; a limit that leaves grandchildren running;
an exit status of 0 alone taken for a pass; the backward pass's arguments swapped in `exercise`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fusing_backends import only_emulated
from paths import BENCHMARKS

from lightning_lrnn.backends.cuda import launch, plan
from lightning_lrnn.backends.operands import DTYPE

SCRIPT = BENCHMARKS / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_stages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SCRIPT), "test"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU stage can run here: ")


def test_unknown_stage():
    done = subprocess.run([sys.executable, str(SCRIPT), "tets"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such stage: tets" in done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="safe paths came with Python 3.11")
def test_children_use_the_assembled_package(gpu, tmp_path):
    gpu.assemble(tmp_path)
    script = (
        "import lightning_lrnn, importlib.resources as r\n"
        "print(lightning_lrnn.__file__)\n"
        "print(r.files('lightning_lrnn.cuda_src') / 'recurrence.cu')\n"
    )
    actual = subprocess.run(
        [sys.executable, "-c", script],
        cwd=gpu.ROOT,
        env=gpu.environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    package = tmp_path / "lightning_lrnn"
    assert actual == [str(package / "__init__.py"), str(package / "cuda_src" / "recurrence.cu")]
    assert Path(actual[1]).exists()


def run(gpu, tmp_path, script, limit=60):
    log = tmp_path / "log"
    return gpu.run([sys.executable, "-c", script], log, tmp_path, limit), log


@pytest.mark.parametrize(("script", "status"), [("print('x')", "passed"), ("1 / 0", "failed")])
def test_run(gpu, tmp_path, script, status):
    result, log = run(gpu, tmp_path, script)
    assert result["status"] == status and result["log"] == "log"
    assert result["command"] == f"python -c {script}"
    assert ("x" if status == "passed" else "ZeroDivisionError") in log.read_text()


def test_limit_ends_grandchildren_too(gpu, tmp_path):
    sleep = "import time; print('started', flush=True); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    start = time.monotonic()
    result, log = run(gpu, tmp_path, script, limit=3)
    assert result["status"] == "timeout"
    assert "started" in log.read_text() and time.monotonic() - start < 30


def test_success_needs_its_words(gpu, tmp_path):
    log = tmp_path / "log"
    log.write_text("12 skipped\n")
    assert gpu.confirm({"status": "passed"}, log, r"\d+ passed")["status"] == "failed"
    log.write_text("3 passed, 12 skipped\n")
    actual = gpu.confirm({"status": "passed"}, log, r"\d+ passed.*")
    assert actual == {"status": "passed", "said": "3 passed, 12 skipped"}
    assert gpu.confirm({"status": "timeout"}, log, r"\d+ passed")["status"] == "timeout"


@pytest.fixture
def staged(gpu, tmp_path, monkeypatch):
    """Runs stages `good` and `bad`; returns the exit status and which of them really ran."""
    ran = []

    def stage(name, status):
        def body(site, results, limit_s):
            ran.append(name)
            return {"status": status}

        return body

    stages = {"good": stage("good", "passed"), "bad": stage("bad", "failed")}
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(gpu, "LIMITS_S", {"good": 5, "bad": 5})
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "NVIDIA H100 80GB", "driver": "1"})
    monkeypatch.setattr(gpu, "digest", lambda: "one")

    def start(*names, force=False):
        ran.clear()
        return gpu.run_stages(list(names), tmp_path, tmp_path, force), list(ran)

    return start


def test_stages_are_recorded(gpu, staged, tmp_path):
    assert staged("good", "bad") == (1, ["good", "bad"])
    path = tmp_path / "nvidia-h100-80gb" / "stages.json"
    record = json.loads(path.read_text())
    assert record["sources"] == "one" and record["machine"]["driver"] == "1"
    assert {name: stage["status"] for name, stage in record["stages"].items()} == {
        "good": "passed",
        "bad": "failed",
    }
    assert [file.name for file in path.parent.iterdir()] == ["stages.json"]


def test_only_what_has_not_passed_is_run_again(staged):
    staged("good", "bad")
    assert staged("good", "bad") == (1, ["bad"])
    assert staged("good") == (0, [])
    assert staged("good", force=True) == (0, ["good"])


def test_other_sources_or_another_machine_start_anew(gpu, staged, monkeypatch):
    staged("good")
    monkeypatch.setattr(gpu, "digest", lambda: "two")
    assert staged("good") == (0, ["good"])
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "NVIDIA H100 80GB", "driver": "2"})
    assert staged("good") == (0, ["good"])


def test_torn_record_starts_anew(staged, tmp_path):
    staged("good")
    (tmp_path / "nvidia-h100-80gb" / "stages.json").write_text('{"sources": ')
    assert staged("good") == (0, ["good"])


def test_digest_sees_every_source(gpu, tmp_path, monkeypatch):
    for name in ("cuda_src/x.cu", "lightning_lrnn/x.py", "tests/x.py", "benchmarks/x.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    (tmp_path / "pyproject.toml").write_text("1")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    seen = {gpu.digest()}
    for name in ("cuda_src/x.cu", "lightning_lrnn/x.py", "tests/x.py", "pyproject.toml"):
        (tmp_path / name).write_text("2")
        seen.add(gpu.digest())
    assert len(seen) == 5


def test_exercise(gpu, launches, monkeypatch, capsys):
    """What compute-sanitizer watches, with the stand-in for the kernel, on small tiles."""
    monkeypatch.setattr(plan, "THREADS", 32)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for cached in (plan.macros, plan.steps, launch._planned):
        cached.cache_clear()
    try:
        gpu.exercise()
    finally:
        for cached in (plan.macros, plan.steps, launch._planned):
            cached.cache_clear()
    assert f"exercised {len(launches)} launches" in capsys.readouterr().out
    carries = {v["LRNN_CARRY"] for v, _, _ in launches if v["LRNN_SCHEDULE"] == "scan"}
    assert carries == {"chained", "folded"}
    assert {v["LRNN_TILES"] for v, _, _ in launches} == {"any", "whole"}
    # Tiles, groups and reaches are folded; columns that fill the device are walked.
    folded = [grid for v, grid, _ in launches if v["LRNN_CARRY"] == "folded"]
    assert max(folded) > 16 * 16
    assert any(
        v["LRNN_SCHEDULE"] == "serial" and grid * 128 >= plan.WALK for v, grid, _ in launches
    )
    layouts = {v["LRNN_LAYOUT"] for v, _, _ in launches}
    assert layouts == {"apart", "ahead", "behind"}
    assert {v["LRNN_RESETS"] for v, _, _ in launches} == {"0", "1"}
    assert max(grid for variant, grid, _ in launches if variant["LRNN_SCHEDULE"] == "scan") > 6
    for storage in DTYPE:
        assert any(f"State = storage::{storage};" in v["LRNN_GATE"] for v, _, _ in launches)


@only_emulated
def test_exercise_gates(gpu, fusing_backend, capsys):
    gpu.exercise_gates("cpu", fusing_backend[:1])
    assert "exercised gates" in capsys.readouterr().out


def test_all_stages_take_nine_minutes_at_most(gpu):
    assert list(gpu.LIMITS_S) == list(gpu.STAGES)
    beside = max(gpu.LIMITS_S[name] for name in gpu.UNTIMED)
    alone = sum(seconds for name, seconds in gpu.LIMITS_S.items() if name not in gpu.UNTIMED)
    assert beside + alone <= 540


def test_what_was_left_out_is_measured_next_time(gpu, tmp_path, monkeypatch):
    commands, left = [], ["a case"]

    def run(command, log, site, limit):
        commands.append(command)
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"left_out": left}))
        return {"status": "passed"}

    monkeypatch.setattr(gpu, "run", run)
    for name in ("ab", "bench", "rivals"):
        left = ["a case"]
        assert gpu.STAGES[name](tmp_path, tmp_path, 90)["status"] == "partial"
        left = []
        assert gpu.STAGES[name](tmp_path, tmp_path, 90)["status"] == "passed"
        first, second = commands[-2:]
        assert "--resume" not in first and "--resume" in second
        assert [file.name for file in tmp_path.glob(f"{name}.*")] == [f"{name}.json"]


def test_samples_of_other_sources_are_not_resumed(gpu, staged, tmp_path, monkeypatch):
    staged("bad")
    samples = tmp_path / "nvidia-h100-80gb" / "bad.json"
    samples.write_text("{}")
    staged("bad")
    assert samples.exists()
    monkeypatch.setattr(gpu, "digest", lambda: "two")
    staged("bad")
    assert not samples.exists()


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("ab", "ab.py"),
        ("bench", "recurrence.py"),
        ("rivals", "recurrence.py"),
        ("paper", "paper.py"),
    ],
)
def test_stages_that_time(gpu, tmp_path, monkeypatch, name, script):
    """What is started, and that a status of 0 without samples is no pass."""
    writes = True

    def run(command, log, site, limit):
        assert command[1:4] == [str(gpu.ROOT / "benchmarks" / script), "--device", "cuda"]
        assert float(command[command.index("--budget") + 1]) < limit == 90
        assert ("--rivals" in command) == (name == "rivals")
        if writes:
            Path(command[command.index("--json") + 1]).write_text("{}")
        return {"status": "passed"}

    monkeypatch.setattr(gpu, "run", run)
    done = gpu.STAGES[name](tmp_path, tmp_path, 90)
    assert done == {"status": "passed", "samples": f"{name}.json"}
    writes = False
    assert gpu.STAGES[name](tmp_path, tmp_path, 90)["status"] == "failed"
