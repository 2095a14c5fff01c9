"""The command line, `lightning-lrnn`."""

from lightning_lrnn.cli.main import main

__all__ = ["main"]
