"""`lightning-lrnn compare` and `plot`: what runs, what the table says, what is drawn.

Seen to fail: layers of torch.nn with every backend, and a layer twice; the user's options first;
no check before the first run; a signal taken for a status; words of the table to the left; a wrong
second; unknown options taken by every command; a folder used again; curves in the order of the
file; no group; the monitored metric overlooked; the warm-up counted; a file of
a comparison that has the last word, with steps and typed seconds; the first metric of the alphabet;
a run of `test` drawn; words of others among the lines of JSON; a folder of failures kept.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import ROOT
from wandb_file import group

from lightning_lrnn.backends import kernel_cache
from lightning_lrnn.cli import main, plot
from lightning_lrnn.cli.compare import comparison
from lightning_lrnn.cli.compare import run as one_run
from lightning_lrnn.cli.compare.comparison import LayerRun, commands, layer_runs
from lightning_lrnn.cli.compare.figure import _label, rounded
from lightning_lrnn.cli.compare.table import results_table, summary
from lightning_lrnn.cli.fit import parse
from lightning_lrnn.cli.plot import PlotError, Run, _chosen, runs_in
from lightning_lrnn.core.checks import UserError

COMPARISONS = sorted(ROOT.glob("configs/comparisons/*.yaml"))
OPTIONS = (
    "--data.path=text",
    "--data.batch_size=2",
    "--data.window",
    "16",
    "--model.hidden_size=8",
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=2",
)
CRASHING = """
from torch import nn

class Layer(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()

    def forward(self, x, state=None, reset=None):
        raise RuntimeError("on purpose\\nand more of it")
"""
KILLED = """
import os, signal, sys
print("the last words", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
WIDTH = 1600  # pixels, for 800 on a page


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a user's mistake is answered with: one line on stderr, status 2."""
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-lrnn: ")
    assert error.count("\n") == 1
    return error


def size(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def test_a_layer_of_ones_own_takes_backends(tmp_path: Path, monkeypatch: Any) -> None:
    """Seen to fail: it ran once, whatever backends were asked for."""
    (tmp_path / "own_stack.py").write_text(
        "from lightning_lrnn.nn import GILR\nimport torch\n"
        "class Derived(GILR):\n    pass\nclass Other(torch.nn.GRU):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert layer_runs(["own_stack.Derived", "own_stack.Other"], ["scan", "serial"]) == [
        LayerRun("own_stack.Derived", "scan"),
        LayerRun("own_stack.Derived", "serial"),
        LayerRun("own_stack.Other", None),
    ]


def test_layers_of_pytorch_run_once() -> None:
    actual = layer_runs(
        ["torch.nn.LSTM", "QRNN", "lightning_lrnn.nn.QRNN", "own.Layer"], ["a", "b"]
    )
    assert actual == [
        LayerRun("torch.nn.LSTM", None),
        LayerRun("QRNN", "a"),
        LayerRun("QRNN", "b"),
        LayerRun("own.Layer", None),
    ]
    assert [run.label for run in actual] == ["torch.nn.LSTM", "QRNN-a", "QRNN-b", "own.Layer"]


@pytest.mark.parametrize("form", [lambda rnn: rnn, json.dumps], ids=["mapping", "json"])
def test_a_layer_with_options(form: Any) -> None:
    """Seen to fail: a mapping was an AttributeError, and JSON had no backends and a label of JSON.

    Others seen to fail: options left out of the folder; a layer without options as JSON.
    """
    three, plain = {"window": 3, "memory": [2, 50]}, {"class_path": "QRNN", "init_args": {}}
    rnns = [
        {"class_path": "lightning_lrnn.nn.QRNN", "init_args": three},
        {"class_path": "torch.nn.LSTM", "init_args": {"bias": False}},
        plain,
    ]
    actual = layer_runs([*map(form, rnns), "QRNN"], ["scan", "serial"])
    layer, lstm = "QRNN(window=3, memory=[2, 50])", "torch.nn.LSTM(bias=false)"
    assert list(map(str, actual)) == [
        f"{layer} scan", f"{layer} serial", lstm, "QRNN scan", "QRNN serial"
    ]  # fmt: skip
    assert [run.label for run in actual[:4]] == [
        "QRNN_window_3_memory_2_50-scan",
        "QRNN_window_3_memory_2_50-serial",
        "torch.nn.LSTM_bias_false",
        "QRNN-scan",
    ]
    lines = commands("byte_lm", actual, [], Path("runs"), None)
    config = find(parse([*lines[0][:1], f"--config={ROOT}/configs/byte_lm.yaml", *lines[0][2:]]))
    assert config.class_path == "lightning_lrnn.nn.QRNN" and config.init_args.window == 3
    assert lines[3][2] == "--model.rnn=QRNN"


def find(config: Any) -> Any:
    return config.fit.model.init_args.rnn


def test_a_comparison_of_layers_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        comparison, "_run", lambda _, words, *rest: seen.append(words) or {"error": "", "log": ""}
    )
    Path("own.yaml").write_text(
        "config: byte_lm\nrnn: [{class_path: QRNN, init_args: {window: 3}}, torch.nn.GRU]\n"
    )
    assert main(["compare", "own.yaml"]) == 2
    assert [words[2] for words in seen] == [
        '--model.rnn={"class_path": "QRNN", "init_args": {"window": 3}}',
        "--model.rnn=torch.nn.GRU",
    ]
    results = json.loads(Path("runs/compare/own/results.json").read_text())
    assert [run["rnn"] for run in results["runs"]] == ["QRNN(window=3)", "torch.nn.GRU"]


def test_options_of_the_user_have_the_last_word(tmp_path: Path) -> None:
    (words,) = commands("c.yaml", [LayerRun("QRNN", "scan")], ["--model.lr=1"], tmp_path, None)
    assert words[:4] == ["fit", "--config=c.yaml", "--model.rnn=QRNN", "--model.backend=scan"]
    assert words.index("--model.lr=1") > words.index("--trainer.enable_progress_bar=false")


@pytest.mark.slow
def test_a_comparison(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    has_wandb = importlib.util.find_spec("wandb") is not None
    if has_wandb:  # whose process would be shared
        import wandb

        request.addfinalizer(wandb.teardown)
        wandb.setup()
        assert "WANDB_SERVICE" in os.environ
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(Path(variable).absolute()))
    Path("crashing.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    words = ["compare", "byte_lm", "--rnn", "torch.nn.GRU", "crashing.Layer", "QRNN"]
    words += ["--backend", "serial", "--steps", "8", "--name", "mine"]
    assert main([*words, *(["--wandb"] if has_wandb else []), *OPTIONS]) == 0
    said = capfd.readouterr().out

    folder = Path("runs/compare/mine")
    results = json.loads((folder / "results.json").read_text())
    gru, crashed, qrnn = results["runs"]
    for run, parameters in ((gru, 2 * 8 * 8 * 3), (qrnn, 2 * 8 * 8 * 3)):
        assert run["steps"] == 8
        assert run["timed_steps"] == 3
        assert 0 < run["milliseconds"] < 1e3 * run["seconds"]
        assert run["parameters"] > parameters
        assert 1 < run["metrics"]["val/bits_per_byte"] < 9
        assert run["monitor"] == "val/bits_per_byte" and run["mode"] == "min"
        assert run["megabytes"] > 0
    assert (gru["ran"], qrnn["ran"]) == (None, "serial")
    assert crashed["error"] == "RuntimeError: on purpose"
    assert "Traceback" in Path(crashed["log"]).read_text()
    assert results["metrics"] == ["val/bits_per_byte"]
    assert results["options"][:2] == ["--trainer.max_steps=8", "--trainer.max_epochs=-1"]

    table = (folder / "table.txt").read_text()
    assert table in said
    rows = [line.split() for line in table.splitlines()[4:7]]
    assert [row[:2] for row in rows] == [
        ["torch.nn.GRU", "-"],
        ["crashing.Layer", "-"],
        ["QRNN", "serial"],
    ]
    assert rows[1][2:] == ["failed:", "RuntimeError:", "on", "purpose"]
    assert float(rows[0][2]) == pytest.approx(gru["metrics"]["val/bits_per_byte"], rel=0.01)
    assert "[3/3] QRNN serial: val/bits_per_byte" in said
    assert size(folder / "compare.png") == (WIDTH, 2 * (130 + 2 * 36))
    if has_wandb:
        groups = {label: group(folder / label) for label in ("torch.nn.GRU", "QRNN-serial")}
        assert set(groups.values()) == {"mine"}

    # The same command again would mix two comparisons.
    assert "exists; give another --name" in error_line(capfd, *words)
    # What it left can be drawn.
    assert main(["plot", str(folder)]) == 0
    assert capfd.readouterr().out.strip() == str(folder / "plot.png")
    assert size(folder / "plot.png")[0] == WIDTH


def test_all_of_them_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead_of_children(monkeypatch, """print('{"error": "it cannot be"}')""")
    words = ["compare", "byte_lm", "--rnn", "QRNN", "GILR", "--steps", "2"]
    assert "no run has come to an end" in error_line(capsys, *words)
    results = json.loads(Path("runs/compare/byte_lm/results.json").read_text())
    assert [run["error"] for run in results["runs"]] == ["it cannot be"] * 2
    # Another comparison under the name of the config gets a number.
    assert main(words) == 2
    assert Path("runs/compare/byte_lm-2/results.json").is_file()


@pytest.mark.slow
def test_an_error_of_the_data_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: it was told for each layer and again in the table.

    Others seen to fail: the log left behind; an error of the second run that ends them all.
    """
    words = ["--data.path=nowhere", "--model.hidden_size=8"]
    assert main(["compare", "byte_lm", "--rnn", "GILR", "QRNN", *words]) == 2
    out, error = capsys.readouterr()
    assert "nowhere" in error and error.count("\n") == 1
    assert out.count("\n") == 1 and out.startswith("Into ")
    assert not list(Path("runs/compare").iterdir())


@pytest.mark.parametrize("wrong", ["--data.batch_size=0", "Digits"])
def test_a_run_says_that_an_error_is_of_the_data(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, words, sentence = "byte_lm", ["--data.path=text", wrong], "`batch_size` must be"
    if wrong == "Digits":
        Path("sklearn.py").write_text("raise ModuleNotFoundError(name='sklearn')")
        monkeypatch.syspath_prepend(Path.cwd())
        for name in ("sklearn", "sklearn.datasets"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        config, words, sentence = "digits", [], 'pip install "scikit-learn"`'
    # The descriptors stay those of the tests.
    out, descriptors = io.StringIO(), SimpleNamespace(dup=lambda n: n, dup2=lambda *_: None)
    descriptors.fdopen = lambda *_: out
    monkeypatch.setattr(one_run, "os", descriptors)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # taken back
    assert one_run.main(["fit", f"--config={ROOT}/configs/{config}.yaml", *words]) == 1
    answer = json.loads(out.getvalue())
    assert answer["of_data"] and sentence in answer["error"]


def test_an_error_of_the_data_after_the_first_run_is_in_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = iter([{"error": "killed", "log": ""}, {"error": "gone", "log": "", "of_data": True}])
    monkeypatch.setattr(comparison, "_run", lambda *_: next(outcomes))
    results = comparison.run(f"{ROOT}/configs/byte_lm.yaml", ["GILR", "QRNN"], ["auto"], [], Path())
    assert [run["error"] for run in results["runs"]] == ["killed", "gone"]


def test_ctrl_c_leaves_what_has_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: nothing was printed, and there was no table."""
    done = {"monitor": None, "mode": None, "metrics": {"val/loss": 0.5}, "steps": 2, "seconds": 1}
    done |= {"milliseconds": 1, "parameters": 12, "megabytes": 1, "device": "cpu", "threads": 1}
    outcomes = iter([done, None])

    def of_one(*_: Any) -> Any:
        if (outcome := next(outcomes)) is None:
            raise KeyboardInterrupt
        return dict(outcome)

    monkeypatch.setattr(comparison, "_run", of_one)
    assert main(["compare", "byte_lm", "--rnn", "GILR", "QRNN", "SRU", "--steps", "2"]) == 130
    out = capsys.readouterr().out
    folder = Path("runs/compare/byte_lm")
    assert (folder / "table.txt").read_text() in out
    assert "\nGILR   auto          0.5" in out
    assert f"Stopped: 1 of 3 runs have ended; {folder}/results.json has their numbers\n" in out
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 1


def instead_of_children(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    popen = subprocess.Popen
    child = [sys.executable, "-c", script]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(child, **options))


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, list, list, list, Path]:
    """Config, layers, backends, options and folder of a comparison."""
    actual: list[tuple] = []
    results = {"runs": [{"error": ""}]}
    monkeypatch.setattr(comparison, "run", lambda *a: (actual.append(a[:5]), results)[1])
    assert main(["compare", *words]) == 2  # Without a run that came to an end.
    return actual[0]


@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_every_task_has_a_comparison(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"comparisons/{file.stem}"
    assert f"\n# lightning-lrnn compare {name}\n" in file.read_text()
    config, rnns, backends, options, folder = asked(monkeypatch, name, "--model.dropout=0")
    assert Path(config) == file.parent.parent / file.name.replace("_cells", "")
    assert rnns == ["torch.nn.LSTM", "GILRLSTM", "QRNN", "MinGRU"] and backends == ["auto"]
    assert options[-1] == "--model.dropout=0"
    assert folder == Path("runs/compare", file.stem)
    # The same layers for each task: one of them for each.
    rnn = rnns[COMPARISONS.index(file) % len(rnns)]
    parse(["fit", f"--config={config}", f"--model.rnn={rnn}", *options])


def test_there_is_a_comparison_for_every_task() -> None:
    tasks = {"byte_lm", "digits", "forecast", "spoken_digits", "tokens"}
    assert {file.stem for file in COMPARISONS} == {f"{task}_cells" for task in tasks}


def test_a_comparison_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("mine/small.yaml").write_text("model: LanguageModel")
    Path("mine/layers.yaml").write_text(
        "{config: small.yaml, rnn: [GILR], backend: [serial], seconds: 90}"
    )
    config, *rest, folder = asked(monkeypatch, "mine/layers.yaml")
    assert (Path(config), folder.name) == (Path("mine/small.yaml"), "layers")
    assert rest == [["GILR"], ["serial"], ["--trainer.max_time=00:00:01:30"]]
    # What is typed has the last word.
    words = ["--rnn", "SRU", "--backend", "scan", "auto", "--steps", "7"]
    _, *rest, _ = asked(monkeypatch, "mine/layers.yaml", *words)
    limits = ["--trainer.max_steps=7", "--trainer.max_epochs=-1"]
    assert rest == [["SRU"], ["scan", "auto"], limits]


def test_the_loop_of_the_page_compares_seeds_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/looking.md").read_text()
    (loop,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    say = "lightning-lrnn() { printf '%s\\n' \"$*\"; }\n"
    said = subprocess.run(["bash", "-c", say + loop], capture_output=True, text=True, check=True)
    *lines, last = [line.split() for line in said.stdout.splitlines()]
    assert last[0] == "plot" and len(lines) == 6
    folders, seen = set(), set()
    for words in lines:
        config, rnns, _, options, folder = asked(monkeypatch, *words[1:])
        assert rnns == ["GILRLSTM", "torch.nn.GRU"] and folder.parent == Path(last[1])
        actual = parse(["fit", f"--config={config}", *options]).fit
        assert actual.trainer.max_steps == 400
        folders.add(folder)
        seen.add((actual.model.init_args.lr, actual.seed_everything))
    assert len(folders) == 6 and seen == set(product((0.003, 0.01), (0, 1, 2)))


def test_the_layers_with_options_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/looking.md").read_text()
    (rnns,) = re.findall(r"^rnn: .*class_path.*$", page, re.M)
    Path("own.yaml").write_text(f"config: byte_lm\n{rnns}\n")
    actual = layer_runs(asked(monkeypatch, "own.yaml")[1], ["auto"])
    assert list(map(str, actual)) == ["QRNN auto", "QRNN(window=3) auto", "own.Leaky"]
    (line,) = re.findall(r"^lightning-lrnn (compare .*class_path.*)$", page, re.M)
    actual = layer_runs(asked(monkeypatch, *shlex.split(line)[1:])[1], ["auto"])
    assert list(map(str, actual)) == ["QRNN auto", "QRNN(window=3) auto"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("config: byte_lm", "name the layers, such as --rnn"),
        ("{config: byte_lm, rnn: GILR}", "rnn (list), backend (list), steps (int)"),
        ("{config: byte_lm, layers: [GILR]}", "got `layers: ['GILR']`"),
        ("{config: nothing, rnn: [GILR]}", "there is no config nothing, neither a file nor one of"),
        ("{config: byte_lm, rnn: [3]}", "{class_path: name, init_args: {option: value}}, got 3"),
        ("{config: byte_lm, rnn: [{init_args: {}}]}", 'got {"init_args": {}}'),
        ("{config: byte_lm, rnn: [GILR], backend: [3]}", "there is no backend 3; known are"),
        ("config: [", "own.yaml is no YAML: while parsing"),
    ],
)
def test_a_comparison_that_cannot_be(
    text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.yaml").write_text(text)
    assert sentence in error_line(capsys, "compare", "own.yaml")
    assert not Path("runs").exists()


def test_a_run_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_children(monkeypatch, KILLED)
    outcome = comparison._run("", [], tmp_path / "run", {})
    assert outcome["error"] == "ended with signal SIGKILL; the last words"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the peak is known")
def test_memory_is_what_the_process_grew_by() -> None:
    # Bytes of the process that starts it must not count, nor those that were there before.
    script = (
        "from lightning_lrnn.core.process_memory import process_memory, process_peak\n"
        "earlier = bytearray(b'x' * 200_000_000); del earlier\n"
        "before = process_memory()\n"
        "block = bytearray(b'x' * 50_000_000); del block\n"
        "print(process_peak() - before)"
    )
    of_parent = bytearray(b"x" * 400_000_000)
    grown = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    del of_parent
    # While it is made there is a second one.
    assert 50e6 < int(grown.stdout) < 120e6


def test_table_of_all_metrics_where_none_is_monitored() -> None:
    run = {"rnn": "QRNN", "backend": "auto", "ran": "auto (scan)", "monitor": None, "mode": None}
    run |= {"metrics": {"val/loss": 0.123456, "val/accuracy": 0.5}, "steps": 1200, "seconds": 3.0}
    run |= {"milliseconds": 1.23456, "parameters": 12345, "megabytes": None}
    run |= {"device": "NVIDIA H100", "threads": 4}
    results = summary("folder/c.yaml", [], [run])
    table = results_table(results).splitlines()
    assert table[0] == "c, 1,200 steps each, NVIDIA H100"
    assert table[2].split("  ")[0] == "layer"
    for word in ("val/loss", "val/accuracy", "MB on the GPU"):
        assert word in table[2]
    assert table[4].split() == "QRNN auto (scan) 0.123 0.5 1.23 1,200 12,345 -".split()
    assert len(table[2]) == len(table[3]) == len(table[4])


def test_one_is_told_in_the_singular(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: "1 steps each, CPU, 1 threads", and "1 files deleted"."""
    run = {"rnn": "QRNN", "ran": None, "monitor": None, "mode": None, "metrics": {}, "steps": 1}
    run |= {"seconds": 1, "device": "cpu", "threads": 1}
    assert summary("c.yaml", [], [run])["what"] == "c, 1 step each, CPU, 1 thread"
    run |= {"steps": 1200, "threads": 2}
    assert summary("c.yaml", [], [run])["what"] == "c, 1,200 steps each, CPU, 2 threads"
    monkeypatch.setenv("LIGHTNING_LRNN_CACHE", "kernels")
    Path("kernels").mkdir()
    for count, counted in {1: "1 file deleted", 0: "0 files deleted"}.items():
        monkeypatch.setattr(kernel_cache, "clear_cache", lambda count=count: (count, 0))
        assert main(["cache", "clear"]) == 0
        assert counted in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["compare", "none", "--rnn", "QRNN"], "there is no config none, neither a file nor one"),
        (["compare", "byte_lm"], "name the layers, such as --rnn"),
        (["compare", "byte_lm", "--rnn", "QRRN"], "QRRN: Parser key"),
        (["compare", "byte_lm", "--rnn", "QRNN", "--model.hiden=3"], "'hiden' is not accepted"),
        (["compare", "byte_lm", "--rnn", "QRNN", "--backend", "fast"], "no backend 'fast'"),
        (["compare", "byte_lm", "--rnn", "QRNN", "--steps", "1", "--seconds", "1"], "not allowed"),
        (["compare", "byte_lm", "--rnn", "{QRNN"], "--rnn {QRNN is no JSON: while parsing"),
        (["compare", "byte_lm", "--rnn", "{window: 3}"], "is a name or {class_path: name, init_"),
        (["compare", "byte_lm", "--rnn", "{class_path: QRNN, window: 3}"], 'got "{class_path: QR'),
        (["compare", "byte_lm", "--rnn", "{a: 1, a: 2}"], "has the key 'a' twice"),
        (["compare", "byte_lm", "--rnn", "QRNN", "--steps", "0"], "0 is not a positive number"),
        (["plot", "none"], "there is no folder none"),
        (["plot", "."], "has no metrics.csv"),
        (["plot", "text"], "text is not a file of a CSVLogger"),
        (["cells", "--further"], "unrecognized arguments: --further"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_a_sentence(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer in error_line(capsys, *words)
    assert not list(Path().glob("runs/compare/*"))


def test_seconds_are_the_trainers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(config: str, rnns: Any, backends: Any, further: Any, *rest: Any) -> Any:
        seen.append(further)
        raise UserError("enough")

    monkeypatch.setattr(comparison, "run", stop)
    words = ["compare", "byte_lm", "--rnn", "QRNN", "--seconds"]
    for seconds in ("90", "100000"):
        assert main([*words, seconds, "--model.lr=1"]) == 2
    assert seen == [
        ["--trainer.max_time=00:00:01:30", "--model.lr=1"],
        ["--trainer.max_time=01:03:46:40", "--model.lr=1"],
    ]


def write(folder: Path, *rows: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    names = sorted({name for row in rows for name in row})
    lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([",".join(names), *lines]) + "\n")


def test_curves_and_horizons_are_read() -> None:
    horizon = {
        f"horizon/rnn.layer0.forward.cell/{q}": v
        for q, v in zip(("p10", "p50", "p90"), "123", strict=True)
    }
    write(Path("a/one"), {"step": 9, "train/loss": 2.5, "epoch": 0}, {"step": 4, "train/loss": 3})
    write(Path("a/two"), {"step": 10, "val/loss": 2, **horizon}, {"step": 20, "val/loss": 1})
    one, two = runs_in([Path("a")])
    assert (one.name, two.name) == ("one", "two")
    assert one.curves == {"train/loss": [(4, 3.0), (9, 2.5)]}
    assert one.horizons() == {}
    assert two.horizons() == {
        "rnn.layer0.forward.cell": {"p10": [(10, 1.0)], "p50": [(10, 2.0)], "p90": [(10, 3.0)]}
    }
    assert [run.name for run in runs_in([Path("a/two/metrics.csv")])] == ["two"]
    assert main(["plot", "a/one", "a/two", "--output", "both.png"]) == 0
    assert main(["plot", "a/one", "--metric", "loss"]) == 0
    assert size(Path("both.png"))[0] == size(Path("a/one/plot.png"))[0] == WIDTH
    with pytest.raises(PlotError, match="no run has logged accuracy; there are loss"):
        _chosen([one, two], "accuracy")
    Path("a/empty").mkdir()
    Path("a/empty/metrics.csv").write_text("step,train/loss\n")
    with pytest.raises(PlotError, match="has no figures yet"):
        runs_in([Path("a/empty")])
    # One that has logged nothing keeps no others from being drawn.
    assert main(["plot", "a"]) == 0


def test_ten_runs_of_two_layers_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: one label on the axis, two layers with the same line, names that are double.

    Others seen to fail: a name that two runs have; names that lose their backend.
    """
    layers = {f"rnns.{i}.cell": i for i in (0, 1)}
    for number in range(10):
        name = ("QRNN", "own.Leaky")[number % 2]
        rows: list[dict[str, float]] = [{"step": k, "val/loss": 9 / k} for k in (1, 2, 3)]
        for row in rows:
            for layer, i in layers.items():
                row |= {f"horizon/{layer}/{q}": 10 + 20 * i + number for q in ("p10", "p50", "p90")}
        write(Path(f"sweep/{name}-lr{number}/{name}-auto"), *rows)
    drawn: list[Any] = []
    monkeypatch.setattr(plot, "write", lambda figure, path: drawn.append(figure) or path)
    assert main(["plot", "sweep"]) == 0
    (figure,) = drawn
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_ylim()
    ticks = zip(
        figure.axes[1].get_yticks(), figure.axes[1].get_yticklabels(), strict=True
    )  # Those outside are not drawn.
    assert len([t for tick, t in ticks if low <= tick <= high and t.get_text()]) >= 4
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata())]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 20
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    runs = [f"{('QRNN', 'own.Leaky')[n % 2]}-lr{n}" for n in range(10)]
    assert sorted(names) == sorted([*runs, *layers])


def test_names_of_runs_say_nothing_twice() -> None:
    def short(*names: str) -> list[str]:
        return plot._short([tuple(name.split("/")) for name in names])

    assert short("QRNN-lr1/QRNN-auto", "b/GRU") == ["QRNN-lr1", "b/GRU"]
    assert short("GILR/GILR-scan", "QRNN-a/GILR-auto") == ["GILR/GILR-scan", "QRNN-a/GILR-auto"]
    # Where that leaves two the same name, all are whole.
    assert short("QRNN/QRNN-auto", "QRNN/QRNN") == ["QRNN/QRNN-auto", "QRNN/QRNN"]


def test_names_of_any_project_have_a_stage() -> None:
    """Seen to fail: a project that logs "loss" and "val_loss" had nothing to draw."""
    write(
        Path("own/one"),
        {"step": 1, "loss": 3, "val_loss": 2, "lr-Adam": 0.1, "test_acc": 1, "horizon/l/p50": 5},
        {"step": 2, "loss": 2, "valid_loss": 1.5, "val_": 1},
    )
    (run,) = runs_in([Path("own")])
    assert run.curves == {
        "train/loss": [(1, 3.0), (2, 2.0)], "val/loss": [(1, 2.0), (2, 1.5)], "lr-Adam": [(1, 0.1)],
        "test/acc": [(1, 1.0)], "horizon/l/p50": [(1, 5.0)], "train/val_": [(2, 1.0)],
    }  # fmt: skip
    assert _chosen([run], None) == "loss"
    assert main(["plot", "own"]) == 0


def test_what_cannot_be_drawn_is_a_gap_or_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [{"step": k, "train/loss": v, "val/$a$^{": v} for k, v in enumerate((1, inf, nan, -inf))]
    write(Path("odd/$x$_{"), *rows)
    write(Path("odd/none"), {"step": 1, "train/loss": inf, "val/$a$^{": inf})
    assert main(["plot", "odd"]) == 0
    assert size(Path("odd/plot.png"))[0] == WIDTH
    capsys.readouterr()
    write(Path("steps"), {"step": inf, "train/loss": 1})
    write(Path("long"), {"step": 1, "train/loss": 1})
    Path("long/metrics.csv").write_text("step,train/loss\n1," + "1" * 200_000)
    write(Path("good"), {"step": 1, "train/loss": 1})
    for words, answer in {
        ("steps",): "steps/metrics.csv is not a file of a CSVLogger",
        ("long",): "long/metrics.csv is not a file of a CSVLogger",
        ("good", "--output", "odd"): "cannot be written to odd, a folder",
        ("good", "--output", "good/metrics.csv/a.png"): "good/metrics.csv/a.png cannot be written",
        ("good", "--output", "a.doc"): "the figure cannot be made: Format 'doc' is not supported",
    }.items():
        assert answer in error_line(capsys, "plot", *words)


def test_the_metric_that_is_drawn() -> None:
    def run(*names: str, points: int = 2, monitor: str | None = None) -> Run:
        return Run("", {name: [(k, 0.0) for k in range(points)] for name in names}, monitor)

    names = ("train/loss", "val/loss", "val/accuracy", "val/zeta", "train/tokens_per_second")
    assert _chosen([run(*names)], None) == "loss"
    assert _chosen([run(*names, monitor="val/zeta")], None) == "zeta"
    assert _chosen([run(*names, monitor="val/zeta"), run("val/loss")], None) == "loss"
    assert _chosen([run("train/loss", "train/steps_per_second")], None) == "loss"
    # A single dot is no curve, and what `test` logs is none of training.
    once = Run("", {"val/f1": [(9, 0.5)], "train/loss": [(4, 2.0), (9, 1.0)]}, "val/f1")
    assert _chosen([once, run("test/accuracy")], None) == "loss"
    assert _chosen([run("val/f1", "val/loss", points=1, monitor="val/f1")], None) == "f1"
    with pytest.raises(PlotError, match="no run has logged a metric of training"):
        _chosen([run("horizon/a/p50", "train/steps_per_second")], None)


def test_runs_without_the_metric_are_not_in_the_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        plot, "_draw_curves", lambda _, runs, m: drawn.append([r.name for r in runs])
    )
    for name in ("one", "two"):
        write(
            Path("a", name), {"step": 4, "train/loss": 3, "val/f1": 0.1}, {"step": 9, "val/f1": 1}
        )
        Path("a", name, "config.yaml").write_text(
            "trainer: {callbacks: [{init_args: {monitor: val/f1}}]}"
        )
    write(Path("a/other"), {"step": 4, "train/loss": 3}, {"step": 9, "train/loss": 2})
    write(Path("a/tested"), {"step": 9, "test/f1": 1})
    actual = {run.name: run.monitor for run in runs_in([Path("a")])}
    assert actual == {"one": "val/f1", "two": "val/f1", "other": None, "tested": None}
    assert main(["plot", "a"]) == 0
    assert main(["plot", "a", "--metric", "loss"]) == 0
    assert drawn == [["one", "two"], ["one", "other", "two"]]


def test_bars_say_how_large_each_model_is() -> None:
    run = {"rnn": "QRNN", "ran": "auto (scan)", "parameters": 396_288}
    assert _label(run) == "QRNN auto (scan)\n396 k parameters"
    assert [rounded(n) for n in (12, 999_600, 1_234_567)] == ["12", "1 M", "1.23 M"]


def test_a_comparison_without_results_may_be_started_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", "byte_lm", "--rnn", "QRNN", "--steps", "2", "--name", "mine"]

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_run", interrupted)
        assert main(words) == 130
    assert capsys.readouterr().out.endswith("\nStopped: 0 of 1 runs have ended\n")
    instead_of_children(monkeypatch, """print('{"error": "it cannot be"}')""")
    for _ in range(2):
        assert "no run has come to an end" in error_line(capsys, *words)
    file = Path("runs/compare/mine/results.json")
    file.write_text(json.dumps({"runs": [{"error": "it cannot be"}, {"metrics": {}}]}))
    assert "exists; give another --name" in error_line(capsys, *words)
    # Another process may be at it.
    file.unlink()
    assert "exists; give another --name" in error_line(capsys, *words)


def test_what_others_write_to_stdout_is_in_the_log(tmp_path: Path) -> None:
    # As wandb does at the end, past `sys.stdout`.
    script = (
        "import atexit, os, sys; from lightning_lrnn.cli.compare import run\n"
        "atexit.register(os.write, 1, b'a footer\\n')\n"
        "run._run = lambda *_: print('hello', file=sys.__stdout__) or {'steps': 1}\n"
        "sys.exit(run.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"result": {"steps": 1}}
    assert sorted(done.stderr.splitlines()) == ["a footer", "hello"]
