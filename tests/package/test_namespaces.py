"""Modules, data and callbacks in projects of both Lightning packages, and where there is only one.

Seen to fail: `L` without `rebase`; base classes not rebased, or made again for each class;
`__module__` kept (the config names a class of the other package); Callback, or Throughput, as
`pytorch_lightning`'s alone; the except clauses of `callback.py` and `L.py` by "lightning" alone or
none; no `L` in `__getattr__`; a method that asks `isinstance(self, RecurrentModule)`;
`lightning-lrnn fit` made of `lightning.pytorch`.
"""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import pickle
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
import yaml

import lightning_lrnn
from lightning_lrnn import callbacks, data, modules, pl, strategies

OTHER = "lightning.pytorch"
other = pytest.importorskip(OTHER)
from lightning_lrnn import L  # noqa: E402

PACKAGES = {"pytorch_lightning": (pytorch_lightning, pl), OTHER: (other, L)}
ROOTS = (
    pytorch_lightning.LightningModule,
    pytorch_lightning.LightningDataModule,
    pytorch_lightning.strategies.DDPStrategy,
)
OTHER_ROOTS = (other.LightningModule, other.LightningDataModule, other.strategies.DDPStrategy)
OF_LIGHTNING = [
    name
    for name in pl.__all__
    if isinstance(kind := getattr(pl, name), type) and issubclass(kind, ROOTS)
]
both = pytest.mark.parametrize("package", PACKAGES)


def ours(kind: type) -> list[type]:
    """Those of its classes that are made twice, in order."""
    roots = ROOTS + OTHER_ROOTS
    return [c for c in kind.__mro__ if issubclass(c, roots) and c not in roots]


# The classes.

USED = {"SourceTokens": {"ByteText"}}
"""What a class has as a part, which no Trainer sees: it may be of either package."""


def test_names() -> None:
    assert {"RecurrentModule", "LanguageModel", "ByteText"} <= set(OF_LIGHTNING)
    assert pl.__all__ == L.__all__ == [*(*modules.__all__, *data.__all__, *strategies.__all__)]
    assert lightning_lrnn.pl is pl and lightning_lrnn.L is L
    for name in pl.__all__:
        sources = [source for source in (modules, data, strategies) if name in source.__all__]
        assert getattr(pl, name) is getattr(sources[0], name)
        assert (getattr(L, name) is getattr(pl, name)) == (name not in OF_LIGHTNING)


@pytest.mark.parametrize("name", OF_LIGHTNING)
def test_same_class_on_another_base(name) -> None:
    old, new = getattr(pl, name), getattr(L, name)
    assert (new.__module__, new.__qualname__) == ("lightning_lrnn.L", name)
    assert new.__doc__ == old.__doc__
    assert inspect.signature(new) == inspect.signature(old)
    assert issubclass(old, ROOTS) and issubclass(new, OTHER_ROOTS)
    assert not [c for c in new.__mro__ if c.__module__.startswith("pytorch_lightning")]
    pairs = list(zip(ours(old), ours(new), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.__name__ == b.__name__
        assert public(a) == public(b)
        assert getattr(L, b.__name__, b) is b


def public(kind: type) -> dict[str, Any]:
    """What its body says, functions by their code."""
    # `copyreg` keeps the names of slots in a class that was copied or pickled, `abc` what it needs.
    unlike = {"__module__", "__dict__", "__weakref__", "__slotnames__", "_abc_impl"}
    return {k: plain(v) for k, v in vars(kind).items() if k not in unlike}


def plain(value: Any) -> Any:
    if isinstance(value, (classmethod, staticmethod)):
        return type(value), plain(value.__func__)
    if isinstance(value, property):
        return property, *map(plain, (value.fget, value.fset, value.fdel)), value.__doc__
    if isinstance(value, types.FunctionType):
        wrapped = plain(getattr(value, "__wrapped__", None))
        return value.__code__, inspect.signature(value), value.__doc__, wrapped
    return value


@pytest.mark.parametrize("name", OF_LIGHTNING)
def test_no_method_knows_a_class_of_the_other_package(name) -> None:
    for kind in ours(getattr(L, name)):
        actual = reached(kind)
        assert pytorch_lightning not in actual
        known = {c.__name__ for c in actual if isinstance(c, type) and issubclass(c, ROOTS)}
        assert known <= USED.get(name, set())


def test_the_test_above_can_fail() -> None:
    assert modules.LanguageModel in reached(modules.LanguageModel)
    assert L.LanguageModel in reached(L.LanguageModel)
    named = type("", (), {"method": lambda self: helper()})
    assert {modules.RecurrentModule, pytorch_lightning} <= reached(named)


def helper() -> Any:
    return pytorch_lightning, modules.RecurrentModule, RecurrentModule


RecurrentModule = modules.RecurrentModule
PARTS = (classmethod, staticmethod, property, types.CellType, tuple, list, dict, partial)


def reached(kind: type) -> set[Any]:
    """Classes and modules that the functions of a class name or have in a closure.

    Of globals those of this package's functions are followed, and of the functions here.
    """
    actual: set[Any] = set()
    seen: set[int] = set()
    todo = [v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (type, types.ModuleType)):
            actual.add(value)
        elif isinstance(value, types.FunctionType):
            todo += [vars(value), value.__closure__, value.__defaults__, value.__kwdefaults__]
            home = value.__globals__
            if home["__name__"].startswith(("lightning_lrnn", __name__)):
                todo += [home[name] for name in named_in(value.__code__) if name in home]
        elif isinstance(value, PARTS):
            todo += gc.get_referents(value)
    return actual


def named_in(code: types.CodeType) -> set[str]:
    inner = (named_in(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


# Under a Trainer.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(12):
        (text / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 4))
    # LightningCLI says that there are arguments in sys.argv too.
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_data(space: Any, folder: Path) -> Any:
    return space.ByteText(str(folder / "text"), batch_size=2, window=8, val_fraction=0.2)


def make_model(space: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return space.LanguageModel(**{"hidden_size": 8, "num_layers": 1, "dropout": 0.2, **options})


def make_trainer(lightning: Any, folder: Path, steps: int, *more: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        limit_val_batches=2,
        max_steps=steps,
        callbacks=list(more),
    )


class Losses(callbacks.callback.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))


def test_fit_save_load_resume_and_test(folder) -> None:
    actual = {}
    for package, (lightning, space) in PACKAGES.items():
        path = folder / f"{package}.ckpt"
        start, rest, whole = Losses(), Losses(), Losses()
        options = {"total_steps": 10}

        trainer = make_trainer(lightning, folder, 5, start)
        trainer.fit(make_model(space, **options), make_data(space, folder))
        trainer.save_checkpoint(path)
        saved = torch.load(path, weights_only=True)
        assert float(saved["carried_state"][0][0][0].abs().sum()) > 0

        trainer = make_trainer(lightning, folder, 9, rest)
        resumed = {"ckpt_path": path, "weights_only": True}
        trainer.fit(make_model(space, **options), make_data(space, folder), **resumed)
        trainer = make_trainer(lightning, folder, 9, whole)
        trainer.fit(make_model(space, **options), make_data(space, folder))
        assert start.losses + rest.losses == whole.losses and len(whole.losses) == 9

        model = space.LanguageModel.load_from_checkpoint(path, weights_only=True)
        assert type(model) is space.LanguageModel
        assert model.hparams.hidden_size == 8 and model.hparams.rnn["class_path"].endswith("LSTM")
        (tested,) = trainer.test(model, make_data(space, folder), verbose=False)
        predicted = torch.cat(trainer.predict(model, make_data(space, folder)), 1)
        actual[package] = [whole.losses, tested, float(predicted.sum()), saved["hyper_parameters"]]
    assert actual["pytorch_lightning"] == actual[OTHER]


@both
def test_checkpoint_of_one_package_loads_in_the_other(folder, package) -> None:
    lightning, space = PACKAGES[package]
    path = folder / "model.ckpt"
    trainer = make_trainer(lightning, folder, 2)
    trainer.fit(model := make_model(space), make_data(space, folder))
    trainer.save_checkpoint(path)
    for _, target in PACKAGES.values():
        loaded = target.LanguageModel.load_from_checkpoint(path, weights_only=True)
        assert type(loaded) is target.LanguageModel
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@both
def test_subclass_by_a_user(folder, package) -> None:
    lightning, space = PACKAGES[package]

    class Mine(space.LanguageModel):
        def __init__(self, scale: float, **options: Any) -> None:
            super().__init__(**options)
            self.save_hyperparameters()
            self.scale = scale

        def loss(self, output, batch):
            return self.scale * super().loss(output, batch)

    path = folder / "mine.ckpt"
    losses = Losses()
    trainer = make_trainer(lightning, folder, 2, losses)
    torch.manual_seed(1)
    trainer.fit(Mine(0.0, hidden_size=8), make_data(space, folder))
    trainer.save_checkpoint(path)
    assert losses.losses == [0, 0]
    loaded = Mine.load_from_checkpoint(path, weights_only=True)
    assert loaded.scale == 0 and loaded.hparams.hidden_size == 8
    assert isinstance(loaded, space.RecurrentModule) and isinstance(loaded, space.LanguageModel)


@both
def test_copies(package) -> None:
    model = make_model(PACKAGES[package][1], backend="serial")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        twin.backend = "scan"
        assert [layer.backend for layer in twin.recurrent_layers().values()] == ["scan"]
    assert model.backend == "serial"


def test_mixing_is_lightnings_own_error(folder) -> None:
    (here, ours), (there, theirs) = PACKAGES.values()
    for lightning, own, foreign in ((here, ours, theirs), (there, theirs, ours)):
        trainer = make_trainer(lightning, folder, 1)
        with pytest.raises(TypeError, match="must be a `LightningModule`"):
            trainer.fit(make_model(foreign), make_data(own, folder))
        with pytest.raises(ValueError, match="Expected a parent"):
            trainer.fit(make_model(own), datamodule=make_data(foreign, folder))


# From YAML.


CALLBACKS = [name for name in callbacks.__all__ if isinstance(getattr(callbacks, name), type)]
NEEDED = {"SwitchBackend": {"backend": "serial"}, "StopWhenSolved": {"metric": "perplexity"}}
"""Arguments that a callback does not do without."""
PARTICULAR = {"SwitchRNN", "SeasonalNaive"}
"""Callbacks that are not for a LanguageModel."""


def config(package: str, folder: Path) -> Path:
    """A user's YAML for one of the packages."""
    space = "lightning_lrnn." + ("pl" if package == "pytorch_lightning" else "L")
    used = [name for name in CALLBACKS if name not in PARTICULAR]
    content = {
        "seed_everything": 3,
        "model": {
            "class_path": f"{space}.LanguageModel",
            "init_args": {
                "rnn": {"class_path": "QRNN", "init_args": {"window": 3}},
                "hidden_size": 8,
                "num_layers": 1,
            },
        },
        "data": {
            "class_path": f"{space}.ByteText",
            "init_args": {"path": str(folder / "text"), "batch_size": 2, "window": 8},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "limit_val_batches": 1,
            "limit_test_batches": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": f"{package}.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder / package), "name": "run"},
            },
            "callbacks": [
                {
                    "class_path": f"lightning_lrnn.callbacks.{name}",
                    "init_args": NEEDED.get(name, {}),
                }
                for name in used
            ],
        },
    }
    path = folder / f"{package}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(package: str, *args: Any) -> Any:
    lightning, _ = PACKAGES[package]
    return importlib.import_module(f"{package}.cli").LightningCLI(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        args=[str(arg) for arg in args],
    )


@both
def test_command_line_from_yaml(folder, package, capsys) -> None:
    lightning, space = PACKAGES[package]
    path = config(package, folder)
    cli = run(package, "fit", "--config", path)
    assert cli.trainer.global_step == 2
    assert type(cli.model) is space.LanguageModel and type(cli.datamodule) is space.ByteText
    assert isinstance(cli.trainer, lightning.Trainer)
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert set(CALLBACKS) - PARTICULAR <= set(names)
    logged = folder / package / "run" / "version_0"
    assert "train/tokens_per_second" in (logged / "metrics.csv").read_text()
    assert "recurrence/backend: serial" in (logged / "hparams.yaml").read_text()

    # What was resolved is a config, and what was saved is tested, by it and without it.
    resolved = yaml.safe_load((logged / "config.yaml").read_text())
    assert resolved["model"]["class_path"] == f"{space.__name__}.LanguageModel"
    (checkpoint,) = logged.glob("checkpoints/*.ckpt")
    tested = run(package, "test", "--config", path, "--ckpt_path", checkpoint)
    assert tested.trainer.callback_metrics["test/loss"] > 0
    model = space.LanguageModel.load_from_checkpoint(checkpoint, weights_only=True)
    torch.testing.assert_close(model.state_dict(), cli.model.state_dict(), rtol=0, atol=0)


@both
def test_command_line_by_short_names(folder, package) -> None:
    args = ["fit", "--config", config(package, folder), "--trainer.fast_dev_run", "true"]
    args += ["--model", "LanguageModel", "--model.hidden_size", 4, "--data", "ByteText"]
    cli = run(package, *args)
    _, space = PACKAGES[package]
    assert type(cli.model) is space.LanguageModel and type(cli.datamodule) is space.ByteText


@both
def test_command_line_with_switch(folder, package) -> None:
    content = yaml.safe_load(config(package, folder).read_text())
    content["model"]["class_path"] = f"{__name__}.{PROJECTS[package]}"
    content["model"]["init_args"] = {}
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning_lrnn.SwitchRNN", "init_args": {"rnn": "GILRLSTM"}},
        {"class_path": "lightning_lrnn.SwitchBackend", "init_args": {"backend": "serial"}},
    ]
    path = folder / "switch.yaml"
    path.write_text(yaml.safe_dump(content))
    cli = run(package, "fit", "--config", path)
    assert isinstance(cli.model.rnn, lightning_lrnn.nn.GILRLSTM)
    assert cli.model.rnn.backend == "serial" == lightning_lrnn.last_backend()


class _Project:
    """What a user's module has, for either package."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(256, 4), torch.nn.Linear(8, 256)
        self.rnn = torch.nn.LSTM(4, 8, batch_first=True)

    def training_step(self, batch, batch_idx):
        y, _ = self.rnn(self.embedding(batch.inputs))
        return torch.nn.functional.cross_entropy(self.head(y).mT, batch.targets)

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Here(_Project, pytorch_lightning.LightningModule):
    pass


class There(_Project, other.LightningModule):
    pass


PROJECTS = {"pytorch_lightning": "Here", OTHER: "There"}


def test_own_command_stays_on_pytorch_lightning(folder) -> None:
    from lightning_lrnn.cli.fit import run as own

    cli = own(["fit", "--config", str(config("pytorch_lightning", folder))])
    assert type(cli.trainer) is pytorch_lightning.Trainer
    assert type(cli.model) is modules.LanguageModel


# Where there is no package `lightning`.


FOLDER = """
import sys
assert sys.modules["lightning"].__path__ == [sys.path[0] + "/lightning"]
del sys.modules["lightning"]
"""

BLOCKED = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "lightning" or name.startswith("lightning."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
importlib.reload(callbacks.callback)
"""

SINGLE_LAYERS = """
import pytorch_lightning
import lightning_lrnn
from lightning_lrnn import callbacks, pl

assert callbacks.callback.Callback is pytorch_lightning.Callback
for statement in ("import lightning_lrnn.L", "from lightning_lrnn import L", "lightning_lrnn.L"):
    try:
        exec(statement)
    except ModuleNotFoundError as error:
        assert "pip install" in str(error) and "lightning_lrnn.pl" in str(error), error
    else:
        raise AssertionError(statement)
"""

FITS = """
import sys
from pytorch_lightning.cli import LightningCLI

arguments, sys.argv = sys.argv[1:], sys.argv[:1]
cli = LightningCLI(
    pytorch_lightning.LightningModule,
    pytorch_lightning.LightningDataModule,
    subclass_mode_model=True,
    subclass_mode_data=True,
    auto_configure_optimizers=False,
    args=arguments,
)
assert cli.trainer.global_step == 2
"""


def alone(folder: Path, script: str, *args: str) -> None:
    path = folder / "alone.py"
    path.write_text(script)
    result = subprocess.run(
        [sys.executable, str(path), *args], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_pytorch_lightning_alone(folder) -> None:
    """First where a folder is called `lightning`, which is not the package."""
    path = config("pytorch_lightning", folder)
    (folder / "lightning").mkdir()
    (folder / "lightning" / "__init__.py").touch()
    script = SINGLE_LAYERS + FOLDER + BLOCKED + SINGLE_LAYERS + FITS
    alone(folder, script, "fit", "--config", str(path))
