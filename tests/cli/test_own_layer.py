"""A layer of one's own, as docs/extending.md shows it: trained, asked, and in the place of another.

Seen to fail: the working directory not on the path of modules.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import OPTIONS, TINY
from paths import ROOT

from lightning_lrnn import SwitchRNN, replace_rnn
from lightning_lrnn.cli import main

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
