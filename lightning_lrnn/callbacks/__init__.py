"""Callbacks that switch a model, or show what it does; each works with any LightningModule.

Those for forecasts and classes need models and data with these.
"""

from lightning_lrnn.callbacks.backend_report import BackendReport
from lightning_lrnn.callbacks.gradient_norm import GradientNorm
from lightning_lrnn.callbacks.memory_horizon import MemoryHorizon
from lightning_lrnn.callbacks.predictions.write_classes import WriteClasses
from lightning_lrnn.callbacks.predictions.write_forecast import WriteForecast
from lightning_lrnn.callbacks.recurrence_monitor import RecurrenceMonitor
from lightning_lrnn.callbacks.seasonal_naive import SeasonalNaive
from lightning_lrnn.callbacks.stop_when_solved import StopWhenSolved
from lightning_lrnn.callbacks.switch_backend import SwitchBackend
from lightning_lrnn.callbacks.switch_rnn import SwitchRNN, load_switched
from lightning_lrnn.callbacks.throughput import Throughput

__all__ = [
    "BackendReport",
    "GradientNorm",
    "MemoryHorizon",
    "RecurrenceMonitor",
    "SeasonalNaive",
    "StopWhenSolved",
    "SwitchBackend",
    "SwitchRNN",
    "Throughput",
    "WriteClasses",
    "WriteForecast",
    "load_switched",
]
