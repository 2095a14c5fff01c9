"""Layers where they are served: a step recorded and replayed, programs without this package."""

from lightning_lrnn.serving.decompositions import decompositions
from lightning_lrnn.serving.recorded_step import RecordedStep

__all__ = ["RecordedStep", "decompositions"]
