"""Switches an existing project to linear recurrences, from its config."""

from __future__ import annotations

import functools
import types
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.watched import watch_again, watched_parameters
from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.modules.base import draw_no_graph
from lightning_lrnn.strategies.split import check_split
from lightning_lrnn.switch import optimizers
from lightning_lrnn.switch.distil import Distillation
from lightning_lrnn.switch.replace import Report, SwitchError, matches, replace_rnn
from lightning_lrnn.switch.subclass import CARRY, is_drop_in

__all__ = ["SwitchRNN", "load_switched"]

MAKES_LAYERS = ("setup", "configure_model", "on_load_checkpoint")
"""Methods of a LightningModule that may make layers, beside its constructor."""

IN_PARTS = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}
"""Strategies, of both packages, with which a process has parts of parameters."""

ELSEWHERE = (
    "let the new layers learn on one device first (`replace_rnn` and `fit_surrogate`), or by "
    "another strategy"
)

Module = TypeVar("Module")


class SwitchRNN(Callback):
    """Replaces every `torch.nn.LSTM`, `GRU` and `RNN` of a LightningModule; see `replace_rnn`.

    It acts before the `setup` of any callback, in any order of callbacks, hence before optimizers
    are made, the model is wrapped or copied and a checkpoint is read; and once more after the
    module's own `setup`, `configure_model` and `on_load_checkpoint`, which may make layers. It acts
    in fit, validate, test and predict, and does nothing the second time. Its report is printed, and
    loggers get it as hyperparameters "switch/...".

    **Parameters start anew**, unless `weights` are carried: then the first `carry_steps` steps of
    fit change only the new layers, which learn from the old ones, see
    `lightning_lrnn.switch.distil`. A checkpoint of a switched model has marks in its `state_dict`,
    and loads into the project's own model too, see `lightning_lrnn.switch.loading`.

    Args:
        rnn: "auto" for the recommended layer; the name of a layer, which replaces all that it can;
            or names by the classes that they replace: {"LSTM": "GILRLSTM", "GRU": "MinGRU"}.
        backend: how the recurrences are computed.
        options: of the new layers, such as {"window": 1}.
        state: "strict" for exactly the shapes and dtypes of `torch.nn`'s states, or "carried".
        weights: "new", or "carried" for layers that learn from those that they replace.
        carry_steps: batches to learn from, where weights are carried.
        where: patterns of paths, one of which must match; None for all.
        measure: whether the report says how long a training step of each layer takes.
        split: which dimensions of a batch are time, by position or by key, and None for what is the
            same on every rank: [1, 1] or {"x": 1, "y": None}, see
            `lightning_lrnn.strategies.split.Cut`. For `SequenceParallelStrategy`, which cuts
            batches so; other strategies leave them whole.

    Attributes:
        report: the replaced layers, and those that were left.

    Raises:
        lightning_lrnn.SwitchError: in a run, if no layer can be replaced, or not one that is named.
        ValueError: for arguments that cannot be.
    """

    def __init__(
        self,
        rnn: str | dict[str, str] = "auto",
        backend: str = "auto",
        options: dict[str, bool | int | float | str | list[float] | None] | None = None,
        state: str = "strict",
        weights: str = "new",
        carry_steps: int = 5,
        where: str | list[str] | None = None,
        measure: bool = False,
        split: int | list[Any] | dict[str, Any] | None = None,
    ) -> None:
        check_counts(carry_steps=carry_steps)
        if split is not None:
            check_split(split)
        if rnn == {}:
            raise ValueError("`rnn` names no layer; leave it out for `auto`")
        self._args: dict[str, Any] = {"rnn": rnn, "backend": backend, "options": options}
        self._args |= {"state": state, "weights": weights, "where": where, "measure": measure}
        self.carry_steps = carry_steps
        self.split = split
        self._distillation: Distillation | None = None
        # Of a module without layers: only the arguments are checked.
        replace_rnn(nn.Module(), **self._args)
        self.report = Report()
        self._reported = False

    @property
    def log(self) -> Any:
        """The module's `log`, as every callback has it."""
        return self._log

    @log.setter
    def log(self, method: Any) -> None:
        # Lightning sets it in all callbacks before the first `setup`, in which others may copy the
        # model: nothing else comes before that in any order of callbacks.
        self._log = method
        module = getattr(method, "__self__", None)
        if isinstance(module, nn.Module):
            self._switch(module)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes sure that the module was switched before other callbacks have seen it.

        Raises:
            lightning_lrnn.SwitchError: if it was not, and it can be too late.
        """
        draw_no_graph(trainer)
        self._set_split(trainer.strategy)
        if not self._replace(pl_module).replaced:
            return
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        plain = [base.setup for base in (Callback, *Callback.__bases__) if hasattr(base, "setup")]
        names = [type(c).__name__ for c in before if type(c).setup not in plain]
        if names:
            raise SwitchError(
                f"callbacks that may have copied the model come first: {', '.join(names)}; put "
                f"SwitchRNN before them"
            )

    def _set_split(self, strategy: Any) -> None:
        if self.split is None or not hasattr(strategy, "split"):
            return
        if strategy.split not in (None, self.split):
            raise SwitchError(
                f"`split` is said twice, as {strategy.split!r} and as {self.split!r}: let one "
                f"SwitchRNN say it"
            )
        strategy.split = self.split

    def _switch(self, module: nn.Module) -> None:
        self._replace(module)
        for name in MAKES_LAYERS:
            # The wrapper of another SwitchRNN, or the method of the class.
            method = getattr(vars(module).get(name), "__func__", getattr(type(module), name, None))
            if method is not None:
                # A bound method, so that in a copy of the module it is bound to the copy.
                vars(module)[name] = types.MethodType(self._after(method), module)

    def _after(self, method: Any) -> Any:
        """Wraps a module's method, to switch the layers that it makes."""

        @functools.wraps(method)
        def switching(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = method(module, *args, **kwargs)
            self._replace(module)
            return result

        return switching

    def _replace(self, module: nn.Module) -> Report:
        watched = watched_parameters(module)
        report = replace_rnn(module, **self._args)
        for path, layer in module.named_modules():
            # Layers that loading has switched do not have it yet.
            if is_drop_in(layer) and matches(path, self._args["where"]) and layer.backend == "auto":
                layer.backend = self._args["backend"]
        if report.replaced:
            rank_zero_info(f"SwitchRNN\n{report}")
            self.report = Report(self.report + report)
            watch_again(module, [r.path for r in report.replaced])
            watched.clear()
        return report

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the report, and makes sure that the new parameters will be trained.

        Raises:
            lightning_lrnn.SwitchError: if they will not.
        """
        self._log_report(trainer, pl_module)
        # `configure_optimizers` may use a list of parameters from before the switch.
        optimizers.exchange(trainer.optimizers)
        trained = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        own = {id(p) for p in pl_module.parameters()}
        for path, layer in pl_module.named_modules():
            ids = {id(p) for p in layer.parameters() if p.requires_grad}
            if is_drop_in(layer) and trained & own and ids and not ids & trained:
                raise SwitchError(
                    f"the parameters of {path} are new, and no optimizer has them: make optimizers "
                    f"in `configure_optimizers`, from the parameters that the module has then; "
                    f"or freeze them by `requires_grad_(False)`"
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to carry weights, if there are layers that learn."""
        learning = Distillation(pl_module, self.carry_steps)
        if not learning.layers:
            return
        self._distillation = learning
        strategy = type(trainer.strategy)
        of_parts = any(cls.__name__ in IN_PARTS for cls in strategy.__mro__)
        if of_parts or getattr(trainer.strategy, "fully_shard", False):
            raise SwitchError(
                f"`weights`: carried needs whole parameters, and {strategy.__name__} divides them "
                f"among processes: {ELSEWHERE}"
            )
        if any(layer.group is not None for layer in learning.layers):
            raise SwitchError(
                f"`weights`: carried needs whole sequences, which the old layers cannot share, and "
                f"{strategy.__name__} divides them among processes: {ELSEWHERE}"
            )
        rank_zero_info(f"SwitchRNN: {self.carry_steps} steps of learning from the old layers")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets the new layers learn from the old ones, and nothing else from this step."""
        if self._distillation is None:
            return
        reduce = trainer.strategy.reduce if trainer.world_size > 1 else None
        self._distillation.step(reduce)
        # A gradient scaler needs gradients; without any, no optimizer updates or decays anything.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        pl_module.zero_grad(set_to_none=not scaled)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the learning from old layers after `carry_steps`."""
        learning = self._distillation
        if learning is not None and len(learning.errors) >= self.carry_steps:
            learning.finish()
            self._distillation = None
            rank_zero_info(
                f"SwitchRNN: the new layers gave the old ones' outputs with a relative squared "
                f"error of {learning.errors[-1]:.2g} in the last step of these, and learn with the "
                f"rest from now on"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the report once; the new layers do not learn from validation."""
        self._log_report(trainer, pl_module)
        if self._distillation is not None:
            self._distillation.watches = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on to learn from old layers."""
        if self._distillation is not None:
            self._distillation.watches = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the report, if it was not logged yet."""
        self._log_report(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the report, if it was not logged yet."""
        self._log_report(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the module's own methods."""
        self._release(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restores the module's own methods."""
        self._release(pl_module)

    def _release(self, module: nn.Module) -> None:
        for name in MAKES_LAYERS:
            vars(module).pop(name, None)
        if self._distillation is not None:
            self._distillation.finish()
            self._distillation = None

    def _log_report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        where = self._args["where"]
        paths = [path for path, layer in pl_module.named_modules() if is_drop_in(layer)]
        if not any(matches(path, where) for path in paths):
            at = f" at a path that matches {where}" if where else ""
            raise SwitchError(
                f"{type(pl_module).__name__} has no torch.nn.LSTM, GRU or RNN{at} that SwitchRNN "
                f"could replace" + (f":\n{self.report}" if self.report else "")
            )
        if self._reported or not self.report:
            return
        self._reported = True
        done = self.report.replaced
        hparams: dict[str, Any] = {f"switch/{r.path}": f"{r.old} -> {r.new}" for r in done}
        hparams |= {"switch/parameters_before": sum(r.before for r in done)}
        hparams |= {"switch/parameters_after": sum(r.after for r in done)}
        for logger in trainer.loggers:
            logger.log_hyperparams(hparams)


def load_switched(
    module_class: type[Module], checkpoint_path: Any, *, backend: str = "auto", **kwargs: Any
) -> Module:
    """Loads a checkpoint of a switched model by `load_from_checkpoint`, with a backend.

    Args:
        module_class: the LightningModule that was switched.
        checkpoint_path: as `load_from_checkpoint` takes it.
        backend: how the recurrences are computed.
        kwargs: as `load_from_checkpoint` takes them; `weights_only` is True if not given.

    Returns:
        The model, its layers switched as those of the checkpoint.

    Raises:
        lightning_lrnn.SwitchError: if the checkpoint is not of a switched model, or of another.
    """
    cls: Any = module_class
    model: Module = cls.load_from_checkpoint(checkpoint_path, **{"weights_only": True, **kwargs})
    layers = [m for m in cast("nn.Module", model).modules() if is_drop_in(m)]
    if not layers:
        raise SwitchError(
            "the checkpoint is not of a switched model, and loading it switches nothing; for the "
            f"model as it was: load_from_checkpoint; for a switched one: {CARRY}"
        )
    for layer in layers:
        layer.backend = backend
    return model
