"""Layers whose cells are sharded one by one (FSDP2) compute and learn as a whole one does.

Seen to fail: the bounds of an HGRN read in parts, which its cells hold.
"""

from __future__ import annotations

from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist

import lightning_lrnn as lrnn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

PROCESSES = 2


def learn(rank: int, names: list[str], results: Any) -> None:
    """Compares, in each process, its part of the output and the gradients with those of a whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    x = torch.randn(2 * PROCESSES, 5, 4, generator=torch.Generator().manual_seed(1))
    for name in names:
        made = []
        for _ in range(2):
            torch.manual_seed(0)
            made.append(lrnn.nn.CELLS[name](4, 8, 3, batch_first=True))
        rnn, whole = made
        for part in (*rnn.cells, rnn):
            fully_shard(part, mesh=mesh)
        mine = slice(2 * rank, 2 * rank + 2)
        y, wanted = rnn(x[mine])[0], whole(x)[0]
        torch.testing.assert_close(y, wanted[mine])
        y.pow(2).sum().backward()
        (wanted.pow(2).sum() / PROCESSES).backward()
        for ours, theirs in zip(rnn.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)
    if rank == 0:
        results.put(names)


def test_cells_are_sharded_one_by_one(tmp_path) -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    names = ["HGRN", "GILRLSTM"]
    processes.spawn(learn, tmp_path, names, results, count=PROCESSES)
    assert results.get() == names
