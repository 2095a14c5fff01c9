"""What a longer context in training gives and costs: a byte language model on real text.

    python benchmarks/long_context.py [--contexts 1024 16384 131072] [--rnn GILRLSTM MinGRU ...]
        [--seeds 0] [--bytes 4194304] [--rounds 5] [--rates RATE ...] [--draw] [--quick]

The context is the window of back-propagation. A model is first trained on short rows, in small
steps: 2 rows of 1,024 bytes each. From there it continues with each context, on as many bytes again
and always the same ones: every step sees 131,072 bytes in a row (a span), cut into 128 rows of
1,024 bytes, 8 of 16,384 or one. Each row starts from a state of zeros, the byte before it known. So
the first parameters, the bytes, their order, the number of steps and the learning rates are the
same, and only the context differs. State carried from step to step would give short windows streams
from all over the text instead, and a forward context as long as the longest. Without the first
training no context would learn much: the longest one has few steps, and the others must have no
more.

The text is the source of Python's standard library (`ByteText`), packages in an order of chance,
the files of a package in order of their paths, file ends not marked: half of the files are shorter
than 8 kB, so that a longer context is mostly one of other files of the package. The last spans are
held out; the others are seen in an order that depends on the seed, none twice before all were.

Held-out spans are read with the state starting anew every 1,024, 16,384 and 131,072 bytes, whatever
the model was trained with; "beyond" are the bytes of a span that have more than 16,384 before them,
the same ones for every reading. What a long memory is worth is the difference between two readings.

Time per byte is that of training steps (median, the first left out, in which code is compiled), and
once more that of forward and backward alone, all layers and contexts in turn, round after round.

`--rates` tries learning rates of the first training instead, on a quarter of its bytes;
LEARNING_RATES are the best of those, and the second training has a tenth of them. Writes
benchmarks/results/long_context.json and a figure beside it; keeps what is not asked for again.
`--quick` is for tests, `--draw` only draws.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from timing import Clock, Run, in_turn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_lrnn import last_backend
from lightning_lrnn.cli.figures import new_figure, save
from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.core.process_memory import process_memory, process_peak
from lightning_lrnn.data import ByteText
from lightning_lrnn.data.text.windows import TextBatch, Windows
from lightning_lrnn.modules import LanguageModel

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "long_context.json"
LEARNING_RATES = {"GILRLSTM": 2e-2, "MinGRU": 4e-2, "torch.nn.LSTM": 1e-2}
COLORS = {rnn: f"C{number}" for number, rnn in enumerate(LEARNING_RATES)}


class Sizes(NamedTuple):
    """Of everything. A span, what an optimizer step sees, is as long as the longest context."""

    contexts: tuple[int, ...] = (1024, 16_384, 131_072)
    hidden_size: int = 64
    num_layers: int = 2
    rows: int = 2
    """Of the shortest context, in a step of the first training."""
    bytes_seen: int = 32 * 131_072
    """Bytes that each of the two trainings sees."""
    held_out: int = 6
    """Spans at the end of the text that are not trained on."""

    @property
    def span(self) -> int:
        return self.contexts[-1]


QUICK = Sizes((32, 128, 512), hidden_size=8, num_layers=1, rows=4, bytes_seen=4 * 512, held_out=2)


class Noted(pl.Callback):
    """Loss and seconds of every optimizer step."""

    def __init__(self) -> None:
        self.bits: list[float] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.bits.append(float(outputs["loss"]) / math.log(2))
        self.seconds.append(time.perf_counter() - self._start)


def read() -> Tensor:
    """The standard library, (N,) uint8, each package as a whole."""
    data = ByteText()
    files = [file for split in ("train", "val", "test") for file in data.documents(split)]

    def by_package(file: Any) -> tuple[bytes, str]:
        package = file.name.partition("/")[0]
        return hashlib.sha256(package.encode()).digest(), file.name

    text = b"".join(file.content for file in sorted(files, key=by_package))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def windows_of(text: Tensor, batch_size: int, window: int) -> Windows:
    return Windows(text, torch.zeros(len(text), dtype=torch.bool), batch_size, window)


def order_of(known: int, steps: int, seed: int) -> list[int]:
    """Which of the known windows each optimizer step sees."""
    generator = torch.Generator().manual_seed(seed)
    epochs = [torch.randperm(known, generator=generator) for _ in range(-(-steps // known))]
    return torch.cat(epochs)[:steps].tolist()


def rows(window: TextBatch, context: int) -> TextBatch:
    """Its bytes in rows that are run from zeros."""
    return TextBatch(window.inputs.view(-1, context), window.targets.view(-1, context), None)


def batches(windows: Windows, order: list[int], context: int) -> DataLoader:
    """One batch for every optimizer step."""
    return DataLoader(
        windows, batch_size=None, sampler=order, collate_fn=lambda window: rows(window, context)
    )


@torch.no_grad()
def held_out_bits(model: LanguageModel, spans: Windows, sizes: Sizes, context: int) -> Tensor:
    """What each byte costs if the state starts anew every `context` bytes: (spans, span)."""
    model.eval()
    costs = []
    for k in range(len(spans) - sizes.held_out, len(spans)):
        batch = rows(spans[k], context)
        logits, _ = model(batch.inputs)
        costs.append(model.prediction(logits, batch).flatten())
    return torch.stack(costs)


def machine() -> dict[str, Any]:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or "unknown",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        # These decide whether each step gets its memory anew from the system.
        "malloc": {name: v for name, v in os.environ.items() if name.startswith("MALLOC_")},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch-lightning": pl.__version__,
        },
    }


def model_of(sizes: Sizes, rnn: str, lr: float = 0.0, steps: int = 1) -> LanguageModel:
    return LanguageModel(
        rnn=rnn,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        carry_state=False,
        lr=lr,
        warmup_steps=max(1, steps // 10),
        total_steps=steps,
    )


def train(
    text: Tensor,
    sizes: Sizes,
    rnn: str,
    seed: int,
    lr: float,
    context: int | None = None,
    start: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Trains; returns the result and the parameters. Without a context it is the first training."""
    title = f"context {context:,}" if context else "first training"
    print(f"{rnn}, {title}, seed {seed}, learning rate {lr:.2g}", flush=True)
    gc.collect()
    process_memory()  # the peak counts from here on
    spans = windows_of(text, 1, sizes.span)
    known = len(spans) - sizes.held_out
    windows = spans
    if context is None:
        windows = windows_of(text[: known * sizes.span], sizes.rows, sizes.contexts[0])
        known = len(windows)
    bytes_per_step = windows.batch_size * windows.window
    order = order_of(known, sizes.bytes_seen // bytes_per_step, seed)
    pl.seed_everything(seed, verbose=False)
    model, noted = model_of(sizes, rnn, lr, len(order)), Noted()
    if start is not None:
        model.load_state_dict(start)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[noted],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches(windows, order, context or sizes.contexts[0]))
    peak, backend = process_peak(), last_backend() if len(model.recurrent_layers()) else None
    held_out, by_position = {}, {}
    for reading in sizes.contexts:
        costs = held_out_bits(model, spans, sizes, reading)
        held_out[str(reading)] = float(costs.mean())
        ends = zip((0, *sizes.contexts), sizes.contexts, strict=False)
        by_position[str(reading)] = {f"{a}-{b}": float(costs[:, a:b].mean()) for a, b in ends}
    readings = ", ".join(f"{bits:.3f} by {int(c):,}" for c, bits in held_out.items())
    print(f"    {sum(noted.seconds):.0f} s, held-out bits per byte {readings}", flush=True)
    result = {
        "rnn": rnn,
        "context": context or sizes.contexts[0],
        "seed": seed,
        "lr": lr,
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "backend": backend,
        "bytes": trainer.global_step * bytes_per_step,
        "bytes_per_step": bytes_per_step,
        "steps": trainer.global_step,
        "order": order,
        "text_bytes": len(text),
        "text_sha256": hashlib.sha256(text.numpy().tobytes()).hexdigest(),
        "held_out_bytes": sizes.held_out * sizes.span,
        "bits_per_byte": held_out[str(sizes.span)],
        "bits_per_byte_by_reading": held_out,
        "bits_per_byte_by_reading_and_position": by_position,
        "curve": [[(k + 1) * bytes_per_step, round(b, 4)] for k, b in enumerate(noted.bits)],
        "seconds": sum(noted.seconds),
        "us_per_byte": 1e6 * statistics.median(noted.seconds[1:] or noted.seconds) / bytes_per_step,
        "step_seconds": [round(seconds, 4) for seconds in noted.seconds],
        "peak_bytes_of_process": peak,
        **machine(),
    }
    return result, {name: value.clone() for name, value in model.state_dict().items()}


def time_steps(
    text: Tensor, sizes: Sizes, rnns: Iterable[str], contexts: Iterable[int], rounds: int
) -> list[dict[str, Any]]:
    """Forward and backward of one span, all in turn."""
    span = windows_of(text, 1, sizes.span)[0]

    def step(model: LanguageModel, batch: TextBatch) -> None:
        model.zero_grad()
        logits, _ = model(batch.inputs)
        model.loss(logits, batch).backward()

    cases = {f"{rnn}, {context}": (rnn, context) for context in contexts for rnn in rnns}
    runs = {}
    for name, (rnn, context) in cases.items():
        model, batch = model_of(sizes, rnn), rows(span, context)
        runs[name] = Run(lambda _, model=model, batch=batch: step(model, batch))
    clock = Clock("cpu")
    for run in runs.values():
        clock.first(run)
    samples = in_turn(clock, runs, rounds, "time per byte")
    return [
        {
            "rnn": rnn,
            "context": context,
            "hidden_size": sizes.hidden_size,
            "num_layers": sizes.num_layers,
            "us_per_byte": 1e6 * statistics.median(samples[name]) / sizes.span,
            "step_seconds": samples[name],
            **machine(),
        }
        for name, (rnn, context) in cases.items()
    ]


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What is replaced when it is measured again."""
    names = ("context", "rnn", "hidden_size", "num_layers", "bytes", "lr", "seed")
    return tuple(run.get(name, 0) for name in names)


def keep(results: dict[str, Any], section: str, runs: list[dict[str, Any]], path: Path) -> None:
    """Adds runs to those on record and writes the file at once: the next run may be interrupted."""
    by_key = {key(other): other for other in results[section] + runs}
    results[section] = [by_key[index] for index in sorted(by_key)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results) + "\n")


def chosen(results: dict[str, Any], sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """What was measured with these sizes."""
    wanted = (sizes.hidden_size, sizes.num_layers, sizes.bytes_seen)

    def fits(run: dict[str, Any]) -> bool:
        sizes_of_run = (run["hidden_size"], run["num_layers"], run.get("bytes", sizes.bytes_seen))
        return sizes_of_run == wanted

    return {section: [run for run in results[section] if fits(run)] for section in results}


def mean(runs: list[dict[str, Any]], rnn: str, context: int, *path: str) -> float | None:
    """Over the seeds; None where nothing was measured."""
    values = []
    for value in runs:
        if (value["rnn"], value["context"]) == (rnn, context):
            for name in path:
                value = value[name]
            values.append(value)
    return statistics.fmean(values) if values else None


def worth(runs: list[dict[str, Any]], sizes: Sizes, rnn: str, context: int) -> float | None:
    """Bits per byte that what lies before the last bytes saves, those of the shortest context."""
    beyond = f"{sizes.contexts[-2]}-{sizes.contexts[-1]}"
    path = "bits_per_byte_by_reading_and_position"
    short, long = (mean(runs, rnn, context, path, str(sizes.contexts[i]), beyond) for i in (0, -1))
    return None if short is None or long is None else short - long


def table(results: dict[str, Any], sizes: Sizes) -> str:
    """Held-out bits per byte by reading; what memory is worth beyond; the two times per byte."""
    fitting = chosen(results, sizes)
    heads = [f"read by {context:,}" for context in sizes.contexts]
    heads += ["memory beyond", "us/byte, training", "us/byte, in turn", "seconds"]
    lines = [["layer", "context", *heads]]
    for rnn in LEARNING_RATES:
        for context in (None, *sizes.contexts):
            section, of = ("runs", context) if context else ("starts", sizes.contexts[0])
            cells = [
                mean(fitting[section], rnn, of, "bits_per_byte_by_reading", str(reading))
                for reading in sizes.contexts
            ]
            cells += [
                worth(fitting[section], sizes, rnn, of),
                mean(fitting[section], rnn, of, "us_per_byte"),
            ]
            cells += [mean(fitting["timings"], rnn, context, "us_per_byte") if context else None]
            cells += [mean(fitting[section], rnn, of, "seconds")]
            forms = [*(".3f" for _ in sizes.contexts), "+.3f", ".1f", ".1f", ".0f"]
            words = [
                "-" if cell is None else format(cell, form)
                for cell, form in zip(cells, forms, strict=True)
            ]
            lines.append([rnn, str(context or "first"), *words])
    return text_table(lines)


def draw(results: dict[str, Any], sizes: Sizes, path: Path) -> None:
    """Bits per byte, what memory is worth, and time per byte, by the context of training."""
    fitting = chosen(results, sizes)
    contexts, runs = sizes.contexts, fitting["runs"]
    figure = new_figure(1250, 380)
    left, middle, right = figure.subplots(1, 3)
    for rnn, color in COLORS.items():
        start = mean(fitting["starts"], rnn, contexts[0], "bits_per_byte")
        if start is not None:
            left.axhline(start, color=color, linestyle=":", label=f"{rnn}, first training")
        bits = [mean(runs, rnn, context, "bits_per_byte") for context in contexts]
        plot(left, contexts, bits, "o-", color, rnn)
        saved = [worth(runs, sizes, rnn, context) for context in contexts]
        plot(middle, contexts, saved, "o-", color, rnn)
        times = [mean(fitting["timings"], rnn, context, "us_per_byte") for context in contexts]
        plot(right, contexts, times, "o-", color, f"{rnn}, in turn")
        times = [mean(runs, rnn, context, "us_per_byte") for context in contexts]
        plot(right, contexts, times, "x:", color, f"{rnn}, in training")
    left.set_ylabel("bits per byte of held-out text")
    middle.axhline(0, color="0.5", linewidth=1)
    middle.set_ylabel(f"bits saved by memory beyond {contexts[0]:,} bytes")
    right.set(ylabel="microseconds per byte", ylim=(0, None))
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.set_xlabel("context of training, bytes")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    save(figure, path)


def plot(
    axes: Any,
    contexts: Iterable[int],
    heights: list[float | None],
    style: str,
    color: str,
    label: str,
) -> None:
    points = [(x, y) for x, y in zip(contexts, heights, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), style, color=color, label=label)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--contexts", type=int, nargs="+", help="which; default: all")
    parser.add_argument("--rnn", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="none: only the times")
    parser.add_argument("--bytes", type=int, help="that a training sees, of whole spans")
    parser.add_argument("--rounds", type=int, default=5, help="of the times per byte; 0 for none")
    parser.add_argument("--rates", type=float, nargs="+", default=[], help="learning rates to try")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    if options.bytes is not None:
        sizes = sizes._replace(bytes_seen=options.bytes)
    if sizes.bytes_seen < sizes.span or sizes.bytes_seen % sizes.span:
        parser.error(f"--bytes must be a multiple of {sizes.span:,}")
    contexts = options.contexts or sizes.contexts
    if not set(contexts) <= set(sizes.contexts):
        parser.error(f"--contexts must be some of {', '.join(map(str, sizes.contexts))}")
    if options.quick and options.json == RESULTS:
        parser.error("--quick needs --json: its results are none to keep beside the others")

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    results: dict[str, Any] = {"starts": [], "runs": [], "timings": [], "rates": []}
    if options.json.exists():
        results |= json.loads(options.json.read_text())
    if options.rates:
        text, small = read(), sizes._replace(bytes_seen=sizes.bytes_seen // 4)
        for rnn in options.rnn:
            for lr in options.rates:
                tried, _ = train(text, small, rnn, 0, lr)
                keep(results, "rates", [tried], options.json)
        return
    if not options.draw:
        text = read()
        if options.rounds:
            times = time_steps(text, sizes, options.rnn, contexts, options.rounds)
            keep(results, "timings", times, options.json)
        for seed in options.seeds:
            for rnn in options.rnn:
                lr = LEARNING_RATES[rnn]
                first, parameters = train(text, sizes, rnn, seed, lr)
                keep(results, "starts", [first], options.json)
                for context in contexts:
                    run, _ = train(text, sizes, rnn, seed, lr / 10, context, parameters)
                    keep(results, "runs", [run], options.json)
    print(table(results, sizes))
    draw(results, sizes, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
