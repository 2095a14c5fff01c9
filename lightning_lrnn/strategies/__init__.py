"""Strategies of Lightning's Trainer: sequences that are shared by processes."""

from lightning_lrnn.strategies.sequence_parallel import SequenceParallelStrategy

__all__ = ["SequenceParallelStrategy"]
