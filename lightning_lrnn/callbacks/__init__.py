"""Callbacks that show what a recurrent model does; each works with any LightningModule."""

from lightning_lrnn.callbacks.backend_report import BackendReport
from lightning_lrnn.callbacks.gradient_norm import GradientNorm
from lightning_lrnn.callbacks.memory_horizon import MemoryHorizon
from lightning_lrnn.callbacks.throughput import Throughput

__all__ = ["BackendReport", "GradientNorm", "MemoryHorizon", "Throughput"]
