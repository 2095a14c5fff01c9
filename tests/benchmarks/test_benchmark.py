"""`benchmarks/recurrence.py`: that it runs, what it refuses to time, and what it makes of samples.

Seen to fail: a wrong implementation timed; bytes of a readout's states left out; the goals of a
void case counted; the carry left in its reference; a baseline in its own layout taken for one in
ours; a baseline that is wrong on the timed shape alone; what was left out not written; no row for a
goal.
"""

from __future__ import annotations

import json
import re

import emulated
import pytest
import torch
from fusing_backends import FUSING_BACKENDS
from host_kernel import needs_compiler
from paths import BENCHMARKS

import lightning_lrnn as lrnn


@pytest.fixture
def benchmark(benchmark_script):
    return benchmark_script("recurrence")


def test_quick(benchmark, tmp_path, capsys):
    files = {name: tmp_path / f"samples.{name}" for name in ("json", "csv", "png")}
    options = ["--quick", "--gates", "plain,gilr,lstm", "--dtypes", "float32,bfloat16"]
    for name, path in files.items():
        options += [f"--{name.replace('png', 'plot')}", str(path)]
    status = benchmark.main(options)
    assert status == 0
    report = json.loads(files["json"].read_text())
    shape = "(2, 64, 16)"
    cases = [shape, f"{shape}, gilr", f"{shape}, lstm"]
    cases += [f"{shape}, bfloat16", f"{shape}, bfloat16, gilr", f"{shape}, bfloat16, lstm"]
    assert sorted(report["samples_in_seconds"]) == sorted(cases)
    for case, samples in report["samples_in_seconds"].items():
        assert ("addcmul" in samples) == (case in (shape, f"{shape}, bfloat16"))
        assert ("eager gates + scan forward" in samples) == ("gilr" in case or "lstm" in case)
        for name in ("scan", "serial"):
            for step in ("forward", "forward + backward"):
                assert len(samples[f"{name} {step}"]) == 3
                assert report["first_call_seconds"][case][f"{name} {step}"] > 0
    rows = files["csv"].read_text().splitlines()
    assert len(rows) == 1 + sum(map(len, report["samples_in_seconds"].values()))
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(f"\n{case}\n" in shown or f"\n{case}   VOID" in shown for case in cases)


def test_budget(benchmark, tmp_path, capsys):
    """What is left out is said, written, and measured when the run is resumed."""
    path = tmp_path / "samples.json"
    quick = ["--quick", "--gates", "plain,gilr", "--json", str(path)]
    assert benchmark.main([*quick, "--budget", "1e-9"]) == 0
    assert "left out for lack of time: (2, 64, 16); (2, 64, 16), gilr" in capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["left_out"] == ["(2, 64, 16)", "(2, 64, 16), gilr"]
    report["samples_in_seconds"]["(2, 64, 16), gilr"] = kept = {"addcmul": [1.0]}
    path.write_text(json.dumps(report))
    assert benchmark.main([*quick, "--resume", str(path)]) == 0
    resumed = json.loads(path.read_text())
    assert "left_out" not in resumed and resumed["samples_in_seconds"]["(2, 64, 16), gilr"] == kept
    assert resumed["samples_in_seconds"]["(2, 64, 16)"]["scan forward"]


def test_no_device(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_a_word_that_is_no_gate(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--gates", "plain,lsmt"])
    assert "lsmt: there are plain, gilr, mingru, lstm" in capsys.readouterr().err


def test_what_is_wrong_is_not_timed(benchmark, monkeypatch, capsys):
    implementations, ours = benchmark.implementations, benchmark.implementations.ours
    wrong = lambda a, b: lrnn.linear_recurrence(a, b + 0.01)[0]  # noqa: E731
    monkeypatch.setattr(implementations, "ours", lambda *args: {**ours(*args), "baseline": wrong})
    assert benchmark.main(["--quick"]) == 0
    said = capsys.readouterr()
    assert "baseline: left out, AssertionError" in said.err and "baseline forward" not in said.out
    monkeypatch.setattr(implementations, "ours", lambda *_: {"scan": wrong})
    with pytest.raises(AssertionError, match="not close"):
        benchmark.main(["--quick"])


def test_what_is_wrong_on_the_timed_shape_is_not_timed(benchmark, monkeypatch, capsys):
    implementations, ours = benchmark.implementations, benchmark.implementations.ours

    def wrong_there(a, b):
        wrong = a.shape == benchmark.QUICK[0]
        return lrnn.linear_recurrence(a, b + 0.01 if wrong else b)[0]

    monkeypatch.setattr(
        implementations, "ours", lambda *args: {**ours(*args), "baseline": wrong_there}
    )
    assert benchmark.main(["--quick"]) == 0
    assert "baseline: left out, AssertionError" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["[its layout]", "[log a]"])
def test_baselines_of_other_sequences_are_checked_too(benchmark, form):
    implementations = benchmark.implementations
    plain, as_columns = implementations.WORKLOADS["plain"], implementations.as_columns
    judge = implementations.Judge(plain, (2, 12, 5), torch.float32, "cpu")

    def other(a, b, by=0.0):
        if form == "[log a]":
            return plain.exact(torch.exp(-a), b + by)
        return plain.exact(as_columns(a).mT, as_columns(b + by).mT).mT

    judge.check(f"baseline {form}", other)
    with pytest.raises(AssertionError):
        judge.check(f"baseline {form}", lambda a, b: other(a, b, 0.1))
    with pytest.raises(AssertionError):
        judge.check("baseline", other)


def test_what_is_slow_is_sampled_less_often(benchmark):
    from timing import FEWEST, Clock, Run, in_turn

    class Told(Clock):
        def seconds(self, run):
            return run.timed(None)

    runs = {name: Run(lambda _, time=time: time) for name, time in (("fast", 0.1), ("slow", 9.0))}
    counts = {n: len(t) for n, t in in_turn(Told("cpu"), runs, 8, "", seconds=2.0).items()}
    assert counts == {"fast": 8, "slow": FEWEST}


@pytest.mark.parametrize(
    "gate, forward, backward", [("plain", 3, 5), ("gilr", 3, 6), ("mingru", 3, 6), ("lstm", 6, 10)]
)
def test_least_traffic(benchmark, gate, forward, backward):
    """As the kernel's tests count it."""
    workload = benchmark.WORKLOADS[gate]
    for step, tensors in (("forward", forward), ("backward", backward)):
        assert workload.bytes((2, 5, 3), torch.bfloat16, step) == tensors * 60


@needs_compiler
@pytest.mark.parametrize("fusing_backend", FUSING_BACKENDS[:1], indirect=True)
def test_the_reference_has_no_carry(benchmark, fusing_backend):
    def plain(a, b):
        return lrnn.linear_recurrence(a, b, backend=fusing_backend[0])[0]

    without = benchmark.implementations.changed(plain, LRNN_CARRY="none")
    a, b = (torch.rand(1, 9000, 1, requires_grad=True) for _ in range(2))
    results = []
    for run, carry in ((plain, "folded"), (without, "none"), (plain, "folded")):
        emulated.launches.clear()
        y = run(a, b)
        results.append((y, *torch.autograd.grad(y, (a, b), torch.ones_like(y))))
        ran = [(macros["LRNN_PASS"], macros["LRNN_CARRY"]) for macros, _ in emulated.launches]
        assert ran == [("forward", carry), ("backward", carry)]
    whole, apart, again = results
    assert all(map(torch.equal, whole, again))
    # The first tile has nothing to learn; the second starts from 0 instead.
    assert torch.equal(whole[0][:, :4096], apart[0][:, :4096])
    assert not torch.equal(whole[0][:, 4096:], apart[0][:, 4096:])


def test_goals_of_a_cpu(benchmark):
    goals = benchmark.goals
    samples = {
        "addcmul": [1.2, 1.1, 1.0],
        "scan forward": [1.0, 1.1, 9.0],
        "scan forward + backward": [2.0] * 3,
        "serial forward + backward": [1.0] * 3,
        "mambapy.pscan forward + backward": [13.0] * 3,
        "assoc_scan forward + backward": [20.0] * 3,
        "assoc_scan forward": [1.0] * 3,
    }
    case = goals.Case((8, 1024, 256))
    forward, both = goals.on_cpu(case, samples)
    assert forward.reached and forward.figure == pytest.approx(1.0)
    assert not both.reached and both.figure == pytest.approx(6.5)
    assert "mambapy.pscan" in both.text
    slower = {**samples, "scan forward": [1.5] * 3}
    assert not goals.on_cpu(case, slower)[0].reached
    forward, both = goals.on_cpu(goals.Case((1, 1048576, 1)), slower)
    assert forward.reached and both.reached
    assert goals.on_cpu(goals.Case((1, 1048576, 4)), samples) == []
    assert not goals.void(samples) and goals.void({"addcmul": [1.0, 1.6, 1.7]})


def test_goals_of_a_gpu(benchmark):
    goals = benchmark.goals
    samples = {
        "copy for forward": [9.0],
        "copy for backward": [15.0],
        "scan forward": [9.5],
        "scan backward": [20.0],
        "scan forward + backward": [29.5],
        f"{goals.NO_CARRY} forward": [9.1],
        "baseline forward": [19.0],
        "other baseline forward": [30.0],
        "baseline [its layout] forward": [9.0],
        "baseline forward + backward": [40.0],
    }
    actual = {
        g.text: g for g in goals.on_cuda(goals.Case((8, 4096, 2048)), samples, baselines=True)
    }
    prefix = "(8, 4096, 2048)"
    expected = {
        f"{prefix} scan forward, % of a copy, at least 90": (900 / 9.5, True),
        f"{prefix} scan backward, % of a copy, at least 90": (75, False),
        f"{prefix} best baseline (baseline forward) / scan, at least 1.5": (2, True),
        f"{prefix} best baseline (baseline [its layout] forward) / scan, at least 0.97": (
            9 / 9.5,
            False,
        ),
        f"{prefix} best baseline (baseline forward + backward) / scan, at least 1.5": (
            40 / 29.5,
            False,
        ),
    }
    missing = actual.pop(
        f"{prefix} best baseline in its own form / scan forward + backward, at least 0.97"
    )
    assert missing.figure is None and str(missing).startswith("  not measured  ")
    assert {t: (pytest.approx(g.figure), g.reached) for t, g in actual.items()} == expected
    assert goals.of_a_copy(goals.medians(samples), "scan", "forward + backward") == (
        pytest.approx(100 * 24 / 29.5)
    )
    assert goals.percent_promised(goals.Case((1, 65536, 256), "bfloat16"), "forward") == 70
    few = goals.Case((1, 65536, 256), "bfloat16", "lstm")
    assert goals.percent_promised(few, "backward") == 70
    assert goals.percent_promised(few._replace(gate="gilr"), "backward") == 85
    small = {
        "(1, 1048576, 1) scan forward": [9e-6],
        "(1, 65536, 32) scan forward": [15e-6],
        "(1, 65536, 32) serial forward": [20e-6],
        f"(1, 65536, 32) {goals.STEPS} forward": [14e-6],
    }
    rows = goals.of_small(small)
    assert [g.reached for g in rows if g.figure is not None] == [True, False, False]
    assert len(rows) == 4 + 2 * len([*goals.SMALL, *goals.TABLE_1])
    host = {"without gradient": 24e-6, "differentiable": 50e-6}
    assert [g.reached for g in goals.of_host(host)] == [True, False]


def test_every_goal_of_a_gpu_has_a_row(benchmark, capsys):
    """Measured or not; and what is promised most of is measured first."""
    cases = benchmark.every_case("cuda", baselines=False)
    assert len(cases) == len(benchmark.SHAPES["cuda"]) * 2 * len(benchmark.WORKLOADS)
    promised = [benchmark.goals.percent_promised(case, "forward") is not None for case in cases]
    assert promised == sorted(promised, reverse=True) and not all(promised)
    path = BENCHMARKS / "results" / "nvidia-h200" / "bench.json"
    assert benchmark.main(["--device", "cuda", "--draw", "--json", str(path)]) == 0
    _, rows = capsys.readouterr().out.split("\nGoals\n")
    for case in cases:
        for step in ("forward", "backward"):
            if benchmark.goals.percent_promised(case, step) is not None:
                assert len(re.findall(rf"   {re.escape(f'{case} scan {step}, %')}", rows)) == 1
    assert re.search(r"not measured +\(1, 1048576, 32\) scan forward, % of a copy", rows)
    assert re.search(r"MISSED +80.[89]. +\(8, 4096, 2048\) scan forward, % of a copy", rows)
