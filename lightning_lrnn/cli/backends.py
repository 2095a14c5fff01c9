"""`lightning-lrnn backends`: which backends run on this machine, and why others do not."""

from __future__ import annotations

import torch

from lightning_lrnn import backends
from lightning_lrnn.cli.parser import Parser

__all__ = ["main"]


def main(words: list[str]) -> None:
    """Prints each backend with its reasons on the CPU and on a GPU."""
    Parser(
        prog="lightning-lrnn backends",
        description="Lists the backends in the order in which `auto` tries them.",
    ).parse_args(words[1:])
    present = {"cpu": True, "cuda": torch.cuda.is_available()}
    reasons = {device: backends.explain(device) for device in present}
    width = max(map(len, backends.names()))
    for name in backends.names():
        for row, device in enumerate(present):
            # Some run on any device that PyTorch has, and have no reasons of their own.
            state = "runs" if present[device] else f"no {device} device here"
            answer = "; ".join(reasons[device][name]) or state
            print(f"{'' if row else name:{width}}  {device:4}  {answer}")
