"""`lightning-lrnn plot`: learning curves and memory horizons of logs, and forecasts."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_lrnn.cli.figures import PlotError, new_figure, plain_text, write
from lightning_lrnn.cli.typed import call

__all__ = ["PlotError", "Run", "draw", "main", "plot", "read", "runs_in"]

FILE = "metrics.csv"
WIDTH, HEIGHT = 800, 360
STAGES = ("train", "val")
QUANTILES = ("p10", "p50", "p90")
MAX_SHOWN = 1e5
"""Longer memories, infinite ones too, are drawn here."""
FEW, FEW_RUNS = 20, 4
"""Points of a curve that are drawn as such; and runs for which the height is enough."""
MARKERS = ".x^sv+D"
"""Of the layers, where there are several runs."""

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """The log of one run.

    Attributes:
        name: folder of the log, as far as it differs from those of other runs.
        curves: by metric, (step, value) in order of steps; {} of a run that has logged nothing.
        monitor: the metric that the run's config monitors.
    """

    name: str
    curves: dict[str, Curve]
    monitor: str | None = None

    def metrics(self, *stages: str) -> set[str]:
        """Returns metrics of these stages, without the stage; of speed none."""
        parts = [name.partition("/") for name in self.curves if "per_sec" not in name]
        return {name for stage, _, name in parts if stage in stages}

    def has_curve(self, metric: str) -> bool:
        """Whether a metric has more than one point in training or validation."""
        return any(len(self.curves.get(f"{stage}/{metric}", [])) > 1 for stage in STAGES)

    def horizons(self) -> dict[str, dict[str, Curve]]:
        """Returns time constants in steps, by layer and quantile."""
        layers: dict[str, dict[str, Curve]] = {}
        for name, curve in self.curves.items():
            head, _, rest = name.partition("/")
            layer, _, quantile = rest.rpartition("/")
            if head == "horizon" and quantile in QUANTILES:
                layers.setdefault(layer, {})[quantile] = curve
        return {layer: q for layer, q in layers.items() if len(q) == len(QUANTILES)}


def runs_in(folders: list[Path]) -> list[Run]:
    """Returns the runs in folders, and in folders inside of them.

    Raises:
        PlotError: if a folder does not exist, or has no logs, or the only log is empty.
    """
    files: list[Path] = []
    for folder in folders:
        if not folder.exists():
            raise PlotError(f"there is no folder {folder}")
        logs = [folder] if folder.is_file() else sorted(folder.rglob(FILE))
        if not logs:
            raise PlotError(
                f"{folder} has no {FILE}, nor has a folder in it; a CSVLogger writes one: "
                f"`trainer.logger: CSVLogger` in the config"
            )
        files += [file for file in logs if file not in files]
    parents = [file.absolute().parent for file in files]
    common = Path(os.path.commonpath(parents)) if len(parents) > 1 else parents[0].parent
    names = _short([parent.relative_to(common).parts for parent in parents])
    runs = [
        Run(name, read(file), _monitored(parent))
        for name, file, parent in zip(names, files, parents, strict=True)
    ]
    if not any(run.curves for run in runs):
        raise PlotError(f"{files[0]} has no figures yet; the run may have ended before it logged")
    return runs


def _short(paths: list[tuple[str, ...]]) -> list[str]:
    """Names of runs: without folders that say again what the folder above says of each run.

    That is what `compare` makes of one layer: `QRNN-lr0.01/QRNN-auto`.
    """

    def again(above: str, folder: str) -> bool:
        return set(folder.removesuffix("-auto").split("-")) <= set(above.split("-"))

    names = ["/".join(path) for path in paths]
    short = [
        "/".join([*path[:1], *(b for a, b in pairwise(path) if not again(a, b))]) for path in paths
    ]
    return short if len(set(short)) == len(short) else names


def _monitored(folder: Path) -> str | None:
    """The metric that callbacks monitor by the config.yaml that `fit` has left beside a log."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        callbacks = config["trainer"]["callbacks"]
        options = [callback.get("init_args") or {} for callback in callbacks]
        monitors = [o["monitor"] for o in options if isinstance(o.get("monitor"), str)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
    return staged(monitors[0]) if monitors else None


def staged(name: str) -> str:
    """A metric as this package names it, "val/loss"; projects write "val_loss", or "loss" alone.

    What has no stage is of training. A learning rate, "lr-AdamW", is no metric.
    """
    if "/" in name or name.startswith("lr-"):
        return name
    stage, _, metric = name.partition("_")
    stage = {"valid": "val", "validation": "val"}.get(stage, stage)
    return f"{stage}/{metric}" if stage in (*STAGES, "test") and metric else f"train/{name}"


def read(file: Path) -> dict[str, Curve]:
    """Returns the curves in a metrics.csv, {} if it is empty.

    Raises:
        PlotError: if it is not one.
    """
    curves: dict[str, Curve] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step = int(float(row["step"]))
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        curves.setdefault(staged(name), []).append((step, float(value)))
    except OSError as error:
        raise PlotError(f"{file} cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, TypeError, OverflowError, csv.Error) as error:
        raise PlotError(f"{file} is not a file of a CSVLogger ({error!r})") from error
    return {name: sorted(curve) for name, curve in curves.items()}


def main(words: list[str]) -> None:
    """Runs the command; see `plot`."""
    call(plot, "lightning-lrnn plot", words[1:])


def plot(
    *runs: str,
    metric: str | None = None,
    actual: str | None = None,
    output: str | None = None,
    series: str | None = None,
    table: str | None = None,
) -> None:
    """Draws the logs that a CSVLogger has written, of all runs in one figure; or a forecast.

    Args:
        *runs: folders with a metrics.csv, or folders above; or the CSV of a forecast that
            WriteForecast has written.
        metric: name without the stage, such as loss or bits_per_byte; by default the one that the
            config monitors, else the loss.
        actual: of a forecast, the table that it was made from, or a later one, to draw beside it
            what was and what came; or the config (.yaml) whose data say how their table is written.
        output: path of the PNG; by default plot.png in the first folder, or forecast.png beside
            forecast.csv.
        series: of a forecast, what is drawn: values of group or targets, with commas between them,
            such as "Fürth,Köln"; by default the first ones.
        table: of a forecast, with a config as --actual, the table that is read in the place of the
            config's, such as a newer one.
    """
    paths = [Path(run) for run in runs]
    if not any(_is_forecast(path) for path in paths):
        for name, value in (("actual", actual), ("series", series), ("table", table)):
            if value is not None:
                raise PlotError(
                    f"--{name} is for a forecast, and {paths[0]} is none: give the CSV that "
                    f"WriteForecast has written, or leave --{name} out"
                )
        print(draw(paths, metric, output))
        return
    if len(paths) > 1 or metric is not None:
        raise PlotError("a forecast is drawn by itself: give one file, and no --metric")
    # It reads tables, for which all of Lightning is imported.
    from lightning_lrnn.cli.plot_forecast import draw_forecast

    if table and not actual:
        raise PlotError("--table is read as a config says: give that as --actual")
    files = [Path(name) if name else None for name in (actual, output, table)]
    print(draw_forecast(paths[0], files[0], files[1], series, files[2]))


def _is_forecast(path: Path) -> bool:
    """Whether a file has the header of a table that WriteForecast wrote."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            header = next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error):
        return False
    return {"target", "0.5"} <= set(header[1:])


def draw(folders: list[Path], metric: str | None = None, output: str | None = None) -> Path:
    """Draws all runs in one figure.

    Args:
        folders: see `runs_in`.
        metric: its name without the stage, such as "loss"; None for the one that is monitored.
        output: path of the PNG; None for plot.png in the first folder.

    Returns:
        The path.

    Raises:
        PlotError: if there is nothing to draw.
        ModuleNotFoundError: without matplotlib.
    """
    runs = runs_in(folders)
    metric = _chosen(runs, metric)
    # Others, such as those of `test`, would stand in the legend without a curve.
    runs = [run for run in runs if metric in run.metrics(*STAGES)]
    first = folders[0].parent if folders[0].is_file() else folders[0]
    path = Path(output) if output else first / "plot.png"
    with_horizons = [run for run in runs if run.horizons()]
    alone = len(runs) == 1
    layers = list(dict.fromkeys(layer for run in runs for layer in run.horizons()))
    lines = len(layers) if alone else len(runs) + len(layers)
    room = 12 * max(0, len(runs) - FEW_RUNS)
    figure = new_figure(WIDTH, HEIGHT + room + 9 * lines)
    axes = figure.subplots(1, 2 if with_horizons else 1, sharex=True, squeeze=False)[0]
    _draw_curves(axes[0], runs, metric)
    if with_horizons:
        _draw_horizons(axes[1], runs, layers)
    for axis in axes:
        axis.set_xlabel("optimizer steps")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    if alone:
        figure.suptitle(plain_text(runs[0].name), fontsize=10)
    # Of one run its layers; of several the runs, then the layers.
    drawn = axes[1:] if alone and with_horizons else axes
    found = [axis.get_legend_handles_labels() for axis in drawn]
    handles, labels = ([*chain(*lists)] for lists in zip(*found, strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return write(figure, path)


def _chosen(runs: list[Run], metric: str | None) -> str:
    """A metric of the runs, without its stage."""
    runs = [run for run in runs if run.metrics(*STAGES)]
    logged = set().union(*(run.metrics(*STAGES) for run in runs))
    if not logged:
        raise PlotError("no run has logged a metric of training or validation, only others")
    if metric is not None:
        if metric not in logged:
            raise PlotError(f"no run has logged {metric}; there are {', '.join(sorted(logged))}")
        return metric
    monitored = {(run.monitor or "").partition("/")[2] for run in runs}

    def rank(name: str) -> tuple[bool | int | str, ...]:
        return (
            # Most runs first: with a curve, not a single dot, and validated.
            -sum(run.has_curve(name) for run in runs),
            -sum(name in run.metrics("val") for run in runs),
            name not in monitored,
            # Lower is better in every task, and every module logs it.
            name != "loss",
            name,
        )

    return min(logged, key=rank)


def _style(index: int) -> dict[str, Any]:
    """A colour and a dash: of two runs with equal curves both are to be seen."""
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", ":", "-.")[index % 4]}


def _draw_curves(axis: Any, runs: list[Run], metric: str) -> None:
    ends = []
    for index, run in enumerate(runs):
        style = _style(index)
        training, validated = (
            run.curves.get(f"{stage}/{metric}", []) for stage in ("train", "val")
        )
        few = "." if len(training) < FEW else ""
        axis.plot(*_columns(training), marker=few, **style, alpha=0.45, linewidth=1)
        dots = {"marker": "o", "markersize": 4 if len(runs) == 1 else 2.5}
        axis.plot(*_columns(validated), **style, **dots, label=plain_text(run.name))
        ends += [value for curve in (training, validated) for _, value in curve[len(curve) // 10 :]]
    finite = [value for value in ends if math.isfinite(value)]
    if finite and max(finite) > min(finite):
        # Not to the first steps, which would leave the rest no room.
        margin = 0.05 * (max(finite) - min(finite))
        axis.set_ylim(min(finite) - margin, max(finite) + margin)
    axis.set_ylabel(plain_text(metric.replace("_", " ")))
    axis.set_title("Thin: training; dots: validation", fontsize=10)


def _draw_horizons(axis: Any, runs: list[Run], layers: list[str]) -> None:
    """Draws all quantiles of each layer of one run, or the medians of several runs."""
    from matplotlib.ticker import AutoLocator, NullLocator

    alone = len(runs) == 1
    markers = {layer: MARKERS[index % len(MARKERS)] for index, layer in enumerate(layers)}
    for number, run in enumerate(runs):
        for layer, quantiles in run.horizons().items():
            style = _style(layers.index(layer) if alone else number)
            curves = {
                q: _columns([(step, min(tau, MAX_SHOWN)) for step, tau in curve])
                for q, curve in quantiles.items()
            }
            if alone:
                style |= {"linestyle": "-", "marker": ".", "label": plain_text(layer)}
                for q in ("p10", "p90"):
                    axis.plot(*curves[q], color=style["color"], linestyle=":", linewidth=1)
            else:
                # As many as tell a layer from another one.
                style |= {"marker": markers[layer], "markersize": 4}
                style["markevery"] = max(1, len(curves["p50"][0]) // 10)
            axis.plot(*curves["p50"], **style, linewidth=1.2)
    if not alone:
        for layer, marker in markers.items():
            axis.plot([], [], marker, color="black", markersize=4, label=plain_text(layer))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    low, high = axis.get_ylim()
    if high < 10 * low:
        # Powers of ten, twice and five times as much would be one label or none.
        axis.yaxis.set_major_locator(AutoLocator())
        axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(_sparse)
    axis.set_ylabel("time constant -1 / log a, steps")
    explanation = "dotted: 10 and 90 %" if alone else "a marker per layer"
    axis.set_title(f"Median memory of units; {explanation}", fontsize=10)


def _sparse(value: float, _: int) -> str:
    """A label for 2 and 5 only, between the powers of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    """Steps and values; an infinite value is a gap."""
    values = [value if math.isfinite(value) else math.nan for _, value in curve]
    return [step for step, _ in curve], values
