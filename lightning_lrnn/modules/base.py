"""The base class of this package's LightningModules: state, metrics, optimizer, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils._pytree import tree_map
from torchmetrics import MetricCollection
from torchmetrics.metric import jit_distributed_available

from lightning_lrnn.core.checks import check_counts, check_flags, check_numbers
from lightning_lrnn.core.ranks import Ranks, all_gather, ranks_of
from lightning_lrnn.core.subclasses import Renamed, inherit_arguments, take_renamed
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.samplers import part_of_data
from lightning_lrnn.data.sequence_data import FITTED
from lightning_lrnn.modules.checkpoint import settle
from lightning_lrnn.nn.checks import check_backend
from lightning_lrnn.nn.stack import Stack

__all__ = ["RecurrentModule", "ResumeError"]

STAGES = ("train", "val", "test")
CARRIED, RANDOM = "carried_state", "random_state"


class ResumeError(ValueError):
    """The state of a run in a checkpoint does not fit the run that continues it."""


class RecurrentModule(pl.LightningModule):
    """A LightningModule around recurrent layers. A subclass says what the model and the loss are.

    It must have `forward(inputs, state=None, reset=None, lengths=None) -> (output, state)`, with
    tensors in any nesting of tuples, lists and dicts as state and None for zeros, and
    `loss(output, batch)`. It gets `reset` and `lengths` of a batch that has them. It may also
    override, each in a few lines: `run` (how a batch is fed to `forward`), `check`,
    `make_metrics`, `make_evaluation_metrics` and `measure`, `weight`, `segment`,
    `make_optimizer`, `make_schedule`, `prediction`. Train, validation and test go through one
    `step`.

    State is carried over consecutive batches, detached (truncated back-propagation through time):
    batch k + 1 continues batch k, row by row, and `batch.reset` says where a row starts anew. A
    batch of another number of rows, the last one perhaps, starts from zeros, with a warning. Each
    stage has its own state, so validation does not touch that of training, and each epoch starts
    from zeros. A checkpoint contains the state and the state of the random numbers: a run resumed
    in the middle of an epoch has the losses of one that was never interrupted.

    `backend` does not belong to the trained model and is never saved in a checkpoint.

    Args:
        backend: how the recurrences are computed: "auto" or a name of
            `lightning_lrnn.backends.names()`.
        carry_state: carry the state over consecutive batches; otherwise each starts from zeros.
        lr: learning rate, the highest of the schedule.
        weight_decay: of matrices; vectors (biases, norms) and embeddings have none.
        warmup_steps: optimizer steps in which the learning rate rises from 0.
        total_steps: optimizer steps in which it falls again, by a cosine; None for the number that
            the trainer will make. If that is unknown too, it stays constant.
        final_lr: learning rate at the end, as a fraction of `lr`.

    Attributes:
        fixed_options: options of a recurrent layer that the model fixes: their only value, and
            advice for an error message.

    Raises:
        lightning_lrnn.BackendError: if there is no backend of that name.
        ValueError: for figures that cannot be, such as a negative `weight_decay`.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = {
        "backend": ("auto", "the model sets it in all its layers; set the model's `backend`"),
        "device": (None, "the trainer moves the model; set its `accelerator`"),
        "dtype": (None, "the trainer chooses it; set its `precision`"),
    }
    decided = Renamed("fixed_options")
    stretch = Renamed("segment")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        take_renamed(cls)
        inherit_arguments(cls)

    def __init__(
        self,
        backend: str = "auto",
        carry_state: bool = True,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        total_steps: int | None = None,
        final_lr: float = 0.05,
    ) -> None:
        super().__init__()
        self._ranks: Ranks | None = None
        check_numbers(0, lr=lr, weight_decay=weight_decay, final_lr=final_lr)
        check_counts(0, warmup_steps=warmup_steps)
        if total_steps is not None:
            check_counts(1, total_steps=total_steps)
        check_flags(carry_state=carry_state)
        self.backend = backend
        self.carry_state = carry_state
        self.lr, self.weight_decay, self.final_lr = lr, weight_decay, final_lr
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        # What the data module fitted to the training data, which it reads from here.
        self.data_state: dict[str, Any] = {}
        self._states: dict[str, Any] = {}
        self._rows_of: dict[str, int | None] = {}
        self._resumed = False
        self._random: dict[str, Tensor] = {}
        self._checked: set[str] = set()
        self.metrics = nn.ModuleDict()

    @property
    def backend(self) -> str:
        """The backend of the recurrences; setting it sets it in every layer of this package."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_backend(name)
        self._backend = name
        for layer in self.recurrent_layers().values():
            layer.backend = name

    @property
    def group(self) -> Ranks | None:
        """The ranks that share each sequence, see `Stack.group`; None where all of it is here.

        Setting it sets it in every layer of this package. `SequenceParallelStrategy` does.
        """
        return self._ranks

    @group.setter
    def group(self, group: Any) -> None:
        self._ranks = ranks_of(group)
        for layer in self.recurrent_layers().values():
            layer.group = self._ranks

    @property
    def chunk_of_layers(self) -> int | None:
        """The `checkpoint_time` of the layers of this package, which ranks share at a time.

        Raises:
            ValueError: where layers have different ones.
        """
        chunks = {layer.checkpoint_time for layer in self.recurrent_layers().values()}
        if len(chunks) > 1:
            raise ValueError(
                f"layers that ranks share must have the same `checkpoint_time`, got "
                f"{', '.join(map(str, chunks))}"
            )
        return chunks.pop() if chunks else None

    def recurrent_layers(self) -> dict[str, Stack]:
        """The layers of this package, by path."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Stack)}

    # Methods for subclasses to override.

    def run(self, batch: Any, state: Any) -> tuple[Any, Any]:
        """The output for a batch and the state after it."""
        steps = {"reset": batch.reset, "lengths": getattr(batch, "lengths", None)}
        options = {name: value for name, value in steps.items() if value is not None}
        output, state = self(batch.inputs, state=state, **options)
        return output, state

    def check(self, batch: Any) -> None:
        """Raises for a batch that does not fit the model; called with a stage's first batch."""

    def loss(self, output: Any, batch: Any) -> Tensor:
        """The loss to minimise, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss(output, batch)`")

    def make_metrics(self) -> MetricCollection:
        """Metrics by name; each stage gets its own copy, with the names "<stage>/<metric>"."""
        return MetricCollection({})

    def make_evaluation_metrics(self) -> MetricCollection:
        """More metrics for validation and test, which are not computed in training steps."""
        return MetricCollection({})

    def measure(self, metrics: MetricCollection, output: Any, batch: Any, loss: Tensor) -> None:
        """Updates the metrics with a batch."""
        metrics.update(output, batch.targets)

    def weight(self, batch: Any) -> int:
        """The weight of a batch in means over an evaluation: its number of rows."""
        return len(batch.targets)

    def segment(self, batch: Any, rank: int, size: int) -> Any:
        """Returns the time steps of a batch that are this rank's, where `size` ranks share them.

        For a loss that is a mean over time steps: `weight` then counts those of the segment.

        Raises:
            ValueError: where the batch has no such parts.
        """
        raise ValueError(
            f"the loss of {type(self).__name__} is none of single time steps, and its sequences "
            f"cannot be shared by ranks: take the strategy `ddp`"
        )

    def prediction(self, output: Any, batch: Any) -> Any:
        """The result of `predict` for a batch."""
        return output

    def make_optimizer(self) -> Optimizer:
        """AdamW, which decays only the matrices."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        for parameter in self.parameters():
            if parameter.requires_grad:
                matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
                (decayed if matrix else free).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return AdamW([g for g in groups if g["params"]], lr=self.lr, betas=(0.9, 0.98))

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | None:
        """Linear warm-up, then a cosine, by steps. Overridden with None, the rate is constant."""
        total = self.total_steps
        if total is None:
            known = self.trainer.estimated_stepping_batches
            total = None if math.isinf(known) else int(known)

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if total is None:
                return 1.0
            done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * done)) / 2

        return LambdaLR(optimizer, factor)

    # Methods that call them.

    def step(self, batch: Any, stage: str) -> Tensor:
        """Runs a batch of "train", "val" or "test", logs loss and metrics, and keeps the state."""
        output = self._advance(batch, stage)
        loss = self.loss(output, batch)
        training = stage == "train"
        whole, weight = loss.detach(), 1 if training else self.weight(batch)
        if self.group is not None:
            loss, whole, weight = self._shared(self.group, loss, output, batch)
        self.log(
            f"{stage}/loss",
            whole,
            on_step=training,
            on_epoch=not training,
            batch_size=weight,
            sync_dist=not training,
        )
        metrics = self._metrics(stage)
        if len(metrics):
            if training:
                # Of this step alone: in an epoch of training every step has another model. And of
                # this process alone: see `on_train_epoch_end`.
                metrics.reset()
            self.measure(metrics, output, batch, whole)
            self.log_dict(
                # In a step Lightning logs of a metric object only the result of its `forward`.
                metrics.compute() if training else metrics,
                on_step=training,
                on_epoch=not training,
                prog_bar=True,
                batch_size=1,
            )
        return loss

    def _shared(
        self, ranks: Ranks, loss: Tensor, output: Any, batch: Any
    ) -> tuple[Tensor, Tensor, int]:
        """The loss of a segment with n of a sequence's N steps; R ranks have a mean loss each.

        Returns:
            loss * n / N * R, whose mean over the ranks is the mean over all steps, as DDP takes it
            of gradients; that mean, without a gradient, on every rank; N.
        """
        n = self.weight(batch)
        if n == 0:
            # The mean of none is NaN. The backward pass must run: other ranks wait for it.
            loss = 0 * output.sum()
        counted = torch.stack([loss.detach().double() * n, loss.new_tensor(n).double()])
        total, steps = all_gather(counted, ranks).sum(0)
        most = steps.clamp(min=1)
        return loss * (n * ranks.size / most), (total / most).to(loss.dtype), int(steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """See `step`."""
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """See `step`."""
        return self.step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """See `step`."""
        return self.step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """See `prediction`."""
        return self.prediction(self._advance(batch, "predict"), batch)

    def setup(self, stage: str) -> None:
        """Turns off the graphs of loggers, see `draw_no_graph`."""
        if self._trainer:
            draw_no_graph(self.trainer)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule step by step."""
        optimizer = self.make_optimizer()
        schedule = self.make_schedule(optimizer)
        if schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @torch.no_grad()
    def decays(self, batch: Any) -> dict[str, Tensor]:
        """The decays of every recurrence on a batch, from a state of zeros; see `Stack.decays`.

        The model runs in evaluation mode and keeps the mode, the state and the metrics it had.

        Returns:
            By the paths "<layer>.<scan>", such as "rnn.0.layer0.forward.cell": (B, T, ·).
        """
        recorded: dict[str, Tensor] = {}

        def record(path: str) -> Any:
            def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
                assert isinstance(layer, Stack)
                for scan, a in layer.decays(*args, **kwargs).items():
                    recorded[f"{path}.{scan}"] = a

            return hook

        handles = [
            layer.register_forward_pre_hook(record(path), with_kwargs=True)
            for path, layer in self.recurrent_layers().items()
        ]
        training = self.training
        self.eval()
        try:
            self.run(batch, None)
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        return recorded

    def on_train_epoch_start(self) -> None:
        """Resets the carried state of this stage to zeros."""
        self._start("train")

    def on_train_epoch_end(self) -> None:
        """Logs the last step's metrics over all processes, for callbacks that monitor one.

        At every step that would take half of its time: there the first process logs its own.
        """
        metrics = self._metrics("train")
        if not self._trainer or self.trainer.world_size == 1 or not len(metrics):
            return
        _synchronised(metrics, True)
        try:
            self.log_dict(metrics.compute(), on_epoch=True, logger=False, batch_size=1)
        finally:
            _synchronised(metrics, False)

    def on_validation_epoch_start(self) -> None:
        """Resets the carried state of this stage to zeros."""
        self._start("val")

    def on_test_epoch_start(self) -> None:
        """Resets the carried state of this stage to zeros."""
        self._start("test")

    def on_predict_epoch_start(self) -> None:
        """Resets the carried state of this stage to zeros."""
        self._start("predict")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the carried state of every part of the data; removes the backend."""
        hparams = checkpoint.get("hyper_parameters")
        if isinstance(hparams, Mapping):
            checkpoint["hyper_parameters"] = {k: v for k, v in hparams.items() if k != "backend"}
        checkpoint[CARRIED] = self._of_all(self._states.get("train"))
        checkpoint[RANDOM] = self._of_all(_random_state(self.device))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the carried state, the random numbers and the data's state.

        An epoch that was left half way goes on.
        """
        settle(checkpoint)
        rank, _ = part_of_data(self._trainer)

        def own_entry(name: str) -> Any:
            states = checkpoint.get(name)
            if states is not None and not isinstance(states, list):
                raise ResumeError(f"`{name}` is no list, one entry for each process")
            return states[rank] if states and rank < len(states) else None

        self._states["train"] = own_entry(CARRIED)
        self._resumed = self._states["train"] is not None
        self._random = own_entry(RANDOM) or {}
        try:
            for device, state in self._random.items():
                if device == "cpu":
                    torch.Generator().set_state(state.cpu())
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ResumeError(f"`{RANDOM}` is none of random numbers ({error})") from error
        states = (state for state in checkpoint.values() if isinstance(state, Mapping))
        self.data_state = next((dict(state) for state in states if FITTED in state), {})

    def on_train_start(self) -> None:
        """Continues the random numbers of a resumed run."""
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"].cpu())
        if "cuda" in self._random and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"].cpu(), self.device)
        self._random = {}

    def _start(self, stage: str) -> None:
        self._states.pop(stage, None)
        self._rows_of.pop(stage, None)
        self._resumed = self._resumed and stage != "train"
        self._checked.discard(stage)
        if stage in STAGES:
            # A sum that `Trainer.validate` began in inference mode could not be added to in `fit`.
            with torch.inference_mode(False):
                self._metrics(stage).reset()

    def _advance(self, batch: Any, stage: str) -> Any:
        """Runs a batch from the stage's state and keeps the state after it."""
        if stage not in self._checked:
            try:
                self.check(batch)
            except ValueError as error:
                raise DataError(str(error)) from error
            self._checked.add(stage)
        state = self._states.get(stage) if self.carry_state else None
        rows = _rows(batch)
        if state is not None and self._rows_of.get(stage, rows) != rows:
            rank_zero_warn(
                f"a batch of {rows} rows after one of {self._rows_of[stage]} starts from a state "
                "of zeros: no row of it goes on; `drop_last` of the data leaves a smaller one out"
            )
            state = None
        state = tree_map(self._to_device, state)
        if stage == "train" and self._resumed:
            state = tree_map(self._cast, state)
        try:
            output, state = self.run(batch, state)
        except Exception as error:
            if stage == "train" and self._resumed and self._runs(batch):
                raise ResumeError(
                    f"the state that it carries over does not fit ({error}); go on with the "
                    f"`batch_size` and the layers that it had, or without: `carry_state` false"
                ) from error
            raise
        self._resumed = False
        if self.carry_state:
            self._states[stage] = tree_map(_detached, state)
            self._rows_of[stage] = rows
        return output

    def _runs(self, batch: Any) -> bool:
        """Whether a batch runs from a state of zeros."""
        try:
            self.run(batch, None)
        except Exception:
            return False
        return True

    def _cast(self, value: Any) -> Any:
        """Casts a tensor of a state, of a run in another precision, to this run's."""
        if not isinstance(value, Tensor):
            return value
        wide = any(p.dtype in (torch.float64, torch.complex128) for p in self.parameters())
        narrow = {torch.float64: torch.float32, torch.complex128: torch.complex64}
        other = {after: before for before, after in narrow.items()} if wide else narrow
        return value.to(other.get(value.dtype, value.dtype))

    def _to_device(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _metrics(self, stage: str) -> MetricCollection:
        if not self.metrics:
            # Not in `__init__`: that of a subclass first sets what `make_metrics` needs.
            for name in STAGES:
                collection = self.make_metrics()
                if name != "train":
                    collection.add_metrics(dict(self.make_evaluation_metrics().items()))
                self.metrics[f"of_{name}"] = collection.clone(prefix=f"{name}/").to(self.device)
                if name == "train":
                    _synchronised(self.metrics[f"of_{name}"], False)
        metrics = self.metrics[f"of_{stage}"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _of_all(self, tree: Any) -> list[Any]:
        """A list with the tree of every process that has data of its own, in order of rank.

        Processes that share a model, or a sequence, have the same, and are consecutive.
        """
        world = self.trainer.world_size if self._trainer else 1
        if world == 1 or tree is None:
            return [tree]
        _, parts = part_of_data(self._trainer)
        gathered = self.all_gather(tree_map(self._to_device, tree))
        return [
            tree_map(lambda x, i=i: x[i].clone() if isinstance(x, Tensor) else x, gathered)
            for i in range(0, world, world // parts)
        ]


def _synchronised(metrics: Any, over_processes: bool) -> None:
    """Sets whether metrics are computed over all processes, or of this one."""
    for metric in metrics.values(copy_state=False):
        metric.distributed_available_fn = jit_distributed_available if over_processes else _alone
        # The cached value may be the other one.
        metric.compute_with_cache = False


def _alone() -> bool:
    return False


def _rows(batch: Any) -> int | None:
    """The number of rows of a batch, padded or packed; None if unknown."""
    inputs = getattr(batch, "inputs", None)
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    return len(inputs) if isinstance(inputs, Tensor) and inputs.ndim else None


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def draw_no_graph(trainer: pl.Trainer) -> None:
    """Turns off graphs that loggers draw by `torch.jit.trace`, with a warning.

    TensorBoard's logger draws it when a run starts; a model that cannot be traced ends the run.
    """
    for logger in trainer.loggers:
        if getattr(logger, "_log_graph", False) is True:  # a dummy has every attribute
            logger._log_graph = False  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{type(logger).__name__}(log_graph=True): no graph is logged, since "
                f"torch.jit.trace, which draws it, holds neither the kernels of this package nor "
                f"states that may be None; leave `log_graph` out"
            )
