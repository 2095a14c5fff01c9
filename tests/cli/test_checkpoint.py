"""A checkpoint is data: it runs nothing, chooses no class, changes nothing in silence.

Seen to fail: `weights_only` left at None for a URL, Lightning's own `_parse_ckpt_path`, the class
not compared, a layer of any imported module taken, `last` looked for in the new run's folder, the
newest file taken by name, options of the checkpoint put over those that are typed, the learning
rate of the optimizer's state left, Lightning's own writer, no flush, no `_of_checkpoint`, no
`_too_large`.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import OPTIONS, TINY, error_line

from lightning_lrnn.cli import main
from lightning_lrnn.cli.fit import checkpoint_file, checkpoint_options
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.modules.checkpoint import CheckpointError, CheckpointFiles, check, read

pytestmark = [
    # fsspec keeps its connections.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # The default logger.
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]

FIT = ("--data.path=text", *OPTIONS, "--trainer.max_epochs=-1")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a checkpoint contains after two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text("def f(x):\n    return x + 1\n" * 800)
    words = ["fit", *OPTIONS, *TINY, f"--data.path={folder / 'text'}", "--model.rnn=QRNN"]
    words += ["--trainer.max_steps=2", f"--trainer.default_root_dir={folder}"]
    assert main([*words, "--model.rnn.window=3"]) == 0
    (path,) = folder.glob("checkpoints/*.ckpt")
    return read(str(path))


@pytest.fixture
def checkpoint(trained: dict[str, Any]) -> dict[str, Any]:
    """The same, to be changed."""
    return {**trained, "hyper_parameters": dict(trained["hyper_parameters"])}


class Runs:
    """What a pickle may do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command tells while it runs."""
    lines: list[str] = []
    for module in (checkpoint_file, checkpoint_options):
        monkeypatch.setattr(module, "rank_zero_info", lines.append)
    return lines


@pytest.fixture
def url() -> Any:
    """Of this folder."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(Path.cwd())))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "generate"])
def test_nothing_in_a_file_runs(
    command: str, url: str, checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**checkpoint, "more": Runs()}, "bad.ckpt")
    for path in ("bad.ckpt", f"{url}/bad.ckpt"):
        words = [path] if command == "generate" else ["--ckpt_path", path, *FIT]
        message = error_line(capsys, command, *words)
        assert f"{path} is not read: it names" in message
        assert "--weights_only=false" in message
    assert not Path("ran").exists()


def test_compare_runs_nothing_either(
    url: str, checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**checkpoint, "more": Runs()}, "bad.ckpt")
    words = ["byte_lm", "--rnn", "QRNN", "--ckpt_path", f"{url}/bad.ckpt", "--folder", "runs"]
    assert main(["compare", *words]) == 2
    assert "is not read: it names" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_a_url_is_a_checkpoint(url: str, checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint, "good.ckpt")
    assert main(["test", "--ckpt_path", f"{url}/good.ckpt", *FIT]) == 0


def test_a_file_may_run_where_the_user_says_so(checkpoint: dict[str, Any]) -> None:
    torch.save({**checkpoint, "more": Runs()}, "mine.ckpt")
    assert main(["test", "--ckpt_path", "mine.ckpt", "--weights_only=false", *FIT]) == 0
    assert Path("ran").exists()


def test_a_url_runs_nothing_in_python(url: str, checkpoint: dict[str, Any]) -> None:
    torch.save({**checkpoint, "more": Runs()}, "bad_in_python.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        LanguageModel.load_from_checkpoint(f"{url}/bad_in_python.ckpt")
    assert not Path("ran").exists()


MINE = """
from torch import nn
from lightning_lrnn.modules import LanguageModel


class Mine(LanguageModel):
    def __init__(self, measure: nn.Module | None = None, **options):
        super().__init__(**options)
"""
"""A model of one's own, with an option that is an object."""


@pytest.mark.parametrize(
    ("options", "words", "answer"),
    [
        ({"rnn": "evil.Layer"}, [], "the layer 'evil.Layer', which is neither configured nor one"),
        (
            {"rnn": {"class_path": "torch.nn.Bilinear", "init_args": {"in2_features": 3}}},
            [],
            "the layer 'torch.nn.Bilinear', which is neither",
        ),
        ({"lr": {"class_path": "evil.Layer"}}, [], "chosen.ckpt has options that do not fit"),
        (
            {"_class_path": "mine.Mine", "measure": {"class_path": "evil.Layer"}},
            ["--model=mine.Mine"],
            "chosen.ckpt has `measure` = evil.Layer, which may name code; say what it shall be",
        ),
        ({"_class_path": "evil.Model"}, [], "of the model 'evil.Model', not of lightning_lrnn"),
        (
            {},
            ["--model=SequenceClassifier", "--model.num_features=2", "--model.num_classes=2"],
            "'lightning_lrnn.modules.LanguageModel', not of lightning_lrnn.modules.SequenceClassif",
        ),
        ({"rnn": {"class_path": "QRNN", "init_args": {"winow": 3}}}, [], "winow"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_checkpoint_chooses_no_class(
    options: dict[str, Any],
    words: list[str],
    answer: str,
    checkpoint: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    checkpoint["hyper_parameters"] |= options
    torch.save(checkpoint, "chosen.ckpt")
    assert answer in error_line(capsys, "test", "--ckpt_path=chosen.ckpt", *FIT, *words)
    assert not Path("ran").exists()


def test_options_that_nobody_names_are_the_checkpoints(
    checkpoint: dict[str, Any], messages: list[str]
) -> None:
    torch.save(checkpoint, "a.ckpt")
    assert main(["test", "--ckpt_path=a.ckpt", *FIT]) == 0
    assert not messages


LR, DECAY = 0.003, 0.2


def test_what_is_typed_has_the_last_word(checkpoint: dict[str, Any], messages: list[str]) -> None:
    torch.save(checkpoint, "a.ckpt")
    Path("own.yaml").write_text("{model: {hidden_size: 16, final_lr: 0.5}}")
    words = ["fit", "--config=own.yaml", "--ckpt_path=a.ckpt", *FIT, "--trainer.max_steps=3"]
    words += [f"--model.lr={LR}", f"--model.weight_decay={DECAY}"]
    assert main(words) == 0
    assert {line.partition(" (")[0] for line in messages} == {
        "a.ckpt: lr is 0.003 as typed, not 0.005",
        "a.ckpt: weight_decay is 0.2 as typed, not 0.01",
        "a.ckpt: hidden_size is 8, not 16 as configured",
        "a.ckpt: final_lr is 0.05, not 0.5 as configured",
    }
    (path,) = Path("checkpoints").glob("*.ckpt")
    after = read(str(path))
    assert after["global_step"] == 3
    assert after["hyper_parameters"]["lr"] == LR
    for group, decay in zip(after["optimizer_states"][0]["param_groups"], (DECAY, 0), strict=True):
        # Three of fifty steps of warm-up are done.
        assert group["lr"] == pytest.approx(LR * 4 / 50)
        assert group["initial_lr"] == pytest.approx(LR)
        assert group["weight_decay"] == decay
    assert after["lr_schedulers"][0]["base_lrs"] == pytest.approx([LR, LR])


def test_what_is_typed_and_cannot_be_is_refused(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(checkpoint, "a.ckpt")
    for words in (["--model.hidden_size=16"], ["--model.rnn=SRU"]):
        assert main(["test", "--ckpt_path=a.ckpt", *FIT, *words]) == 2
        answer = capsys.readouterr().err.splitlines()[-1]
        assert "a.ckpt does not fit what is configured (" in answer
        assert f"leave out {words[0].partition('=')[0]}" in answer


LOGGED = [word for word in FIT if "logger" not in word]


@pytest.mark.parametrize("logger", ["configured", "default", "none"])
def test_last_is_that_of_the_newest_run(
    logger: str, checkpoint: dict[str, Any], messages: list[str]
) -> None:
    Path("own.yaml").write_text(
        "trainer:\n"
        "  callbacks: {class_path: ModelCheckpoint, init_args: {save_last: true}}\n"
        + {
            "configured": "  logger: {class_path: CSVLogger, init_args: {save_dir: r, name: a}}\n",
            "default": "",
            "none": "  logger: false\n",
        }[logger]
    )
    words = ["fit", "--config=own.yaml", "--ckpt_path=last", *LOGGED, *TINY]
    # As of a job that is submitted again and again.
    for steps in (2, 4, 5):
        assert main([*words, f"--trainer.max_steps={steps}"]) == 0
    first, *rest = (line for line in messages if "last checkpoint" in line)
    assert "There is no last checkpoint yet" in first
    assert [line.startswith("The last checkpoint is ") for line in rest] == [True, True]
    times = {file.stat().st_mtime_ns: file for file in Path().rglob("last*.ckpt")}
    assert read(str(times[max(times)]))["global_step"] == 5
    assert main(["test", *words[1:]]) == 0


def test_the_time_says_which_is_last(checkpoint: dict[str, Any]) -> None:
    for age, version in enumerate((7, 10, 9)):
        path = Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")
        path.parent.mkdir(parents=True)
        torch.save({**checkpoint, "global_step": version}, path)
        os.utime(path, (1000 - age, 1000 - age))
    from jsonargparse import Namespace

    file, _ = checkpoint_file.last_checkpoint(
        Namespace(logger=None, callbacks=None, default_root_dir=None)
    )
    assert file == Path("lightning_logs/version_7/checkpoints/last.ckpt")


def test_without_a_last_checkpoint_there_is_nothing_to_test(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "there is no last checkpoint, no " in error_line(
        capsys, "test", "--ckpt_path=last", *FIT
    )
    assert "`--ckpt_path best` is the best of" in error_line(
        capsys, "fit", "--ckpt_path=best", *FIT
    )


@pytest.mark.parametrize("fails", ["save", "fsync", "replace"])
def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = CheckpointFiles(), Path("folder/last.ckpt")
    files.save_checkpoint({"a": torch.zeros(3)}, path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    owner, name = {
        "save": (torch, "save"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
    }[fails]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be written .No space left"):
        files.save_checkpoint({"a": torch.ones(3)}, path)
    assert torch.load(path, weights_only=True)["a"].sum() == 0
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_fit_writes_beside_the_file_and_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        order.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        order.append(("replace", str(target.absolute())))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    assert main(["fit", *FIT, *TINY, "--trainer.max_steps=1"]) == 0
    (file,) = Path("checkpoints").absolute().iterdir()
    assert [what for what, _ in order] == ["fsync", "replace", "fsync"]
    assert order[0][1].startswith(f"{file}.") and order[1][1] == str(file)
    assert order[2][1] == str(file.parent)


def broken(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Contents by what is wrong with them; bytes are the file itself."""
    torch.save(checkpoint, "whole.ckpt")
    whole = Path("whole.ckpt").read_bytes()
    weights = checkpoint["state_dict"]
    first = next(iter(weights))
    without = {name: {k: v for k, v in checkpoint.items() if k != name} for name in checkpoint}
    options = checkpoint["hyper_parameters"]
    state = checkpoint["optimizer_states"][0]
    moments = {k: {**v, "exp_avg": torch.zeros(3, 3)} for k, v in state["state"].items()}
    return {
        "empty": b"",
        "a line": b"weights\n",
        "zeros": bytes(1000),
        "half": whole[: len(whole) // 2],
        "end cut off": whole[:-100],
        "a byte of the head": b"Q" + whole[1:],
        "a middle of zeros": whole[:500] + bytes(2000) + whole[2500:],
        "a list": [1, 2],
        "a tensor": torch.zeros(3),
        "nothing": {},
        "weights only": weights,
        "no weights": without["state_dict"],
        "weights a list": {**checkpoint, "state_dict": [1]},
        "weight a word": {**checkpoint, "state_dict": {**weights, first: "x"}},
        "weight of another shape": {**checkpoint, "state_dict": {**weights, first: torch.ones(1)}},
        "weight missing": {**checkpoint, "state_dict": {**weights, "more": torch.ones(1)}},
        "no version": without["pytorch-lightning_version"],
        "version a number": {**checkpoint, "pytorch-lightning_version": 2},
        "version a word": {**checkpoint, "pytorch-lightning_version": "new"},
        "options a list": {**checkpoint, "hyper_parameters": [1]},
        "options by number": {**checkpoint, "hyper_parameters": {1: 2}},
        "option unknown": {**checkpoint, "hyper_parameters": {**options, "no_such": 1}},
        "option a word": {**checkpoint, "hyper_parameters": {**options, "hidden_size": "x"}},
        "layers without end": {**checkpoint, "hyper_parameters": {**options, "num_layers": 10**12}},
        "a huge layer": {**checkpoint, "hyper_parameters": {**options, "hidden_size": 10**12}},
        "no layers": {**checkpoint, "hyper_parameters": {**options, "num_layers": -1}},
        "layer a number": {**checkpoint, "hyper_parameters": {**options, "rnn": 5}},
        "no optimizer": without["optimizer_states"],
        "optimizers none": {**checkpoint, "optimizer_states": []},
        "optimizer a word": {**checkpoint, "optimizer_states": ["x"]},
        "groups missing": {**checkpoint, "optimizer_states": [{**state, "param_groups": []}]},
        "moments of others": {**checkpoint, "optimizer_states": [{**state, "state": moments}]},
        "no schedule": without["lr_schedulers"],
        "schedule a word": {**checkpoint, "lr_schedulers": ["x"]},
        "rates a word": {**checkpoint, "lr_schedulers": [{"base_lrs": "x"}]},
        "loops a word": {**checkpoint, "loops": "x"},
        "loops empty": {**checkpoint, "loops": {}},
        "progress a word": {**checkpoint, "loops": {"fit_loop": {"epoch_progress": "x"}}},
        "callbacks a word": {**checkpoint, "callbacks": "x"},
        "step a word": {**checkpoint, "global_step": "x"},
        "carried a word": {**checkpoint, "carried_state": ["x"]},
        "carried of others": {**checkpoint, "carried_state": [[torch.zeros(7, 7, 7)]]},
        "carried no list": {**checkpoint, "carried_state": 3},
        "random a word": {**checkpoint, "random_state": [{"cpu": "x"}]},
        "random too short": {**checkpoint, "random_state": [{"cpu": torch.zeros(3).byte()}]},
    }


USED_BY_FIT = ("optimizer", "groups", "moments", "schedule", "rates", "loops", "progress", "step")
USED_BY_FIT += ("callbacks", "carried", "random", "no optimizer", "no schedule", "option unknown")


@pytest.mark.slow
def test_a_broken_file_is_a_sentence(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for name, content in broken(checkpoint).items():
        if isinstance(content, bytes):
            Path("broken.ckpt").write_bytes(content)
        else:
            torch.save(content, "broken.ckpt")
        commands = [["generate", "broken.ckpt", "--length=1"]]
        try:
            check(read("broken.ckpt"), "broken.ckpt", resumes=True)
        except CheckpointError as error:
            assert "broken.ckpt" in str(error) and "\n" not in str(error)
        else:
            commands += [["fit", "--ckpt_path=broken.ckpt", *FIT, "--trainer.max_steps=3"]]
        for command in commands:
            try:
                status: Any = main(command)
            except Exception as error:
                status = repr(error)
            message = capsys.readouterr().err.splitlines()[-1:]
            fine = status == 2 and "broken.ckpt" in message[0]
            if command[0] == "generate" and name.startswith(USED_BY_FIT):
                fine = fine or status == 0
            if not fine:
                wrong.append((command[0], name, status, message))
    assert not wrong, wrong


def test_what_is_no_file_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder.ckpt").mkdir()
    os.mkfifo("pipe.ckpt")
    for path in ("folder.ckpt", "pipe.ckpt", "none.ckpt", "a" * 5000, "http://127.0.0.1:9/x.ckpt"):
        for words in (["test", "--ckpt_path", path, *FIT], ["generate", path]):
            assert path in error_line(capsys, *words)


def test_weights_alone_are_read_back_as_spawned_processes_do() -> None:
    files = CheckpointFiles()
    files.save_checkpoint({"weight": torch.ones(3)}, Path("weights.ckpt"))
    assert files.load_checkpoint("weights.ckpt")["weight"].sum() == 3
