"""Projects of others, as they are and with SwitchRNN: losses at equal steps, time, reloading.

    python benchmarks/switch.py [--projects NAME ...] [--rnn auto] [--seeds 5] [--jobs 2] [--keep]
                                [--only losses|times]
    python benchmarks/switch.py --table

Needs the dependency group `projects` of pyproject.toml. Each project keeps its learning rate and
its data, in the same order. Final loss: the mean of the training losses over the last tenth of the
steps. First the losses, `--jobs` runs at once; then, one project at a time and with all threads,
the time of a step: a step of the project as it is and one of the switched in turn. Each run ends
with saving and loading by the project's own means. Writes benchmarks/results/switch.json; of
projects that are not named it keeps what it has, and with `--keep` the runs of the named ones as
they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from projects import NAMES, Watch, find, sow
from timing import environment

import lightning_lrnn as lrnn  # noqa: F401  the switched layers load wherever it is imported

RESULTS = Path(__file__).parent / "results" / "switch.json"
GOAL = 1.03
TIMED_STEPS = 40


@contextlib.contextmanager
def alone(seed: int) -> Iterator[Path]:
    """An empty folder to work in, and every generator at the start that belongs to the seed."""
    sow(seed)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def quiet(threads: int | None = None) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if threads is not None:
        torch.set_num_threads(threads)


def losses_of(name: str, rnn: Any, seed: int, steps: int | None) -> dict[str, Any]:
    """A run: what it has lost at every step, on unseen data, and whether it loads again."""
    run: dict[str, Any] = {"project": name, "rnn": rnn, "seed": seed}
    project_class = find(name)
    watch = Watch(rnn, seed)
    with alone(seed) as folder:
        project = project_class(watch, steps or project_class.steps, seed, folder)
        try:
            project.fit()
            run |= {"losses": [round(loss, 5) for loss in watch.losses]}
            run |= {"validation": project.validation(), "report": watch.report}
        except Exception as error:
            return run | {"error": error_text(error)}
        try:
            run["reloaded"] = reloaded(project)
        except Exception as error:
            run["reloaded"] = error_text(error)
    return run


def reloaded(project: Any) -> str:
    before = project.output()
    project.watch.rnn = None  # what is loaded is the project's own model
    project.reload()
    after = project.output()
    if before.shape == after.shape and torch.equal(before, after):
        return "same"
    return f"other output: {before.flatten()[:3].tolist()}, then {after.flatten()[:3].tolist()}"


def error_text(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:600]


def times_of(name: str, rnn: Any) -> dict[str, list[float]]:
    """Seconds of the steps of both, one of each in turn on one thread."""
    from greenlet import greenlet

    parent = greenlet.getcurrent()
    project_class = find(name)
    with alone(0) as folder:
        watches, runs = [], []
        for label, layer in {"stock": None, "switched": rnn}.items():
            (folder / label).mkdir()
            watches.append(Watch(layer, 0, parent.switch))
            project = project_class(
                watches[-1], min(project_class.steps, TIMED_STEPS), 0, folder / label
            )
            runs.append(greenlet(project.fit))
        while not all(run.dead for run in runs):
            for run in runs:
                if not run.dead:
                    run.switch()
    return {
        label: watch.seconds[1:]
        for label, watch in zip(("stock", "switched"), watches, strict=True)
    }


def last(losses: list[float]) -> float:
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def ratio(before: list[float], after: list[float]) -> float:
    """Of the means; where losses may be negative, 1 + the change over their size."""
    old, new = statistics.fmean(before), statistics.fmean(after)
    return 1 + (new - old) / abs(old)


def table(report: dict[str, Any]) -> Iterator[str]:
    """In Markdown; means over the seeds. A loss below 0 is a likelihood's, see `ratio`."""
    yield (
        "| project | in it | seeds | first loss | as it is | switched | ratio | unseen data "
        "| ratio | ms/step | ratio | loaded again |"
    )
    yield "|---" * 12 + "|"
    missed = []
    for name, about in report["projects"].items():
        runs = [run for run in report["runs"] if run["project"] == name]
        head = f"| {name} | {about['cell']} | {len({run['seed'] for run in runs})} |"
        if errors := sorted({run["error"] for run in runs if "error" in run}):
            yield f"{head} {'; '.join(errors)} |" + " |" * 8
            missed.append(name)
            continue
        arms = [[run for run in runs if (run["rnn"] is None) == old] for old in (True, False)]
        losses = [[last(run["losses"]) for run in arm] for arm in arms]
        unseen = [
            [run["validation"] for run in arm if run["validation"] is not None] for arm in arms
        ]
        seconds = report["seconds_per_step"].get(name, {}).values()
        milliseconds = [[1e3 * statistics.median(samples)] for samples in seconds]
        first = statistics.fmean(run["losses"][0] for run in arms[0])
        other = sorted({run["reloaded"].partition(": [")[0] for run in runs} - {"same"})
        cells = [
            f"{first:.3g}",
            *pair(losses, "{:.4g}"),
            " -> ".join(filter(None, pair(unseen, "{:.4g}")[:2])),
            pair(unseen, "{:.4g}")[2],
            " -> ".join(filter(None, pair(milliseconds, "{:.1f}")[:2])),
            pair(milliseconds, "{:.1f}")[2],
            f"NO: {'; '.join(other)[:200]}" if other else "same",
        ]
        if losses[1] and ratio(*losses) > GOAL:
            missed.append(name)
        yield f"{head} {' | '.join(cells)} |"
    yield ""
    yield f"Above {GOAL} times the training loss, or failed: {', '.join(missed) or 'none'}."


def pair(arms: list[list[float]], form: str) -> list[str]:
    """The means of both, and their ratio; "" for what was not measured."""
    means = [form.format(statistics.fmean(arm)) if arm else "" for arm in arms] or ["", ""]
    return [*means, f"{ratio(*arms):.3f}" if len(arms) == 2 and all(arms) else ""]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rnn = json.loads(options.rnn) if options.rnn.startswith("{") else options.rnn
    report = json.loads(options.json.read_text()) if options.json.is_file() else {}
    if "seconds_per_step" not in report:
        report = {"runs": [], "seconds_per_step": {}, "projects": {}}
    kept, tasks = wanted(report["runs"], rnn, options)
    if options.only == "times":
        kept, tasks = report["runs"], []
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), initializer=quiet, initargs=(threads,)
    ) as pool:
        runs = []
        for started in [pool.submit(losses_of, *task) for task in tasks]:
            runs.append(run := started.result())
            print(line(run), file=sys.stderr, flush=True)
    quiet()
    times = dict(report["seconds_per_step"])
    for name in options.projects if options.only != "losses" else []:
        times.pop(name, None)
        if not options.stock and not any("error" in r for r in runs if r["project"] == name):
            times[name] = times_of(name, rnn)
    about = report["projects"]
    for name in options.projects:
        project_class = find(name)
        about[name] = {"package": project_class.package, "version": version(project_class.package)}
        about[name] |= {"cell": project_class.cell, "validates": project_class.validates}
    return {
        **environment("cpu"),
        "projects": about,
        "runs": kept + runs,
        "seconds_per_step": times,
    }


def wanted(
    runs: list[dict[str, Any]], rnn: Any, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    """The runs on record that are kept, and the arguments of `losses_of` for those to make."""
    kept, on_record = [], set()
    for run in runs:
        as_it_is = run["rnn"] is None and run["seed"] < options.seeds and "error" not in run
        if run["project"] not in options.projects:
            kept.append(run)
        elif options.keep and as_it_is:
            kept.append(run)
            on_record.add((run["project"], run["seed"]))
    tasks = [
        (name, arm, seed, options.steps)
        for name in options.projects
        for seed in range(options.seeds)
        for arm in ([None] if options.stock else [None, rnn])
        if arm is not None or (name, seed) not in on_record
    ]
    return kept, tasks


def line(run: dict[str, Any]) -> str:
    head = f"{run['project']}, {run['rnn'] or 'as it is'}, seed {run['seed']}: "
    if "error" in run:
        return head + run["error"]
    losses = run["losses"]
    unseen = "" if run["validation"] is None else f", {run['validation']:.4g} on unseen data"
    return head + (
        f"{len(losses)} steps, {losses[0]:.4g} -> {last(losses):.4g}{unseen}; "
        f"loaded again: {run['reloaded']}"
    )


def read(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--projects", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--rnn", default="auto", help="a layer, or JSON as {'LSTM': layer, ...}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of every run; each project's own if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, for the losses")
    parser.add_argument("--stock", action="store_true", help="only the projects as they are")
    parser.add_argument("--keep", action="store_true", help="runs on record as they are, by seed")
    parser.add_argument("--only", choices=["losses", "times"], help="the other stays as it is")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="of what is there, without measuring")
    return parser.parse_args(arguments)


def main() -> None:
    options = read()
    if not options.table:
        report = measure(options)
        options.json.write_text(json.dumps(report) + "\n")
    for row in table(json.loads(options.json.read_text())):
        print(row)


if __name__ == "__main__":
    main()
