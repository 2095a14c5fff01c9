"""Bad words and bad YAML on the command line: one sentence on stderr, status 2, no traceback.

A row is what is typed, or the text of a config, and words of the answer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import OPTIONS, TINY, error_line

from lightning_lrnn.cli import main

SHORT = ("--data.path=text", *OPTIONS, *TINY, "--trainer.max_steps=1")
FORECAST = (
    *("--model=Forecaster", "--model.num_features=2", "--model.horizon=1"),
    *("--data=SequenceTable", "--data.path=t.csv", "--data.task=forecast", "--data.target=x"),
    *("--data.window=2", "--data.horizon=1", "--model.hidden_size=8", "--model.num_layers=1"),
    *(word for word in OPTIONS if not word.startswith("--data.window")),
)
COUNT = "must be an integer of at least 1, got "


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)
    Path("t.csv").write_text("x,t\n" + "\n".join(f"{i},{i}" for i in range(60)))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("", "COMMAND"),
        ("--nothing", "the following arguments are required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("backends extra", "unrecognized arguments: extra"),
        ("cells --all", "unrecognized arguments: --all"),
        ("generate", "the following arguments are required: checkpoint"),
        ("generate none.ckpt", "there is no checkpoint none.ckpt"),
        ("generate .", "there is no checkpoint ., it is not a file"),
        ("generate text", "text cannot be read as a checkpoint"),
        ("generate text extra", "unrecognized arguments: extra"),
        ("generate text --backend fast", "there is no backend 'fast'; known are"),
        ("generate text --backend", "argument --backend: expected one argument"),
        ("generate text --length 0", "0 is not a positive number"),
        ("generate text --length 1.5", "invalid int value: '1.5'"),
        ("generate text --temperature warm", "invalid float value: 'warm'"),
        ("generate text --temperature nan", "nan is not a positive number"),
        ("generate text --prompt ", "the prompt is empty"),
        ("generate text --seed x", "invalid int value: 'x'"),
        ("generate text --seed -1", "-1 is no number of at least 0"),
        ("plot", "the following arguments are required: runs"),
        ("plot none", "there is no folder none"),
        ("plot .", "has no metrics.csv"),
        ("plot text", "text is not a file of a CSVLogger"),
        ("compare", "the following arguments are required: CONFIG"),
        ("compare none --rnn QRNN", "there is no config none, neither a file nor one of adding"),
        ("compare byte_lm", "name the layers, such as --rnn torch.nn.LSTM GILRLSTM QRNN"),
        ("compare byte_lm --rnn", "argument --rnn: expected at least one argument"),
        ("compare byte_lm --rnn QRNN --steps 0", "0 is not a positive number"),
        ("compare byte_lm --rnn QRNN --steps 1 --seconds 1", "not allowed with argument --steps"),
        ("compare byte_lm --rnn QRNN --wandb sometimes", "invalid choice: 'sometimes'"),
        ("compare byte_lm --rnn QRNN --name text --folder .", "text exists; give another --name"),
        ("configs", "the following arguments are required: ACTION"),
        ("configs show", "invalid choice: 'show'"),
        ("configs copy", "the following arguments are required: NAME"),
        ("configs copy none", "there is no config none; known are: adding.yaml, byte_lm"),
        ("configs copy byte_lm text", "text exists; --force overwrites it"),
        ("configs copy byte_lm no/folder.yaml", "there is no folder no"),
        ("cache", "the following arguments are required: ACTION"),
        ("cache empty", "invalid choice: 'empty'"),
        ("demo", "the following arguments are required: DEMO"),
        ("demo none", "invalid choice: 'none'"),
        ("demo text --seconds 0", "0 is not a positive number"),
        ("demo text --folder text", "text cannot be used (File exists); choose another"),
        ("demo switch --folder text", "text/data cannot be used (Not a directory)"),
        ("demo long-memory --folder text/a", "text/a cannot be used (Not a directory)"),
        ("demo text --seed -1", "-1 is no number of at least 0"),
        ("demo switch --rnn GRUU", "there is no layer 'GRUU'; known are GILR, "),
        ("demo switch --steps 0", "0 is not a positive number"),
        ("demo long-memory --steps many", "invalid int value: 'many'"),
        ("fit extra", "unrecognized arguments: extra"),
        ("fit --confg=x.yaml", "unrecognized arguments: --confg=x.yaml"),
        ("fit --config none.yaml", "none.yaml"),
        ("fit --config=.", "Path is not a file"),
        ("fit --trainer.wrong=1", "unrecognized arguments: --trainer.wrong=1"),
        ("fit --trainer.max_steps=many", "Expected a <class 'int'>. Got value: many"),
        ("fit --trainer.callbacks+=NoSuch", "Got value: NoSuch"),
        ("fit --seed_everything=many", "Got value: many"),
        ("fit --model=NoModel", "there is no class 'NoModel' for `--model`"),
        ("fit --model=no.such.Model", "there is no class 'no.such.Model' for `--model` (no module"),
        ("fit --model=torch.nn.Linear", "does not correspond to a subclass of LightningModule"),
        ("fit --data=LanguageModel", "there is no class 'LanguageModel' for `--data`"),
        ("fit --model.hiden_size 8", "hiden_size"),
        ("fit --model.lr=fast", "Expected a <class 'float'>. Got value: fast"),
        ("fit --model.hidden_size=8.5", "Expected a <class 'int'>. Got value: 8.5"),
        ("fit --model.tie_weights=maybe", "Expected a <class 'bool'>. Got value: maybe"),
        ("fit --data.batch_size=two", "Expected a <class 'int'>. Got value: two"),
        ("fit --data.wrong=1", "Option 'wrong' is not accepted; there are path, pattern"),
        ("fit --model.rnn QRRN", "there is no layer 'QRRN'; known are GILR, GILRGRU, GILRLSTM, "),
        ("fit --model.rnn LSTM", "there is no layer 'LSTM'; known are GILR, GILRGRU, GILRLSTM, "),
        ("fit --model.rnn torch.nn.LSMT", "there is no layer 'torch.nn.LSMT'; known are"),
        ("fit --model.rnn no.Layer", "(No module named 'no')"),
        ("fit --model.rnn json.dumps", "there is no layer 'json.dumps'; known are GILR"),
        ("fit --model.rnn.windw 5", "'windw' is not accepted; there are output_activation"),
        ("fit --model.rnn=RGLRU --model.rnn.blocks=two", "Got value: two"),
        ("fit --model.rnn=RGLRU --model.rnn.memory=5", "Got value: 5"),
        ("fit --model.rnn=QRNN --model.rnn.hidden_size=3", "Option 'hidden_size' is not accepted"),
        ("test --ckpt_path none.ckpt", "there is no checkpoint none.ckpt"),
        ("test --ckpt_path=", "`--ckpt_path` is empty: give a file, or leave it out"),
        ("fit --ckpt_path best", "`--ckpt_path best` is the best of a training in the same proces"),
    ],
)
def test_words(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer in error_line(capsys, *(words.split(" ") if words else []))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--data.path=none", "there is no file or folder 'none'"),
        ("--data.path=", "`path` is empty: give a file or a folder"),
        ("--data.window=0", f"`window` {COUNT}0"),
        ("--data.val_fraction=2", "`val_fraction` must be a number from 0 to 1, got 2.0"),
        ("--model.backend=fast", "there is no backend 'fast'; known are"),
        ("--model.num_layers=-3", f"`num_layers` {COUNT}-3"),
        ("--model.weight_decay=-1", "`weight_decay` must be a number of at least 0, got -1.0"),
        ("--model.lr=.nan", "`lr` must be a number of at least 0, got nan"),
        ("--model.lr=null", "`lr` must be a number of at least 0, got None"),
        ("--model.rnn=null", "`rnn` must be a class of layers"),
        ("--model.rnn=RGLRU --model.rnn.blocks=3", "`blocks` must divide hidden_size=8, got 3"),
        ("--model.rnn=QRNN --model.rnn.window=null", f"`window` {COUNT}None"),
        ("--model.rnn=QRNN --model.rnn.num_layers=-3", f"`num_layers` {COUNT}-3"),
        ("--model.rnn=QRNN --model.rnn.backend=scan", "`rnn.backend` must be 'auto' here, got 'sc"),
        ("--model.rnn.proj_size=4", "`rnn.proj_size` must be 0 here, got 4: the output is added"),
        (
            "--model.rnn=torch.nn.GRU --model.rnn.bidirectional=true",
            "`rnn.bidirectional` must be False here, got True: the model may not see",
        ),
        ("--trainer.max_steps=-2", "`max_steps` must be a non-negative integer or -1"),
        ("--trainer.max_time=soon", "'soon'"),
        ("--trainer.devices=many", "`devices` selected with `CPUAccelerator` should be an int > 0"),
        ("--trainer.strategy=fast", "invalid strategy name: `strategy='fast'`"),
        ("--trainer.accelerator=tpux", "invalid accelerator name: `accelerator='tpux'`"),
        ("--trainer.profiler=fast", "`profiler`"),
        ("--trainer.val_check_interval=0", "`trainer.val_check_interval` must be above 0, got 0"),
        ("--trainer.val_check_interval=5000000", "must be less than or equal to the number of the"),
        ("--trainer.accumulate_grad_batches=0", f"`trainer.accumulate_grad_batches` {COUNT}0"),
        ("--trainer.check_val_every_n_epoch=0", f"`trainer.check_val_every_n_epoch` {COUNT}0"),
        ("--trainer.default_root_dir=text", "text cannot be used ("),
        ("--seed_everything=-1", "`--seed_everything`: -1 is not in bounds"),
    ],
)
def test_options_of_fit(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SHORT, *words.split(" ")]) == 2
    messages = [line for line in capsys.readouterr().err.splitlines() if "lightning-lrnn: " in line]
    assert len(messages) == 1 and answer in messages[0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--model.num_features=7", "`inputs` have 2 features, the model was made for 7: set"),
        ("--model.horizon=2", "`targets` must be (B, 2, 1), got (2, 1, 1): set `model.horizon`"),
        ("--model.horizon=2", "beside a checkpoint on the command line, `--model.horizon 1`"),
        ("--data.target=y", "`target`: t.csv has no column 'y'; there are x, t"),
        ("--data.horizon=0", f"`horizon` {COUNT}0"),
        ("--model.quantiles=[0.1]", "`quantiles` must rise"),
    ],
)
def test_a_model_and_its_data(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *FORECAST, words]) == 2
    messages = [line for line in capsys.readouterr().err.splitlines() if "lightning-lrnn: " in line]
    assert len(messages) == 1 and answer in messages[0]


@pytest.mark.parametrize("option", ["memory", "checkpoint_time"])
def test_null_is_a_value_of_an_option(option: str) -> None:
    from lightning_lrnn.cli.fit import parse

    words = ["--model.rnn=QRNN", f"--model.rnn.{option}=null", "--model.rnn.window=3"]
    options = parse(["fit", *words]).fit.model.init_args.rnn.init_args
    assert options[option] is None and options.window == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "Unexpected config"),
        ("5", "Unexpected config: 5"),
        ("- a\n- b", "Unexpected config"),
        (b"\xff\xfe\x00\x01", "bad.yaml is not UTF-8, by the byte 0xff in line 1; save it so"),
        ("model:\n\tclass_path: x", "Problems parsing config: while scanning for the next token"),
        ("model: {class_path: LanguageModel", "Problems parsing config: while parsing a flow map"),
        ("model: {init_args: {<<: *b}}", "Problems parsing config: found undefined alias"),
        ("model: !!python/object/apply:os.system ['touch ran']", "could not determine a constr"),
        ("model:\n  lr: 1\n  lr: 2", "bad.yaml has the key 'lr' twice, in lines 2 and 3"),
        ("model: {lr: 1}\ndata: {}\nmodel: {lr: 2}", "has the key 'model' twice, in lines 1 and"),
        ("modle: {class_path: LanguageModel}", "does not accept option 'modle.class_path'"),
        ("model: {class_path: LanguageModel, init_arg: {lr: 1}}", "Option 'init_arg.lr' is not ac"),
        ("trainer: {max_step: 3}", "does not accept option 'trainer.max_step'"),
        ("fit: {trainer: {max_steps: 1}}", "does not accept option 'fit.trainer.max_steps'"),
        ("seed_everything: many", "Got value: many"),
        ("model: {class_path: no.such.Model}", "there is no class 'no.such.Model' for `--model`"),
        ("data: {class_path: LanguageModel}", "there is no class 'LanguageModel' for `--data`"),
        ("trainer: {callbacks: 5}", "Expected a <class 'list'>"),
        ("trainer: {callbacks: [{class_path: NoSuch}]}", "Expected a dot import path string: NoSu"),
        ("trainer: {callbacks: [{class_path: EarlyStopping}]}", "are required: monitor"),
        (
            "trainer: {callbacks: [{class_path: lightning_lrnn.SwitchRNN, init_args: {rn: SRU}}]}",
            "Option 'rn' is not accepted; there are rnn, backend, options",
        ),
        (
            "model: {init_args: {rnn: {class_path: QRNN, init_args: {windw: 5}}}}",
            "Option 'windw' is not accepted; there are window, pooling, zoneout",
        ),
        ("model: {init_args: {rnn: [QRNN]}}", "Got value: ['QRNN']"),
        (
            "model: {init_args: {rnn: {class_path: QRNN, init_args: {window: five}}}}",
            "Expected a <class 'int'>. Got value: five",
        ),
    ],
)
def test_configs(text: str | bytes, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert answer in error_line(capsys, "fit", "--config=bad.yaml")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("config: byte_lm\nstepps: 3", "got `stepps: 3`"),
        ("config: byte_lm\nrnn: 5", "got `rnn: 5`"),
        ("config: byte_lm\nrnn: [QRNN]\nsteps: 0", f"bad.yaml: `steps` {COUNT}0"),
        ("config: byte_lm\nrnn: [QRNN]\nseconds: true", f"bad.yaml: `seconds` {COUNT}True"),
        ("config: byte_lm\nrnn: [QRNN]\nrnn: [SRU]", "has the key 'rnn' twice, in lines 2 and 3"),
        (b"config: \xe9", "bad.yaml is not UTF-8, by the byte 0xe9 in line 1"),
        ("config: nothing", "there is no config nothing, neither a file nor one of"),
    ],
)
def test_comparisons(text: str | bytes, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert answer in error_line(capsys, "compare", "bad.yaml")


def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "byte_lm", "--rnn", "QRNN", "--folder", "text/runs"]) == 2
    message = capsys.readouterr().err
    assert message == (
        "lightning-lrnn: text/runs/byte_lm cannot be used (Not a directory); choose another\n"
    )


def test_a_config_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.yaml").write_text("{}")

    # A test may run as root, whom no permission stops.
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for words in (["fit", "--config=mine.yaml"], ["compare", "mine.yaml"]):
        assert "mine.yaml cannot be read (Permission denied)" in error_line(capsys, *words)
