"""A layer of one's own, as docs/extending.md shows it: trained, asked, and in the place of another.

Seen to fail: the working directory not on the path of modules.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from commands import OPTIONS, TINY
from paths import ROOT

from lightning_lrnn import SwitchRNN, replace_rnn
from lightning_lrnn.cli import main
from lightning_lrnn.modules import LanguageModel

PAGE = (ROOT / "docs" / "extending.md").read_text()
MODULE = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Leaky(" in b)
COMMANDS = re.findall(r"^lightning-lrnn (\w+) .*own\.Leaky", PAGE, re.M)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the module, of which Python has not heard."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("text").write_text("def f(x):\n    return x + 1\n" * 800)
    Path("own.py").write_text(MODULE)


def test_a_layer_in_the_working_directory_is_trained_and_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COMMANDS == ["fit", "compare", "generate"]
    before = list(sys.path)
    words = ["fit", "--data.path=text", "--trainer.max_steps=2", *OPTIONS, *TINY]
    assert main([*words, "--model.rnn=own.Leaky"]) == 0
    assert sys.path == before
    (checkpoint,) = map(str, Path().rglob("*.ckpt"))
    capsys.readouterr()

    monkeypatch.delitem(sys.modules, "own")
    assert main(["generate", checkpoint, "--length=3"]) == 2
    assert "say --rnn=own.Leaky" in capsys.readouterr().err
    assert "own" not in sys.modules
    assert main(["generate", checkpoint, "--length=3", "--prompt=def", "--rnn=own.Leaky"]) == 0
    assert capsys.readouterr().out.startswith("def")

    # Another layer than the checkpoint's: it printed the text of the checkpoint's.
    assert main(["generate", checkpoint, "--length=3", "--rnn=QRNN"]) == 2
    refusal = capsys.readouterr().err
    assert "has the layer 'own.Leaky', and --rnn says 'QRNN'" in refusal
    # In Python, and by a name that is nowhere.
    LanguageModel.load_from_checkpoint(checkpoint)
    monkeypatch.delitem(sys.modules, "own")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(ValueError, match=r"'own\.Leaky': its module .* `import own` first"):
        LanguageModel.load_from_checkpoint(checkpoint)
    assert "own" not in sys.modules
    Path("own.py").unlink()
    importlib.invalidate_caches()
    assert main(["generate", checkpoint, "--rnn=own.Leaky"]) == 2
    error = capsys.readouterr().err
    assert f"'own.Leaky': no module 'own' is installed or in the folder {Path.cwd()}\n" in error


def test_generate_names_both_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: the text of the checkpoint's layer was printed, whatever `--rnn` said."""
    model = LanguageModel(rnn="torch.nn.GRU", hidden_size=8, num_layers=1)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("gru.ckpt")
    words = ["generate", "gru.ckpt", "--length=3", "--prompt=def"]
    assert main([*words, "--rnn=own.Leaky"]) == 2
    assert "layer 'torch.nn.GRU', and --rnn says 'own.Leaky'" in capsys.readouterr().err
    for rnn in ([], ["--rnn=torch.nn.GRU"]):
        assert main([*words, *rnn]) == 0
        assert capsys.readouterr().out.startswith("def")


def test_a_module_that_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: the folder that was searched was not named."""
    for words in (["fit", "--model.rnn=owm.Leaky"], ["compare", "byte_lm", "--rnn", "owm.Leaky"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"no module 'owm' is installed or in the folder {Path.cwd()}" in error
    for option in ("--model=owm.M", "--data=owm.D", "--trainer.callbacks+=owm.C"):
        assert main(["fit", "--config", str(ROOT / "configs/byte_lm.yaml"), option]) == 2
        error = capsys.readouterr().err
        assert f"no module 'owm' is installed or in the folder {Path.cwd()}" in error
    assert main(["fit", "--model=owm.M"]) == 2
    assert f"or in the folder {Path.cwd()}); give its name" in capsys.readouterr().err
    assert main(["fit", "--model.rnn=own.Leeky"]) == 2
    assert "module 'own' has no attribute 'Leeky'" in capsys.readouterr().err


def test_a_cell_in_the_place_of_its_layer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: a traceback that said that a single step takes no reset."""
    said = "LeakyCell is a cell, which makes single steps: name its layer"
    for words in (["fit"], ["compare", "byte_lm"]):
        option = (
            ["--rnn", "own.LeakyCell"] if words[0] == "compare" else ["--model.rnn=own.LeakyCell"]
        )
        assert main([*words, *option]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for cell in (sys.modules["own"].LeakyCell, torch.nn.GRUCell, "lightning_lrnn.nn.QRNNCell"):
        with pytest.raises(ValueError, match=r"Cell is a cell, which makes single steps: name its"):
            LanguageModel(rnn=cell)
    with pytest.raises(ValueError, match=said):
        SwitchRNN(rnn="own.LeakyCell")


def test_it_takes_the_place_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    SwitchRNN(rnn="own.Leaky")
    model = torch.nn.Sequential(torch.nn.LSTM(2, 3))
    replace_rnn(model, "own.Leaky")
    assert type(model[0]).__name__ == "Leaky" and isinstance(model[0], torch.nn.LSTM)
    with pytest.raises(ValueError, match=r"no layer 'nowhere\.Layer'"):
        SwitchRNN(rnn="nowhere.Layer")
    with pytest.raises(ValueError, match=r"subclasses of lightning_lrnn\.nn\.Stack, got torch"):
        SwitchRNN(rnn="torch.nn.Linear")
    # What is missing in the module itself is told as it is.
    Path("broken.py").write_text("import not_there\n")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        SwitchRNN(rnn="broken.Layer")


def test_a_parameter_of_ones_own_as_the_page_shows_it() -> None:
    code = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Powered(" in b)
    names: dict[str, Any] = {}
    exec(MODULE + code, names)
    rnn = names["Powered"](3, 8, num_layers=2, batch_first=True)
    assert names["PoweredCell"].gate.program
    assert rnn.explain("cpu")["scan"] == []
    x = torch.randn(2, 7, 3)
    y, h = rnn(x)
    cell, first = rnn.cells[0], torch.zeros(2, 8)
    f, z = (x @ cell.weight_ih.T).chunk(2, -1)
    a = (f + cell.bias).sigmoid() ** torch.nn.functional.softplus(cell.power)
    for t in range(7):
        first = a[:, t] * first + (1 - a[:, t]) * z[:, t]
    torch.testing.assert_close(h[0], first)
    y.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in rnn.parameters())
