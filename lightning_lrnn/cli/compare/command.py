"""`lightning-lrnn compare`: one config with several layers and backends, one table."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lrnn.backends import check_name
from lightning_lrnn.cli.compare.figure import metric_of, short
from lightning_lrnn.cli.compare.run import WARM_UP
from lightning_lrnn.cli.fit import CommandLineError, parse
from lightning_lrnn.nn import CELLS

__all__ = ["Contender", "commands", "contenders", "main"]

OF_PROCESS, OF_GPU = "MB of memory", "MB on the GPU"
MEANING = {
    OF_PROCESS: "what the process grew by at its peak, compiled code included",
    OF_GPU: "the most that tensors took",
}


class Contender(NamedTuple):
    """A layer, and how its recurrences are computed; None for a layer that has no say in it."""

    rnn: str
    backend: str | None

    @property
    def label(self) -> str:
        """A name that a folder can have."""
        words = self.rnn if self.backend is None else f"{self.rnn}-{self.backend}"
        return re.sub(r"[^\w.-]+", "_", words)


def contenders(rnns: list[str], backends: list[str]) -> list[Contender]:
    """Every layer of this package with every backend, each other layer once."""
    found = []
    for rnn in rnns:
        name = rnn.removeprefix("lightning_lrnn.nn.")
        ours = name in CELLS
        found += [Contender(name, b) for b in backends] if ours else [Contender(rnn, None)]
    return list(dict.fromkeys(found))


def commands(
    config: str, runs: list[Contender], options: list[str], folder: Path, wandb: str | None
) -> list[list[str]]:
    """For each run the words of `lightning-lrnn`.

    Args:
        config: path of the config.
        runs: what to compare.
        options: further options of `fit`, the last word over the config.
        folder: where the logs go, into a folder for each run.
        wandb: "online" or "offline" for a WandbLogger beside the CSVLogger.
    """
    found = []
    for run in runs:
        loggers: list[dict[str, Any]] = [
            {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": run.label, "version": ""},
            }
        ]
        if wandb:
            of_wandb = {"project": "lightning_lrnn", "name": run.label}
            of_wandb["save_dir"] = str(folder / run.label)
            loggers.append(
                {
                    "class_path": "pytorch_lightning.loggers.WandbLogger",
                    "init_args": {**of_wandb, "offline": wandb == "offline"},
                }
            )
        words = ["fit", f"--config={config}", f"--model.rnn={run.rnn}"]
        words += [] if run.backend is None else [f"--model.backend={run.backend}"]
        words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        found.append([*words, *options, f"--trainer.logger={json.dumps(loggers)}"])
    return found


def main(
    config: str,
    rnns: list[str],
    backends: list[str],
    options: list[str],
    folder: Path,
    wandb: str | None = None,
) -> dict[str, Any]:
    """Runs them one after the other, prints the table, leaves it and a picture in a folder.

    Args:
        config: path of the config.
        rnns: names or paths of layers, as `--model.rnn` takes them.
        backends: for the layers of this package.
        options: further options of `fit`.
        folder: where all goes; its name is that of the comparison.
        wandb: see `commands`.

    Returns:
        What is in results.json.

    Raises:
        CommandLineError: if `fit` does not take the options, before anything runs.
        lightning_lrnn.BackendError: if there is no backend of a name.
    """
    for backend in backends:
        check_name(backend)
    runs = contenders(rnns, backends)
    lines = commands(config, runs, options, folder, wandb)
    for run, words in zip(runs, lines, strict=True):
        try:
            parse(words)
        except CommandLineError as error:
            raise CommandLineError(f"{' '.join(filter(None, run))}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    results: dict[str, Any] = {}
    for number, (run, words) in enumerate(zip(runs, lines, strict=True), 1):
        head = f"[{number}/{len(runs)}] {' '.join(filter(None, run))}"
        outcome = _run(head, words, folder / run.label, {"WANDB_RUN_GROUP": folder.name})
        requested, ran = run.backend, outcome.pop("backend", None)
        label = requested if requested != "auto" or not ran else f"auto ({ran})"
        found.append({"rnn": run.rnn, "backend": requested, "ran": label, **outcome})
        results = _summary(config, options, found)
        # After every run: the next one may be interrupted.
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"{head}: {_outcome(found[-1], results)}", flush=True)
    table = text_table(results)
    (folder / "table.txt").write_text(table)
    print(f"\n{table}")
    return results


def _run(head: str, words: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What a run came to, or {"error": a sentence}."""
    folder.mkdir(parents=True, exist_ok=True)
    log, start, outcome = folder / "log.txt", time.perf_counter(), {}
    command = [sys.executable, "-m", "lightning_lrnn.cli.compare.run", *words]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        ) as process,
    ):
        assert process.stdout is not None
        shown = 0.0
        try:
            for line in process.stdout:
                told = json.loads(line)
                if "step" not in told:
                    outcome = told
                    continue
                seconds = time.perf_counter() - start
                # One line that is rewritten in a terminal, a line now and then in a file.
                if sys.stdout.isatty() or seconds - shown > 15:
                    shown = seconds
                    loss = "" if told["loss"] is None else f", loss {told['loss']:.3f}"
                    print(
                        f"{head}: step {told['step']:,}{loss}, {seconds:.0f} s",
                        end="\r" if sys.stdout.isatty() else "\n",
                        flush=True,
                    )
        except BaseException:
            process.terminate()
            raise
    if "result" in outcome:
        result: dict[str, Any] = outcome["result"]
        return result
    status = process.returncode
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    error = outcome.get("error") or f"ended with {ended}; {last}".rstrip("; ")
    return {"error": error, "log": str(log)}


def _summary(config: str, options: list[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything, with what the table needs beside the runs."""
    done = [run for run in runs if "error" not in run]
    monitored = {run["monitor"]: run["mode"] for run in done if run["monitor"]}
    names = list(monitored) or list(dict.fromkeys(n for run in done for n in run["metrics"]))
    words = {"min": "lower is better", "max": "higher is better"}
    better = {name: words.get(monitored.get(name) or "", "after training") for name in names}
    device = done[0]["device"] if done else ""
    memory = OF_PROCESS if device in ("cpu", "") else OF_GPU
    if device == "cpu":
        device = f"CPU, {done[0]['threads']} threads"
    what = ", ".join(part for part in (Path(config).stem, _length(done), device) if part)
    return {
        "config": config,
        "options": options,
        "what": what,
        "metrics": names,
        "better": better,
        "memory": memory,
        "runs": runs,
    }


def _length(done: list[dict[str, Any]]) -> str:
    """How long the runs were."""
    steps = sorted({run["steps"] for run in done})
    if not steps:
        return ""
    if len(steps) == 1:
        return f"{steps[0]:,} steps each"
    return f"{steps[0]:,} to {steps[-1]:,} steps in {max(run['seconds'] for run in done):.0f} s"


def _outcome(run: dict[str, Any], results: dict[str, Any]) -> str:
    if "error" in run:
        return f"failed: {run['error']} ({run['log']})"
    metrics = [f"{name} {short(metric_of(name)(run))}" for name in results["metrics"]]
    figures = [f"{short(run['milliseconds'])} ms per step", f"{run['seconds']:.0f} s"]
    return ", ".join([*metrics, *figures])


def text_table(results: dict[str, Any]) -> str:
    """The table as text, with what its columns mean."""
    names = results["metrics"]
    head = ["layer", "backend", *names, "ms per step", "steps", "parameters", results["memory"]]
    rows = []
    for run in results["runs"]:
        row = [run["rnn"], run["ran"] or "-"]
        if "error" in run:
            rows.append([*row, f"failed: {run['error']}"])
            continue
        row += [short(metric_of(name)(run)) for name in names]
        row += [short(run["milliseconds"]), f"{run['steps']:,}", f"{run['parameters']:,}"]
        rows.append([*row, short(run["megabytes"])])
    whole = [row for row in rows if len(row) == len(head)]
    widths = [max(len(row[i]) for row in (head, *whole)) for i in range(len(head))]
    for i in (0, 1):
        widths[i] = max(len(row[i]) for row in (head, *rows))
    lines = [results["what"], ""]
    for row in (head, *rows):
        words = [f"{row[0]:{widths[0]}}", f"{row[1]:{widths[1]}}"]
        words += [
            f"{word:>{width}}" if row in (head, *whole) else word
            for word, width in zip(row[2:], widths[2:], strict=False)
        ]
        lines.append("  ".join(words).rstrip())
    lines.insert(3, "-" * max(map(len, lines)))
    lines += ["", *(f"{name}: {better}" for name, better in results["better"].items())]
    lines.append(f"ms per step: median, the first {WARM_UP} steps left out")
    lines.append(f"{results['memory']}: {MEANING[results['memory']]}")
    return "\n".join(lines) + "\n"
