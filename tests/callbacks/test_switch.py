"""SwitchRNN, SwitchBackend and load_switched in runs of Lightning, under both of its names.

Seen to fail: no switch when `log` is handed out; none after `setup` or `configure_model`; no error
when it is too late; methods left on the module; told twice; a pickle read; no switch after
`on_load_checkpoint`; the layers of a process that was started lost.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import re
import sys
import warnings
from logging.handlers import BufferingHandler
from pathlib import Path

import processes
import pytest
import torch
from lightning_utilities.core import rank_zero
from paths import TESTS
from project import PACKAGES, STEPS, H, M, T, both_packages, project, stacks, trainer
from torch import nn

from lightning_lrnn import BackendError, SwitchBackend, SwitchError, SwitchRNN, load_switched
from lightning_lrnn.callbacks import switch_rnn
from lightning_lrnn.nn import GILRLSTM, MinGRU

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a"),
]


@both_packages
@pytest.mark.parametrize("make", ["__init__", "setup", "configure_model"])
def test_the_new_layers_are_trained_in_every_stage(tmp_path, package, make):
    pl, Project = project(package, make)
    model, switch = Project(), SwitchRNN("GILRLSTM", backend="serial")
    run = trainer(pl, tmp_path, switch, max_epochs=20)
    run.fit(model)
    (rnn,) = stacks(model)
    assert isinstance(model.rnn, GILRLSTM) and rnn.backend == "serial"
    optimized = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters()}
    assert sum(model.losses[-STEPS:]) < 0.7 * sum(model.losses[:STEPS])
    assert not {"setup", "configure_model"} & vars(model).keys()
    # The same module and callback again, in every other stage.
    for stage in (run.validate, run.test, run.predict):
        stage(model)
    assert stacks(model) == [rnn] and len(switch.report) == 1
    for stage in ("validate", "test", "predict"):
        fresh = Project()
        getattr(trainer(pl, tmp_path, SwitchRNN("GILRLSTM")), stage)(fresh)
        assert isinstance(fresh.rnn, GILRLSTM)


@both_packages
def test_it_is_said_once_and_logged(tmp_path, package, monkeypatch):
    lines = []
    monkeypatch.setattr(switch_rnn, "rank_zero_info", lines.append)
    pl, Project = project(package)
    loggers = importlib.import_module(f"{package}.loggers")
    logger, logged = loggers.CSVLogger(tmp_path), []
    log_hyperparams = logger.log_hyperparams
    logger.log_hyperparams = lambda words: (logged.append(words), log_hyperparams(words))
    run = trainer(pl, tmp_path, SwitchRNN("MinLSTM"), logger=logger)
    model = Project()
    run.fit(model)
    run.test(model)
    (said,) = lines
    assert len([words for words in logged if "switch/rnn" in words]) == 1
    assert "rnn: LSTM(3, 5, num_layers=2, batch_first=True)\n  -> MinLSTM(3, 5," in said
    hparams = (Path(logger.log_dir) / "hparams.yaml").read_text()
    assert "switch/rnn: LSTM(3, 5" in hparams and "switch/parameters_before: 440" in hparams


def test_what_wandb_watches_is_what_there_is_now(wandb, tmp_path):
    pl, Project = project()
    model = Project()
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    logger.watch(model, log="all", log_freq=1)
    trainer(pl, tmp_path, SwitchRNN("GILR"), logger=logger).fit(model)
    logged = dict(logger.experiment.summary)
    wandb.finish()
    for kind in ("gradients", "parameters"):
        actual = (re.fullmatch(rf"{kind}/(graph_\d+)?(.*)", key) for key in logged)
        names = {match[2] for match in actual if match}
        assert names == {name for name, _ in model.named_parameters()}


@both_packages
def test_a_logger_that_draws_the_graph_goes_without(tmp_path, package):
    pl, Project = project(package)

    class Draws(importlib.import_module(f"{package}.loggers").CSVLogger):
        _log_graph = True

        def log_graph(self, model, input_array=None):
            if self._log_graph:
                torch.jit.trace(model, torch.randn(2, T, M))

    for stage in ("fit", "test"):
        run = trainer(pl, tmp_path, SwitchRNN("GILR"), logger=Draws(tmp_path))
        with pytest.warns(UserWarning, match="no graph is logged"):
            getattr(run, stage)(Project())


@both_packages
def test_checkpoints_resume_and_load(tmp_path, package):
    pl, Project = project(package)
    path = tmp_path / "middle.ckpt"

    def fit(epochs, **options):
        torch.manual_seed(5)
        model = Project(size=7)
        run = trainer(pl, tmp_path, SwitchRNN({"LSTM": "GILRLSTM"}), max_epochs=epochs)
        run.fit(model, **options)
        return model, run

    whole, _ = fit(4)
    half, run = fit(2)
    run.save_checkpoint(path)
    resumed, _ = fit(4, ckpt_path=path, weights_only=True)
    assert half.losses + resumed.losses == whole.losses

    # By the project's own means, and by trainers that know nothing of the switch.
    own = Project.load_from_checkpoint(path, weights_only=True)
    torch.testing.assert_close(own.state_dict(), half.state_dict(), rtol=0, atol=0)
    for strict in (True, False):
        model = Project(size=7)
        model.strict_loading = strict
        (tested,) = trainer(pl, tmp_path).test(model, ckpt_path=path, weights_only=True)
        (expected,) = trainer(pl, tmp_path).test(half)
        assert tested == expected and isinstance(model.rnn, GILRLSTM)
    whole_again = Project(size=7)
    run = trainer(pl, tmp_path, max_epochs=4)
    run.fit(whole_again, ckpt_path=path, weights_only=True)
    assert whole_again.losses == resumed.losses
    predicted = trainer(pl, tmp_path).predict(copy.deepcopy(own))
    expected = trainer(pl, tmp_path).predict(half)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"rnn: the state_dict is of GILRLSTM with"):
        trainer(pl, tmp_path, SwitchRNN("GILR")).test(
            Project(size=7), ckpt_path=path, weights_only=True
        )
    chosen = Project(size=7)
    switch = SwitchRNN("GILRLSTM", backend="serial")
    trainer(pl, tmp_path, switch).test(chosen, ckpt_path=path, weights_only=True)
    assert chosen.rnn.backend == "serial"
    switch.setup(run, whole_again, "fit")
    assert whole_again.rnn.backend == "serial"

    loaded = load_switched(Project, path, backend="serial")
    assert type(loaded) is Project and loaded.rnn.backend == "serial" and loaded.size == 7
    torch.testing.assert_close(loaded.state_dict(), half.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, T, M)
    torch.testing.assert_close(loaded(x), half(x))
    trainer(pl, tmp_path, max_epochs=1).fit(loaded)

    trainer_of_none = trainer(pl, tmp_path)
    trainer_of_none.fit(Project())
    trainer_of_none.save_checkpoint(path)
    # Both say what can be done, and none sends its reader to the other.
    with pytest.raises(SwitchError, match="not of a switched model") as error:
        load_switched(Project, path)
    assert "SwitchRNN(weights='carried')" in str(error.value)
    with pytest.raises(RuntimeError, match="load it before the switch") as error:
        trainer(pl, tmp_path, SwitchRNN("GILRLSTM")).test(Project(), ckpt_path=path)
    assert "SwitchRNN(weights='carried')" in str(error.value)
    assert "load_switched" not in str(error.value)
    old = Project.load_from_checkpoint(path, weights_only=True)
    carried = SwitchRNN("GILRLSTM", weights="carried", carry_steps=2)
    trainer(pl, tmp_path, carried, max_epochs=1).fit(old)
    assert isinstance(old.rnn, GILRLSTM)


@both_packages
@pytest.mark.parametrize("loads", [False, True])
def test_a_module_that_makes_its_layers_again_when_it_is_loaded(tmp_path, package, loads):
    pl, Project = project(package)

    class Again(Project):
        def on_load_checkpoint(self, checkpoint):
            self.make()
            if loads:
                self.load_state_dict(checkpoint["state_dict"])

    def fit(epochs, *callbacks, **options):
        torch.manual_seed(5)
        model = Again()
        run = trainer(pl, tmp_path, *callbacks, max_epochs=epochs)
        run.fit(model, **options)
        assert isinstance(model.rnn, GILRLSTM)
        assert not {"setup", "configure_model", "on_load_checkpoint"} & vars(model).keys()
        return model, run

    path = tmp_path / "middle.ckpt"
    whole, _ = fit(4, SwitchRNN("GILRLSTM"))
    half, run = fit(2, SwitchRNN("GILRLSTM"))
    run.save_checkpoint(path)
    for callbacks in ([SwitchRNN("GILRLSTM", backend="serial")], []):
        resumed, _ = fit(4, *callbacks, ckpt_path=path, weights_only=True)
        assert len(resumed.losses) == 2 * STEPS
        torch.testing.assert_close(half.losses + resumed.losses, whole.losses)
    for loaded in (load_switched(Again, path), Again.load_from_checkpoint(path, weights_only=True)):
        torch.testing.assert_close(loaded.state_dict(), half.state_dict(), rtol=0, atol=0)


class Harmful:
    pass


def test_load_switched_unpickles_nothing(tmp_path):
    pl, Project = project()
    model = Project()
    run = trainer(pl, tmp_path, SwitchRNN("GILR"))
    run.fit(model)
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "more": Harmful()}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Harmful"):
        load_switched(Project, tmp_path / "last.ckpt")
    load_switched(Project, tmp_path / "last.ckpt", weights_only=False)


@both_packages
def test_load_switched_makes_layers_that_configure_model_makes(tmp_path, package):
    pl, Project = project(package, "configure_model")
    run = trainer(pl, tmp_path, SwitchRNN("QRNN", options={"window": 3}, state="carried"))
    model = Project()
    run.fit(model)
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_switched(Project, tmp_path / "last.ckpt")
    assert loaded.rnn.options["window"] == 3
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


# Among other callbacks.


@both_packages
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_weight_averaging_in_both_orders(tmp_path, package, first, kind):
    pl, Project = project(package)
    averaging = getattr(importlib.import_module(f"{package}.callbacks"), kind)
    other = averaging() if kind.startswith("EMA") else averaging(swa_lrs=1e-3, swa_epoch_start=1)
    callbacks = [SwitchRNN("GILRLSTM"), other]
    model = Project()
    run = trainer(pl, tmp_path, *(callbacks if first else callbacks[::-1]), max_epochs=3)
    run.fit(model)
    averaged = [m for m in vars(other).values() if isinstance(m, nn.Module)]
    assert averaged and all(stacks(m) for m in averaged)
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_switched(Project, tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_too_late_is_an_error(tmp_path, monkeypatch):
    pl, Project = project()
    # As in a Lightning that does not hand out `log` before `setup`.
    monkeypatch.setattr(SwitchRNN, "_switch", lambda self, module: None)
    averaging = pl.callbacks.EMAWeightAveraging()
    with pytest.raises(SwitchError, match=r"come first: EMAWeightAveraging; put SwitchRNN before"):
        trainer(pl, tmp_path, averaging, SwitchRNN("GILR")).fit(Project())
    model = Project()
    trainer(pl, tmp_path, SwitchRNN("GILR"), averaging).fit(model)
    assert stacks(model)


def test_two_switches_by_path(tmp_path):
    pl, Project = project(
        rnn=lambda: nn.ModuleDict({"a": nn.LSTM(M, H), "b": nn.LSTM(M, H), "c": nn.GRU(M, H)})
    )
    model = Project()
    switches = [SwitchRNN("GILRLSTM", where="rnn.a"), SwitchRNN("MinGRU", where=["rnn.[bc]"])]
    trainer(pl, tmp_path, *switches, max_steps=0, limit_val_batches=0).fit(model)
    missing = SwitchRNN("GILR", where="rnn.d*")
    with pytest.raises(SwitchError, match=r"RNN at a path that matches rnn.d\* that"):
        trainer(pl, tmp_path, missing, max_steps=0, limit_val_batches=0).fit(model)
    kinds = [type(model.rnn[name]).__name__ for name in "abc"]
    assert kinds == ["GILRLSTM", "MinGRU", "MinGRU"]


@pytest.mark.parametrize("make", ["setup", "configure_model"])
def test_two_switches_of_layers_made_late(tmp_path, make):
    layers = {"a": nn.LSTM(M, H), "b": nn.GRU(M, H)}
    pl, Project = project(make=make, rnn=lambda: nn.ModuleDict(layers))
    model = Project()
    switches = [SwitchRNN({"LSTM": "GILRLSTM"}), SwitchRNN({"GRU": "MinGRU"})]
    trainer(pl, tmp_path, *switches, max_steps=0, limit_val_batches=0).fit(model)
    assert [type(model.rnn[name]).__name__ for name in "ab"] == ["GILRLSTM", "MinGRU"]
    assert not {"setup", "configure_model"} & vars(model).keys()


def test_tuner_and_a_module_switched_by_hand(tmp_path):
    pl, Project = project()
    model, switch = Project(), SwitchRNN("GILRLSTM")
    run = trainer(pl, tmp_path, switch, max_epochs=1)
    model.lr = 1e-3
    tuner = importlib.import_module("pytorch_lightning.tuner").Tuner(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.lr_find(model, num_training=3, min_lr=1e-4, max_lr=1e-2)
    run.fit(model)
    assert len(stacks(model)) == 1 and len(switch.report) == 1


# What is wrong is said.


def test_nothing_to_switch(tmp_path):
    pl, Project = project(rnn=lambda: nn.Identity())
    for stage in ("fit", "validate", "test", "predict"):
        model = Project()
        with pytest.raises(SwitchError, match=r"Project has no torch.nn.LSTM, GRU or RNN"):
            getattr(trainer(pl, tmp_path, SwitchRNN("GILR")), stage)(model)
        with pytest.raises(SwitchError, match=r"Project has no layer of lightning_lrnn"):
            getattr(trainer(pl, tmp_path, SwitchBackend("serial")), stage)(model)


def test_it_is_pickled_as_spawned_processes_need(tmp_path):
    switch = pickle.loads(pickle.dumps(SwitchRNN("GILRLSTM", backend="serial")))
    pl, Project = project()
    model = Project()
    trainer(pl, tmp_path, switch, max_steps=0, limit_val_batches=0).fit(model)
    assert isinstance(model.rnn, GILRLSTM) and model.rnn.backend == "serial"


def test_arguments_are_checked_when_the_callback_is_made():
    for arguments, error, message in [
        ({"rnn": "GILRLSMT"}, ValueError, "there is no layer 'GILRLSMT'"),
        ({"rnn": {"LSTN": "GILR"}}, ValueError, "there is no 'LSTN'"),
        ({"backend": "skan"}, BackendError, "skan"),
        ({"state": "exact"}, ValueError, "`state` must be one of"),
    ]:
        with pytest.raises(error, match=message):
            SwitchRNN(**arguments)
    with pytest.raises(BackendError, match="skan"):
        SwitchBackend("skan")


# The backend alone.


@both_packages
def test_switch_backend(tmp_path, package):
    pl, Project = project(package, rnn=lambda: MinGRU(M, H, batch_first=True))
    for stage in ("fit", "validate", "test", "predict"):
        model = Project()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        getattr(trainer(pl, tmp_path, SwitchBackend("serial"), max_steps=0), stage)(model)
        assert model.rnn.backend == "serial"
        torch.testing.assert_close(model.state_dict(), before)


# From YAML, and in two processes.

YAML = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  devices: {devices}
  strategy: {strategy}
  callbacks:
    - class_path: lightning_lrnn.SwitchRNN
      init_args: {{rnn: {rnn}, backend: scan, split: {{x: 1, y: null}}}}
    - class_path: lightning_lrnn.SwitchBackend
      init_args: {{backend: serial}}
"""


@both_packages
def test_by_yaml_alone(tmp_path, package, monkeypatch):
    lines = []
    monkeypatch.setattr(switch_rnn, "rank_zero_info", lines.append)
    config = tmp_path / "config.yaml"
    config.write_text(YAML.format(rnn="{LSTM: GILRLSTM, GRU: MinGRU}", devices=1, strategy="auto"))
    cli = importlib.import_module(f"{package}.cli").LightningCLI
    monkeypatch.setattr(sys, "argv", ["script", "fit", "--config", str(config)])
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # which Lightning sets, taken back
    rnn = cli(project(package)[1], save_config_callback=None).model.rnn
    assert isinstance(rnn, GILRLSTM) and rnn.backend == "serial"
    assert "".join(lines).count("start anew") == 1


def by_yaml(rank, folder, package):
    warnings.simplefilter("ignore")
    said = BufferingHandler(1000)
    rank_zero.log.addHandler(said)
    cli = importlib.import_module(f"{package}.cli").LightningCLI
    words = ["fit", "--config", f"{folder}/config.yaml"]
    with processes.world(rank, 2):
        made = cli(project(package)[1], args=words, save_config_callback=None)
        assert (made.trainer.global_rank, made.trainer.world_size) == (rank, 2)
    assert isinstance(made.model.rnn, GILRLSTM) and made.model.rnn.backend == "serial"
    lines = [record.getMessage() for record in said.buffer]
    assert "".join(lines).count("start anew") == (rank == 0)


@pytest.mark.parametrize(
    "package", [PACKAGES[0], pytest.param(PACKAGES[1], marks=pytest.mark.nightly)]
)
def test_by_yaml_in_two_processes(tmp_path, package):
    (tmp_path / "config.yaml").write_text(YAML.format(rnn="GILRLSTM", devices=2, strategy="ddp"))
    processes.spawn(by_yaml, tmp_path, tmp_path, package)


STARTED = """
import sys, warnings
import torch
sys.path.insert(0, {tests!r})
from project import project, trainer
from lightning_lrnn import SwitchRNN
from lightning_lrnn.nn import MinLSTM
pl, _ = project({package!r})


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 5, batch_first=True)

    def training_step(self, batch, index):
        return self.rnn(batch)[0].square().mean()

    def on_train_end(self):
        if self.global_rank == 0:
            torch.save(self.state_dict(), "trained.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    data = torch.utils.data.DataLoader(torch.randn(8, 4, 3), batch_size=2)
    model = Model()
    options = dict(devices=2, strategy={strategy!r})
    trainer(pl, ".", SwitchRNN("MinLSTM"), **options).fit(model, data)
    assert isinstance(model.rnn, MinLSTM)
    torch.testing.assert_close(model.state_dict(), torch.load("trained.pt"), rtol=0, atol=0)
"""


@pytest.mark.parametrize(
    "package, strategy",
    [
        # In `make test` a fork: what is spawned imports all again, which takes most of the time.
        pytest.param(PACKAGES[0], "ddp_spawn", marks=[pytest.mark.slow, pytest.mark.nightly]),
        pytest.param(PACKAGES[1], "ddp_notebook", marks=pytest.mark.slow),
        pytest.param(PACKAGES[0], "ddp_fork", marks=pytest.mark.nightly),
    ],
)
def test_strategies_that_start_processes_give_the_trained_layers_back(tmp_path, package, strategy):
    script = tmp_path / "script.py"
    values = {"tests": str(TESTS), "package": package, "strategy": strategy}
    script.write_text(STARTED.format(**values))
    processes.run(script, folder=tmp_path)
