"""Times of one training step of a layer over ever longer sequences, as a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_lrnn import backends
from lightning_lrnn.cli.tables import counted, text_table
from lightning_lrnn.nn import GILRLSTM

__all__ = ["speed_table"]

TOKENS = 65_536
LENGTHS = (256, 4_096, 65_536)
INPUT_SIZE, HIDDEN_SIZE = 32, 64
REPEATS = 5


def speed_table(seconds: float = 20.0) -> str:
    """Times forward and backward of layers at equal numbers of tokens, layers interleaved.

    Args:
        seconds: after which no further round starts; every figure has at least one.

    Returns:
        A table in text: medians in milliseconds, and the ratio to `torch.nn.LSTM`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers: dict[str, nn.Module] = {
        "torch.nn.LSTM": nn.LSTM(INPUT_SIZE, HIDDEN_SIZE, batch_first=True)
    }
    for name, reasons in backends.explain(device).items():
        if not reasons:
            layers[f"GILRLSTM, {name}"] = GILRLSTM(
                INPUT_SIZE, HIDDEN_SIZE, batch_first=True, backend=name
            )
    inputs = {T: torch.randn(TOKENS // T, T, INPUT_SIZE, device=device) for T in LENGTHS}
    for layer in layers.values():
        layer.to(device)
        _step(layer, inputs[LENGTHS[0]])  # compiles
    times: dict[tuple[str, int], list[float]] = {(name, T): [] for name in layers for T in LENGTHS}
    start = time.perf_counter()
    for _ in range(REPEATS):
        for (name, T), samples in times.items():
            if samples and time.perf_counter() - start > seconds:
                continue
            samples.append(_timed(lambda n=name, T=T: _step(layers[n], inputs[T])))  # type: ignore[misc]
    median = {key: statistics.median(samples) for key, samples in times.items()}

    rows = [["one training step, ms", *(f"T = {T:,}" for T in LENGTHS)]]
    for name in layers:
        ratios = [median["torch.nn.LSTM", T] / median[name, T] for T in LENGTHS]
        times_ms = [1e3 * median[name, T] for T in LENGTHS]
        cells = [f"{ms:.0f} ({ratio:4.1f}x)" for ms, ratio in zip(times_ms, ratios, strict=True)]
        rows.append([name, *cells])
    return (
        f"{text_table(rows)}\n"
        f"{TOKENS:,} tokens each, {INPUT_SIZE} -> {HIDDEN_SIZE} features, {device}, "
        f"{counted(torch.get_num_threads(), 'thread')}; in brackets: times as fast as torch.nn.LSTM"
    )


def _step(layer: nn.Module, x: torch.Tensor) -> None:
    output = layer(x)[0]
    output.backward(torch.ones_like(output))


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
