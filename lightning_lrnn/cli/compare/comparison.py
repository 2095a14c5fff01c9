"""One config with several layers and backends, each in a process of its own, and one table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from lightning_lrnn.backends import check_name
from lightning_lrnn.cli.compare.table import metric_of, results_table, short, summary
from lightning_lrnn.cli.configs import check_yaml
from lightning_lrnn.cli.fit import parse
from lightning_lrnn.core.checks import UserError
from lightning_lrnn.nn import CELLS
from lightning_lrnn.nn.layer import OPTIONS, import_named
from lightning_lrnn.nn.stack import Stack

__all__ = ["LayerRun", "commands", "layer_runs", "run"]


class LayerRun(NamedTuple):
    """A layer, and the backend of its recurrences; None for a layer that takes no backend.

    Attributes:
        rnn: what `--model.rnn` takes: a name, or JSON with a class path and options.
        backend: its name, or None.
    """

    rnn: str
    backend: str | None

    @property
    def layer(self) -> str:
        """The layer as people read it: `QRNN`, or `QRNN(window=3)`."""
        if not self.rnn.startswith("{"):
            return self.rnn
        rnn = json.loads(self.rnn)
        options = {**rnn.get("init_args", {}), **rnn.get("dict_kwargs", {})}
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
        return f"{rnn['class_path']}({', '.join(f'{k}={v}' for k, v in values.items())})"

    @property
    def label(self) -> str:
        """The name of the run's folder."""
        layer = re.sub(r"\W+$", "", self.layer)
        return re.sub(r"[^\w.-]+", "_", "-".join(filter(None, (layer, self.backend))))

    def __str__(self) -> str:
        return " ".join(filter(None, (self.layer, self.backend)))


def layer_runs(rnns: list[Any], backends: list[str]) -> list[LayerRun]:
    """Returns every layer that takes a backend with each of them, and each other layer once.

    Args:
        rnns: layers, each a name, a path, a mapping with class_path and init_args, or its JSON.
        backends: names of backends.

    Raises:
        UserError: for what is none of these.
    """
    runs = []
    for rnn in rnns:
        path, options = _read(rnn)
        name = path.removeprefix("lightning_lrnn.nn.")
        layer = name if name in CELLS else path
        value = json.dumps({"class_path": layer, **options}) if options else layer
        runs += [LayerRun(value, b) for b in (backends if _takes_backend(layer) else [None])]
    return list(dict.fromkeys(runs))


def _read(rnn: Any) -> tuple[str, dict[str, Any]]:
    """The name or path of a layer, and its options as far as it has some."""
    mapping = rnn
    if isinstance(rnn, str):
        if not rnn.lstrip().startswith("{"):
            return rnn, {}
        check_yaml(rnn.encode(), f"--rnn {rnn}")
        try:
            mapping = yaml.safe_load(rnn)
        except yaml.YAMLError as error:
            raise UserError(f"--rnn {rnn} is no JSON: {' '.join(str(error).split())}") from error
    options = {k: v for k, v in mapping.items() if v} if isinstance(mapping, dict) else {}
    path = options.pop("class_path", None)
    of_options = all(k in OPTIONS and isinstance(v, dict) for k, v in options.items())
    if not isinstance(path, str) or not of_options:
        raise UserError(
            "a layer is a name or {class_path: name, init_args: {option: value}}, got "
            f"{json.dumps(rnn, default=str)}"
        )
    return path, options


def _takes_backend(layer: str) -> bool:
    """Whether it is a layer of this package, or a class of one's own that is derived from them."""
    if layer in CELLS:
        return True
    import_named(layer)
    module, _, name = layer.rpartition(".")
    layer_class = getattr(sys.modules.get(module), name, None)
    return isinstance(layer_class, type) and issubclass(layer_class, Stack)


def commands(
    config: str, runs: list[LayerRun], options: list[str], folder: Path, wandb: str | None
) -> list[list[str]]:
    """Returns the command line of each run, without `lightning-lrnn`.

    Args:
        config: path of the config.
        runs: what to compare.
        options: further options of `fit`, which overrule the config.
        folder: of the logs, with a folder for each run.
        wandb: "online" or "offline" for a WandbLogger beside the CSVLogger.
    """
    lines = []
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
        lines.append([*words, *options, f"--trainer.logger={json.dumps(loggers)}"])
    return lines


def run(
    config: str,
    rnns: list[Any],
    backends: list[str],
    options: list[str],
    folder: Path,
    wandb: str | None = None,
) -> dict[str, Any]:
    """Runs layers one after the other, prints their table, and writes it into a folder.

    Args:
        config: path of the config.
        rnns: layers, see `layer_runs`.
        backends: for the layers of this package.
        options: further options of `fit`.
        folder: for results and logs; its name is that of the comparison.
        wandb: see `commands`.

    Returns:
        The contents of results.json.

    Raises:
        UserError: if `fit` does not take the options, or the data cannot be used, before anything
            is trained.
        lightning_lrnn.BackendError: if there is no backend of a name.
    """
    for backend in backends:
        check_name(backend)
    runs = layer_runs(rnns, backends)
    lines = commands(config, runs, options, folder, wandb)
    for layer, words in zip(runs, lines, strict=True):
        try:
            parse(words)
        except UserError as error:
            raise UserError(f"{layer}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Any] = []
    results: dict[str, Any] = {}
    for number, (layer, words) in enumerate(zip(runs, lines, strict=True), 1):
        head = f"[{number}/{len(runs)}] {layer}"
        try:
            outcome = _run(head, words, folder / layer.label, {"WANDB_RUN_GROUP": folder.name})
        except BaseException:
            # The next comparison of this name reads whether any run has a result.
            results = summary(config, options, outcomes)
            _write(results, folder)
            ended = f"{len(outcomes)} of {len(runs)} runs have ended"
            if outcomes:
                print(f"\n\n{_tabulate(results, folder)}")
                ended += f"; {folder / 'results.json'} has their numbers"
            print(f"Stopped: {ended}", flush=True)
            raise
        if outcome.pop("of_data", False) and number == 1:
            # All runs have the same data.
            _remove_log(folder, folder / layer.label)
            raise UserError(outcome["error"])
        requested, resolved = layer.backend, outcome.pop("backend", None)
        label = requested if requested != "auto" or not resolved else f"auto ({resolved})"
        outcomes.append({"rnn": layer.layer, "backend": requested, "ran": label, **outcome})
        results = summary(config, options, outcomes)
        # After every run: the next one may be killed.
        _write(results, folder)
        print(f"{head}: {_sentence(outcomes[-1], results)}", flush=True)
    print(f"\n{_tabulate(results, folder)}")
    return results


def _tabulate(results: dict[str, Any], folder: Path) -> str:
    """Writes the table into the folder, and returns it."""
    table = results_table(results)
    (folder / "table.txt").write_text(table)
    return table


def _remove_log(folder: Path, of_run: Path) -> None:
    """Removes what a comparison has written before its first run; the folders, if that is all."""
    (of_run / "log.txt").unlink()
    with contextlib.suppress(OSError):
        of_run.rmdir()
        folder.rmdir()


def _write(results: dict[str, Any], folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def _run(head: str, words: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Runs `fit` in a process; returns what it measured, or {"error": a sentence}.

    With "of_data": True if that is an error of the data, before the first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, start, outcome = folder / "log.txt", time.perf_counter(), {}
    command = [sys.executable, "-m", "lightning_lrnn.cli.compare.run", *words]
    # A run with the wandb process of the caller would end when that process ends.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=inherited | environment,
        ) as process,
    ):
        assert process.stdout is not None
        shown = 0.0
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "step" not in message:
                    outcome = message
                    continue
                seconds = time.perf_counter() - start
                # One line that is rewritten in a terminal, a line now and then in a file.
                if sys.stdout.isatty() or seconds - shown > 15:
                    shown = seconds
                    loss = "" if message["loss"] is None else f", loss {message['loss']:.3f}"
                    print(
                        f"{head}: step {message['step']:,}{loss}, {seconds:.0f} s",
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
    of_data = {"of_data": True} if outcome.get("of_data") else {}
    return {"error": error, "log": str(log), **of_data}


def _sentence(run: dict[str, Any], results: dict[str, Any]) -> str:
    if "error" in run:
        return f"failed: {run['error']} ({run['log']})"
    metrics = [f"{name} {short(metric_of(name)(run))}" for name in results["metrics"]]
    figures = [f"{short(run['milliseconds'])} ms per step", f"{run['seconds']:.0f} s"]
    return ", ".join([*metrics, *figures])
