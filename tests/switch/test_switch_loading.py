"""What a switched model has saved, loaded by code that knows nothing of this package.

Seen to fail: no mark, no guard, or a mark of the whole module alone; a layer that is swapped where
it is loaded, not changed in place; random numbers drawn; the kind of the old layer not compared.
"""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from lightning_lrnn import replace_rnn
from lightning_lrnn.nn import MinLSTM
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch.marker import GUARD, MARKER, write
from lightning_lrnn.switch.subclass import is_drop_in

close = torch.testing.assert_close
B, T, M, H = 3, 5, 4, 6


class Own(nn.LSTM):
    """A project's own layer, with a parameter more."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, input, hx=None):
        y, hx = super().forward(input, hx)
        return self.scale * y, hx


class Project(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": kind(M, H, 2, batch_first=True, bidirectional=True)})
        self.decoder = nn.GRU(2 * H, 2 * H, batch_first=True)
        self.again = self.decoder
        self.head = nn.Linear(2 * H, 1)

    def forward(self, x):
        return self.head(self.again(self.decoder(self.encoder["rnn"](x)[0])[0])[0])


def switched(rnn="MinLSTM", kind=nn.LSTM, **options):
    project = Project(kind)
    replace_rnn(project, rnn, state="carried", **options)
    return project


def file_of(module):
    """A state_dict that was on a disk."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_same(loaded, saved):
    x = torch.randn(B, T, M)
    close(loaded(x), saved(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTM, Own])
@pytest.mark.parametrize("rnn", ["MinLSTM", "QRNN", "GILR", "LRU"])
@pytest.mark.parametrize("strict", [True, False])
def test_the_stock_model_loads_it(kind, rnn, strict):
    saved = switched(rnn, kind, options={"window": 3} if rnn == "QRNN" else None)
    if kind is Own:
        nn.init.constant_(saved.encoder["rnn"].scale, 3.0)
    loaded = Project(kind)
    layer = loaded.decoder
    actual = loaded.load_state_dict(file_of(saved), strict=strict)
    assert not actual.missing_keys and not actual.unexpected_keys
    check_same(loaded, saved)
    # Whoever had the layer has the new one.
    assert loaded.decoder is layer and loaded.again is layer and is_drop_in(layer)
    assert isinstance(loaded.encoder["rnn"], kind)
    # And again, and back.
    loaded.load_state_dict(saved.state_dict())
    saved.load_state_dict(loaded.state_dict())
    close(loaded.state_dict(), saved.state_dict())
    check_same(copy.deepcopy(loaded), saved)


def test_loading_draws_no_random_numbers():
    project, saved = Project(), file_of(switched())
    before = torch.get_rng_state()
    project.load_state_dict(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_part_and_a_whole():
    saved = switched()
    whole = nn.ModuleDict({"model": Project(), "other": nn.LSTM(M, H)})
    whole.model.load_state_dict(file_of(saved))
    check_same(whole.model, saved)
    another = nn.ModuleDict({"model": Project(), "other": nn.LSTM(M, H)})
    another.load_state_dict(file_of(whole))
    check_same(another.model, saved)
    assert type(another.other) is nn.LSTM
    encoder = Project().encoder
    encoder.load_state_dict(file_of(saved.encoder))
    assert isinstance(encoder["rnn"], MinLSTM)
    rnn = nn.LSTM(M, H, 2, batch_first=True, bidirectional=True)
    rnn.load_state_dict(file_of(saved.encoder["rnn"]))
    close(rnn(torch.ones(B, T, M)), saved.encoder["rnn"](torch.ones(B, T, M)))
    wrapped = nn.DataParallel(Project())
    wrapped.load_state_dict({f"module.{name}": value for name, value in file_of(saved).items()})
    check_same(wrapped.module, saved)


def test_on_no_device_and_by_assignment():
    saved = switched()
    with torch.device("meta"):
        loaded = Project()
    loaded.load_state_dict(file_of(saved), assign=True)
    check_same(loaded, saved)


def test_averaged_and_in_16_bits():
    saved = switched()
    for state in (
        # Some are a little less than they were.
        {
            name: 0.7 * value.double() + 0.3 * value.double()
            for name, value in file_of(saved).items()
        },
        {name: value.bfloat16() for name, value in saved.state_dict().items()},
    ):
        loaded = Project()
        loaded.load_state_dict(state)
        assert isinstance(loaded.encoder["rnn"], MinLSTM)


def test_distributed_checkpoints():
    saved, stock = switched(), Project()
    set_model_state_dict(stock, get_model_state_dict(saved))
    check_same(stock, saved)


def test_from_several_threads():
    saved, loaded, errors = switched(), [Project() for _ in range(8)], []
    state = file_of(saved)

    def load(project):
        try:
            project.load_state_dict(state)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(project,)) for project in loaded]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len({type(project.encoder["rnn"]) for project in loaded}) == 1
    for project in loaded:
        check_same(project, saved)
    Project().load_state_dict(Project().state_dict())


WITHOUT = """
import sys, torch
from torch import nn
model = nn.ModuleDict({"rnn": nn.LSTM(4, 6)})
state = torch.load(sys.argv[1], weights_only=True)
for strict in (True, False):
    try:
        model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        print(strict, error)
assert "lightning_lrnn" not in sys.modules
"""


def test_where_the_package_is_not_imported_it_fails(tmp_path):
    model = nn.ModuleDict({"rnn": nn.LSTM(M, H)})
    replace_rnn(model, "MinLSTM")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "script.py").write_text(WITHOUT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    strict, loose = done.stdout.split("False Error")
    assert "import lightning_lrnn before loading" in strict
    assert f"size mismatch for rnn.{GUARD}" in loose


class Part(nn.Parameter):
    """As a parameter of which a device has a part."""


def test_never_silently_another_forecast():
    def fails(model, state, message):
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=message):
                model.load_state_dict(state, strict=strict)

    saved = switched()
    state = file_of(saved)
    # Sorted out by the names of the stock model.
    fails(
        Project(),
        {k: v for k, v in state.items() if k in Project().state_dict()},
        "does not say as what",
    )
    fails(switched("GILR"), state, r"is of MinLSTM with .*\n?.*the layer is GILR")
    fails(switched("QRNN"), file_of(switched("QRNN", options={"window": 1})), "'window': 1")
    other = nn.ModuleDict({"rnn": nn.LSTM(M, H)})
    replace_rnn(other, "MinLSTM")
    fails(nn.ModuleDict({"rnn": nn.GRU(M, H)}), file_of(other), "torch.nn.LSTM, here is a torch.nn")
    fails(nn.ModuleDict({"rnn": nn.LSTM(M, H + 1)}), file_of(other), "size mismatch")
    normed = nn.ModuleDict({"rnn": nn.LSTM(M, H)})
    nn.utils.parametrizations.weight_norm(normed["rnn"], "weight_hh_l0")
    fails(normed, file_of(other), "rnn was switched by lightning_lrnn where it was saved: ")
    parted = nn.ModuleDict({"rnn": nn.LSTM(M, H)})
    parted["rnn"].weight_ih_l0 = Part(parted["rnn"].weight_ih_l0.detach())
    fails(parted, file_of(other), "its weights are divided among devices already")
    unknown = file_of(other)
    write(unknown, "rnn.", {"class_path": "os.abort", "replaces": "LSTM"})
    fails(nn.ModuleDict({"rnn": nn.LSTM(M, H)}), unknown, "there is no layer 'os.abort'")
    broken = {**unknown, "rnn." + MARKER: torch.tensor([7.0, float("nan")])}
    fails(nn.ModuleDict({"rnn": nn.LSTM(M, H)}), broken, "does not say as what")
    fails(other, broken, "a layer that is not named")
    linear = file_of(other)
    write(linear, "rnn.", {"class_path": "torch.nn.modules.linear.Linear", "replaces": "LSTM"})
    fails(nn.ModuleDict({"rnn": nn.LSTM(M, H)}), linear, "is no layer of lightning_lrnn.nn")


def test_a_stock_state_dict_and_a_switched_model():
    model = switched()
    with pytest.raises(RuntimeError, match=r"MinLSTM in the place of torch.nn.LSTM, which was not"):
        model.load_state_dict(Project().state_dict())
    actual = model.load_state_dict(Project().state_dict(), strict=False)
    assert "decoder.weight_ih_l0" in actual.unexpected_keys
    assert isinstance(model.decoder, Stack)
