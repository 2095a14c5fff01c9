"""Tests in several processes, which end their group before they exit: see `group_ends`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import durations
import pytest
import torch

# In these processes warnings are no errors; that operators return what shares memory is one.
os.environ["TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING"] = "1"

ENDS = Path(__file__).parent / "group_ends"
# What takes seconds to import is imported once, by the process that forks those of a group.
START = "forkserver" if sys.platform == "linux" else "spawn"
NIGHTLY = [pytest.param(size, marks=pytest.mark.nightly) for size in (2, 4)]
sizes = pytest.mark.parametrize("size", [3, *NIGHTLY])
"""Of three processes one has both neighbours: the least that has ranks of every kind."""
IMPORTED = ["pytest", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"]
IMPORTED += ["pytorch_lightning", "lightning_lrnn.modules", "lightning_lrnn.data"]


def run(*words: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python with `words` in a folder, and whatever processes that starts.

    A status other than 0 fails the test, with the end of stderr.
    """
    path = [str(ENDS), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"status {result.returncode}\n{result.stderr[-4000:]}"
    return result


def spawn(worker: Callable[..., None], folder: Path, *arguments: Any, count: int = 2) -> None:
    """Calls `worker(rank, *arguments)` in each of several processes, a group by gloo."""
    torch.multiprocessing.set_forkserver_preload(IMPORTED)
    spent = torch.multiprocessing.get_context(START).SimpleQueue()
    process_arguments = (worker, folder / "rendezvous", count, spent, arguments)
    try:
        torch.multiprocessing.start_processes(
            _in_group, process_arguments, nprocs=count, start_method=START
        )
    finally:
        while START == "forkserver" and not spent.empty():
            durations.of_others += spent.get()


@contextmanager
def world(rank: int, size: int) -> Iterator[None]:
    """Tells Lightning of several processes as torchrun does, and nothing of a single one."""
    words = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 1}
    words |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 1}
    variables = {name: str(value) for name, value in words.items()} | {"MASTER_ADDR": "127.0.0.1"}
    variables = variables if size > 1 else {}
    os.environ.update(variables)
    try:
        yield
    finally:
        for word in variables:
            del os.environ[word]


def _in_group(
    rank: int, worker: Callable[..., None], file: Path, count: int, spent: Any, arguments: Any
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=count
    )
    try:
        worker(rank, *arguments)
    finally:
        spent.put(sum(os.times()[:4]))
    torch.distributed.destroy_process_group()
    # What is compiled or sharded holds the group still, and threads of gloo with it: a process of
    # PyTorch that exits with such threads aborts now and then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
