"""Layers where they are served: a step recorded once and replayed."""

from lightning_lrnn.serving.recorded_step import RecordedStep

__all__ = ["RecordedStep"]
