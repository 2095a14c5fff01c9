"""DDP, or each process with a part of every parameter (FSDP2); checkpoints have whole ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_lrnn.core.checks import check_flags
from lightning_lrnn.nn.stack import Stack

__all__ = ["ShardingStrategy"]

NONE_OF_DDP = {"accelerator", "parallel_devices", "cluster_environment", "checkpoint_io"}
NONE_OF_DDP |= {"precision_plugin", "process_group_backend", "timeout", "start_method"}
"""Options of DDPStrategy that also work without DistributedDataParallel."""

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
"""Precisions of a trainer whose parameters are divided."""


class ShardingStrategy(DDPStrategy):
    """DDP, or FSDP2 in its place.

    Gradients are the mean over all processes either way, and a checkpoint is that of one process.
    Optimizers, too, have parts alone. A module stays divided when its run has ended.

    Args:
        fully_shard: whether parameters are divided among processes.
        options: of DDPStrategy.

    Raises:
        ValueError: for options, precisions, optimizers and modules that do not go with it.
    """

    def __init__(self, fully_shard: bool = False, **options: Any) -> None:
        super().__init__(**options)
        check_flags(fully_shard=fully_shard)
        if fully_shard and (of_ddp := _of_ddp(options, super().__init__)):
            raise ValueError(
                f"options of DistributedDataParallel, whose place `fully_shard` takes: "
                f"{', '.join(of_ddp)}; leave them out"
            )
        self.fully_shard = fully_shard

    def setup(self, trainer: Any) -> None:
        """Divides the parameters before optimizers are made."""
        if not self.fully_shard:
            super().setup(trainer)
            return
        module: Any = self.lightning_module
        if trainer.precision not in PRECISIONS:
            raise ValueError(
                f"`fully_shard` goes with a `precision` of {', '.join(PRECISIONS)}, got "
                f"{trainer.precision}: a scaler of gradients would see those of its process alone"
            )
        if not module.automatic_optimization:
            raise ValueError(
                f"{type(module).__name__} optimizes by hand (`automatic_optimization` is False), "
                f"which runs the backward pass inside of what FSDP takes for the forward pass: "
                f"leave `fully_shard` out"
            )
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if self._layer_sync is not None:
            self._layer_sync.apply(module)
        self.precision_plugin.convert_module(module)
        shard(module, init_device_mesh(self.root_device.type, (self.world_size,)), self.root_device)
        self.model = Called(module)
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
            check_divided(self.optimizers)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, as of one process; with `fully_shard` {} on other ranks than 0."""
        if not self.fully_shard:
            return dict(super().lightning_module_state_dict())
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        assert self.lightning_module is not None
        return get_model_state_dict(self.lightning_module, options=options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads a state; divides it if an earlier run has divided the parameters."""
        if self.fully_shard:
            assert self.lightning_module is not None
            like = self.lightning_module.state_dict()
            values = checkpoint["state_dict"].items()
            state = {name: divided(x, like.get(name)) for name, x in values}
            checkpoint = {**checkpoint, "state_dict": state}
        super().load_model_state_dict(checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state, as of one process; with `fully_shard` {} on other ranks than 0."""
        if not self.fully_shard:
            return super().optimizer_state(optimizer)
        # Lightning may have wrapped it.
        own = getattr(optimizer, "optimizer", optimizer)
        state: dict[str, Any] = whole(own.state_dict(), keep=self.is_global_zero)
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads the states of optimizers, divided as the parameters are."""
        if self.fully_shard:
            states = zip(checkpoint["optimizer_states"], self.optimizers, strict=False)
            of_parts = [divided_optimizer(state, optimizer) for state, optimizer in states]
            checkpoint = {**checkpoint, "optimizer_states": of_parts}
        super().load_optimizer_state_dict(checkpoint)

    def teardown(self) -> None:
        """Leaves a divided module on its device, to which FSDP's collectives are bound."""
        if not self.fully_shard:
            super().teardown()
            return
        self.model = self.lightning_module
        assert self.cluster_environment is not None and self.accelerator is not None
        plugins = (self.cluster_environment, self.precision_plugin)
        for plugin in (*plugins, self.accelerator, self.checkpoint_io):
            plugin.teardown()


def _of_ddp(options: Mapping[str, Any], init: Callable[..., None]) -> list[str]:
    """Options of DistributedDataParallel that are not its defaults, which a config gives too.

    Args:
        options: as they were given.
        init: the constructor of DDPStrategy, of either package, which has further options.
    """
    known = {
        name: parameter.default
        for function in (DistributedDataParallel, init)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    changed = [name for name, value in options.items() if value != known.get(name)]
    return sorted(set(changed) - NONE_OF_DDP)


class Called(nn.Module):
    """Calls another module, so that FSDP's hooks act around what Lightning puts in its `forward`.

    Lightning runs a step in the place of `forward` where the strategy's model is another module
    than the LightningModule, as it is under DDP. So a step may use all parts of the module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the wrapped module."""
        return self.module(*args, **kwargs)


def shard(module: nn.Module, mesh: Any, device: torch.device) -> None:
    """Divides the parameters of each layer of this package, then all others, in place.

    A part is gathered when its module is called, forward and backward, and gradients are the mean
    over the mesh. All processes start with the parameters of the first one. Only one layer at a
    time is whole on the device. Modules that are divided already stay so.

    Args:
        module: the LightningModule.
        mesh: of one dimension.
        device: of this process.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    units = [m for m in module.modules() if isinstance(m, Stack)]
    for unit in (*units, module):
        if isinstance(unit, FSDPModule):
            continue
        unit.to(device)
        for x in (*unit.parameters(), *unit.buffers()):
            if not isinstance(x, DTensor):
                _take_from_first(x.detach())
        fully_shard(unit, mesh=mesh)


def _take_from_first(x: Tensor) -> None:
    values = x.contiguous()
    # As bytes: not every backend sends every dtype.
    torch.distributed.broadcast(values.view(-1).view(torch.uint8), 0)
    x.copy_(values)


def check_divided(optimizers: Iterable[Optimizer]) -> None:
    """Raises for an optimizer that was made before the parameters were divided."""
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(not _is_divided(p) for p in parameters):
            raise ValueError(
                f"{type(optimizer).__name__} has parameters that are not those of the model any "
                f"more, which `fully_shard` has divided: make it in `configure_optimizers`, of the "
                f"parameters that the module has then"
            )


def whole(tree: Any, *, keep: bool) -> Any:
    """The tree with whole tensors, on the CPU, in the place of divided ones; on every rank.

    Args:
        tree: a `state_dict` of an optimizer, say.
        keep: whether the result is wanted on this rank; {} where it is not.
    """

    def of_all(x: Any) -> Any:
        if not _is_divided(x):
            return x
        full = x.full_tensor()
        return full.cpu() if keep else None

    gathered = tree_map(of_all, tree)
    return gathered if keep else {}


def divided(x: Any, like: Any) -> Any:
    """A whole tensor, divided as another is; the same on every rank, which takes its own part."""
    if not (isinstance(x, Tensor) and x.ndim and _is_divided(like)):
        return x
    from torch.distributed.tensor import distribute_tensor

    x = x.to(like.device)
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


def divided_optimizer(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The `state_dict` of an optimizer of one process, divided as this one's parameters are.

    Raises:
        ValueError: for a state of another shape than its parameter, which has no such parts.
    """
    ids = [i for group in state["param_groups"] for i in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = dict(zip(ids, own, strict=False))
    of_parameters = {}
    for i, values in state["state"].items():
        for name, x in values.items():
            if isinstance(x, Tensor) and x.ndim and x.shape != parameters[i].shape:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps `{name}` of shape {tuple(x.shape)} for a "
                    f"parameter of shape {tuple(parameters[i].shape)}, which `fully_shard` cannot "
                    f"divide: go on without it"
                )
        of_parameters[i] = {name: divided(x, parameters[i]) for name, x in values.items()}
    return {**state, "state": of_parameters}


def _is_divided(x: Any) -> bool:
    return hasattr(x, "full_tensor")
