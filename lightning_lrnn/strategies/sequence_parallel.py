"""Sequence parallelism: processes share each sequence, a segment of time each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._pytree import tree_flatten, tree_leaves

from lightning_lrnn.core.ranks import Ranks, check_together, checksum, ranks_of
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.strategies.reach import Watch
from lightning_lrnn.strategies.sharding import ShardingStrategy
from lightning_lrnn.strategies.split import Cut, check_layers, chunk_of

__all__ = ["SequenceParallelStrategy"]

DATA, SEQUENCE = "data", "sequence"


class SequenceParallelStrategy(ShardingStrategy):
    """DDP in which consecutive processes share each sequence, a segment of time each.

    The processes are a mesh of two dimensions, (data, sequence). Those of one row get the same
    batches and cut them over time when they are moved to the device (`RecurrentModule.segment`);
    rows get different ones, by Lightning's samplers, as the processes of DDP do. Losses, states and
    gradients are those of one process with the whole sequence; every process draws its own dropout.
    A checkpoint does not depend on the mesh: any number of processes can continue from it.

    Args:
        sequence_size: how many processes share a sequence; "auto" for all processes.
        fully_shard: whether each process keeps a part of every parameter, gradient and state of an
            optimizer (FSDP2) in the place of all of them (DDP).
        options: of DDPStrategy.

    Attributes:
        split: which dimensions of a batch are time, for a module without a `segment` of its own;
            `SwitchRNN` sets it, see `lightning_lrnn.strategies.split.Cut`.

    Raises:
        ValueError: for a `sequence_size` that does not divide the number of processes; for a module
            that cannot share its sequences; where processes of one row get different batches, or
            their losses depend on different layers; for options that do not go with `fully_shard`.
    """

    def __init__(
        self,
        sequence_size: int | Literal["auto"] = "auto",
        fully_shard: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(fully_shard, **options)
        counts = isinstance(sequence_size, int) and not isinstance(sequence_size, bool)
        if sequence_size != "auto" and not (counts and sequence_size > 0):
            raise ValueError(
                f"`sequence_size` must be 'auto' or a number of processes, got {sequence_size!r}"
            )
        self.sequence_size = sequence_size
        self.split: Any = None
        self._mesh: Any = None
        self._ranks: Ranks | None = None
        self._compared: set[object] = set()
        self._form: object = None
        self._watch: Watch | None = None

    def setup_environment(self) -> None:
        """Makes the mesh as well: consecutive processes, of one machine where they fit, share."""
        super().setup_environment()
        world = self.world_size
        size = world if self.sequence_size == "auto" else self.sequence_size
        if world % size:
            raise ValueError(
                f"`sequence_size` must divide the number of processes, {world}, got {size}"
            )
        shape, names = (world // size, size), (DATA, SEQUENCE)
        self._mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        self._ranks = ranks_of(self._mesh[SEQUENCE])

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Replicas are the rows of the mesh; the rank is the number of this row."""
        if self._mesh is None:
            return dict(super().distributed_sampler_kwargs)
        data = self._mesh[DATA]
        return {"num_replicas": data.size(), "rank": data.get_local_rank()}

    def process_dataloader(self, dataloader: object) -> object:
        """Seeds workers, where that is asked for, by the row: one row makes the same batches."""
        seeded = int(os.environ.get("PL_SEED_WORKERS", 0))
        if seeded and self._mesh is not None and getattr(dataloader, "worker_init_fn", 0) is None:
            row = self.distributed_sampler_kwargs["rank"]
            dataloader.worker_init_fn = partial(pl_worker_init_function, rank=row)  # type: ignore[attr-defined]
        return super().process_dataloader(dataloader)

    def setup(self, trainer: Any) -> None:
        """Sets the group in the module's layers."""
        if self._ranks is not None:
            self._share(self._ranks, self.lightning_module)
        self._compared.clear()
        super().setup(trainer)

    def _share(self, ranks: Ranks, module: Any) -> None:
        foreign = _is_foreign(module)
        if foreign and self.split is None:
            raise ValueError(
                f"{type(module).__name__} does not say what is time in its batches, and cannot "
                f"share sequences: say it by the callback SwitchRNN(split=...), or derive the "
                f"module from lightning_lrnn.pl.RecurrentModule and give it a `segment`, or take "
                f"the strategy `ddp`"
            )
        if not foreign and self.split is not None:
            raise ValueError(
                f"{type(module).__name__} says itself what is time in its batches: leave `split` "
                f"of SwitchRNN out"
            )
        check_layers(module, foreign=foreign, synchronised=self._layer_sync is not None)
        _set_group(module, ranks)
        self._watch = Watch(module, ranks)

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """This process's segment of a batch, on the device."""
        ranks, module = self._ranks, self.lightning_module
        if ranks is not None and module is not None:
            leaves, form = tree_flatten(batch)
            shapes = tuple(tuple(x.shape) for x in leaves if isinstance(x, Tensor))
            self._form = (str(module.trainer.state.stage), str(form), shapes)
            if self._form not in self._compared:
                check_together(ranks, None, partial(self._contents, batch))
                self._compared.add(self._form)
            batch = self._segment(batch)
        return super().batch_to_device(batch, device, dataloader_idx)

    def _segment(self, batch: Any) -> Any:
        module: Any = self.lightning_module
        ranks = self._ranks
        assert ranks is not None
        if _is_foreign(module):
            return Cut(ranks.rank, ranks.size, chunk_of(module)).of(self.split, batch)
        return module.segment(batch, ranks.rank, ranks.size)

    def _contents(self, batch: Any) -> dict[str, object]:
        """The properties of a batch that must be equal on the processes that share it."""
        self._segment(batch)
        tensors = [x for x in tree_leaves(batch) if isinstance(x, Tensor)]
        return {
            "The shapes of a batch": [tuple(x.shape) for x in tensors],
            "The contents of a batch (their checksums)": [checksum(x) for x in tensors],
        }

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a step with this process's random numbers, as dropout must differ over time."""
        if self._ranks is None or self._watch is None:
            return super().training_step(*args, **kwargs)
        self._watch.begin()
        with self._own_random_numbers():
            return super().training_step(*args, **kwargs)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Seeds a generator by a draw of the common one, whose state is in checkpoints."""
        seed = int(torch.randint(1 << 62, ()))
        device = self.root_device
        with torch.random.fork_rng([device.index] if device.type == "cuda" else []):
            torch.manual_seed(seed + self.global_rank)
            yield

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Raises where the backward passes of the ranks would not meet, see `Watch`."""
        module = self.lightning_module
        # With manual optimization a module may have several losses, which look alike here.
        if self._watch is not None and module is not None and module.automatic_optimization:
            self._watch.check(closure_loss, self._form)
        super().pre_backward(closure_loss)

    def teardown(self) -> None:
        """Sets the group of the module's layers to None."""
        module: Any = self.lightning_module
        if self._watch is not None:
            self._watch.stop()
        if self._ranks is not None and module is not None:
            _set_group(module, None)
        super().teardown()


def _set_group(module: Any, ranks: Ranks | None) -> None:
    """Sets the group of the module's layers, and of a module with a `group`."""
    for layer in module.modules():
        if isinstance(layer, Stack):
            layer.group = ranks
    if not _is_foreign(module):
        module.group = ranks


def _is_foreign(module: Any) -> bool:
    """Whether a module knows nothing of ranks; of either package, so not by its class."""
    return not (hasattr(module, "segment") and hasattr(module, "group"))
