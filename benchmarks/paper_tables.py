"""What the paper and its poster print, and how our figures are shown beside it."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import goals
from timing import about

FEATURES = (4, 32, 128)
TABLE_1 = {
    16: (0.06, 0.06, 0.05),
    256: (0.22, 0.22, 0.86),
    4096: (1.02, 2.94, 3.36),
    65536: (38.5, 41.8, 17.5),
}
"""Steps -> speedup of the parallel kernel by `FEATURES`."""
LAYERS = ("SRU", "QRNN(2)", "QRNN(10)", "GILR-LSTM")
TABLE_2 = {
    16: (0.28, 0.38, 0.78, 0.61),
    256: (0.84, 0.86, 0.99, 0.91),
    4096: (1.38, 1.18, 1.05, 0.98),
    65536: (9.21, 6.68, 2.05, 1.41),
}
"""Steps -> speedup of training by `LAYERS`."""


class Training(NamedTuple):
    """Means and standard deviations of five runs."""

    thousands: float
    of_thousands: float
    hours: float
    of_hours: float


LSTM = "torch.nn.LSTM"
TABLE_3 = {
    (1024, LSTM): Training(1.0, 0.4, 0.28, 0.08),
    (1024, "GILRLSTM"): Training(0.55, 0.04, 0.031, 0.002),
    (8192, LSTM): Training(0.44, 0.05, 0.58, 0.06),
    (8192, "GILRLSTM"): Training(0.56, 0.16, 0.10, 0.03),
    (1048576, "GILRLSTM"): Training(14, 3, 9.7, 1.7),
}
"""Steps and layer -> iterations and wall time until solved; the paper's LSTM is cuDNN's."""
LENGTHS = (1024, 8192, 65536, 1048576)

POSTER_LSTM = {
    1: 14.3, 2: 18.4, 4: 37.1, 8: 90.8, 16: 170, 32: 305, 64: 534, 128: 695, 256: 772,
}  # fmt: skip
"""Batch -> thousand steps/s of cuDNN's LSTM, at every length."""
POSTER_GILR = {
    256: 63.6, 512: 118, 1024: 189, 2048: 311, 4096: 412, 8192: 478, 16384: 510, 65536: 509,
    131072: 503,
}  # fmt: skip
"""Steps -> thousand steps/s of the GILR-LSTM at batch 1."""
POSTER_BEST = 527, 8, 16384
"""Thousand steps/s, batch and steps of its best cell."""

KINDS = {"cpu": "CPU", "cuda": "GPU"}
SERIALS = ("serial", "plain")
NOTHING = "—"
SLOWER = 1.05
"""Above this "auto" counts as slower than a serial recurrence: medians of equals differ so much."""
Cell = dict[str, Any]
Reports = dict[str, dict[str, Any]]


def show(reports: Reports, tables: list[str], trainings: list[dict[str, Any]]) -> None:
    if "1" in tables:
        head = "the plain recurrence, forward, minibatch 1, float32, kernels alone; us"
        show_ratios("1", head, reports, 1e6)
    if "2" in tables:
        show_ratios(
            "2", f"{network(reports, '2')}, input size 4, forward + backward; ms", reports, 1e3
        )
        if "cuda" in reports:
            print("On a GPU / plain compares gates by PyTorch, of both, with no gates in the scan.")
    if "3" in tables:
        show_trainings(trainings)
    if "heat" in tables:
        show_heat(reports)


def network(reports: Reports, table: str) -> str:
    sizes = {str(report[table]["hidden_size"]) for report in reports.values() if table in report}
    return f"two layers of {' or '.join(sorted(sizes)) or 256} units"


def of_table(reports: Reports, table: str) -> dict[str, Any]:
    """What there is of a table, by kind of device; prints on what it was measured."""
    tables = {kind: r[table] for kind, r in reports.items() if table in r}
    for kind, name in KINDS.items():
        if kind not in tables:
            print(f"  {name}: no {name} result is committed")
            continue
        print(f"  {name}: {about(tables[kind])}")
    return tables


def key(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell.get(name) for name in ("dtype", "layer", "features", "batch", "steps"))


def published(cell: Cell) -> float | None:
    """Of the cell's table; in float32, and for 65,536 steps in all."""
    if "features" in cell:
        by_features = dict(zip(FEATURES, TABLE_1.get(cell["steps"], ()), strict=False))
        return by_features.get(cell["features"])
    by_layer = dict(zip(LAYERS, TABLE_2.get(cell["steps"], ()), strict=False))
    return by_layer.get(cell["layer"]) if cell["dtype"] == "float32" else None


def ratio(cell: Cell, serial: str) -> float | None:
    """Times that the parallel recurrence is faster than a serial one, of the same kind of gates."""
    median = goals.medians(cell.get("samples_in_seconds", {}))
    if serial not in median:
        return None
    unfused = serial == "plain" and "unfused" in median
    return median[serial] / median["unfused" if unfused else "scan"]


def show_ratios(table: str, head: str, reports: Reports, unit: float) -> None:
    """Times of the parallel recurrence, and of each serial one with its ratio."""
    print(f"\nTable {table}: {head}")
    tables = of_table(reports, table)
    by_kind = {kind: {key(cell): cell for cell in tables[kind]["cells"]} for kind in tables}
    keys = {k: cell for cells in by_kind.values() for k, cell in cells.items()}
    columns = f"{'scan':>10}{'serial':>12}{'/ serial':>9}{'plain':>13}{'/ plain':>8}"
    # What was measured first: the column of a device without results is narrow.
    kinds = sorted(KINDS, key=lambda kind: kind not in tables)
    print(f"  {'':43}" + "".join(f"  {KINDS[kind]:>10}{'':42}" for kind in kinds).rstrip())
    print(f"  {'':34}{'paper':>9}" + f"  {columns}" * len(tables))
    for k, cell in keys.items():
        name = f"m={cell['features']}" if table == "1" else f"{cell['layer']} {cell['dtype']}"
        line = f"  {name:19}{cell['steps']:>9,} x{cell['batch']:<5}{number(published(cell)):>8}"
        for kind in kinds:
            line += "  " + (times(by_kind.get(kind, {}).get(k), unit))
        print(line.rstrip())
    rounds = sorted(len(s) for c in keys.values() for s in c.get("samples_in_seconds", {}).values())
    if rounds:
        print(f"  Medians of {rounds[0]} to {rounds[-1]} rounds.")
    for kind, record in tables.items():
        show_goal(table, kind, record["cells"])


def times(cell: Cell | None, unit: float) -> str:
    if cell is None:
        return f"{NOTHING:>10}{'':42}"
    if "left_out" in cell:
        return f"{'left out: ' + cell['left_out']:52}"
    median = goals.medians(cell["samples_in_seconds"])
    words = f"{unit * median['scan']:10,.1f}"
    for serial, wide, narrow in zip(SERIALS, (12, 13), (9, 8), strict=True):
        time = median.get(serial)
        words += f"{NOTHING if time is None else f'{unit * time:,.1f}':>{wide}}"
        words += f"{number(ratio(cell, serial)):>{narrow}}"
    return words


def number(x: float | None) -> str:
    return NOTHING if x is None else f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def against_serials(cells: list[Cell]) -> list[tuple[Cell, float]]:
    """Time of "auto" over that of the fastest serial recurrence, by cell."""
    ratios = []
    for cell in cells:
        median = goals.medians(cell.get("samples_in_seconds", {}))
        if median:
            fastest = min(median[serial] for serial in SERIALS if serial in median)
            ratios.append((cell, median.get("auto", median["scan"]) / fastest))
    return ratios


def show_goal(table: str, kind: str, cells: list[Cell]) -> None:
    ratios = against_serials(cells)
    if not ratios:
        return
    text = f'Table {table}, {KINDS[kind]}: "auto" / the faster serial, worst of {len(ratios)} cells'
    goal = goals.at_most(text, max(figure for _, figure in ratios), SLOWER)
    print(f"  {'reached' if goal.reached else 'MISSED ':8} {goal.figure:7.2f}   {goal.text}")
    for cell, figure in ratios:
        if figure > SLOWER:
            case = ", ".join(str(cell[n]) for n in ("layer", "dtype") if n in cell)
            case = case or f"m={cell['features']}"
            print(f"  {'':8} {figure:7.2f}   {case}, T={cell['steps']:,}")


def show_trainings(runs: list[dict[str, Any]]) -> None:
    """Means and standard deviations of the runs that solved their task."""
    print("\nTable 3: the long-memory task until solved, mean ± sd of the runs that solved it")
    if not runs:
        print("  no run is committed (benchmarks/long_memory.py makes them)")
    print(f"  {'':46}{'paper':^28}{'ours':^52}")
    print(
        f"  {'steps':>9}  {'layer':14}{'rows':9}{'device':12}{'thousands':>13}{'hours':>15}"
        f"{'solved':>10}{'thousands':>16}{'hours':>18}{'minutes':>16}"
    )
    groups: dict[tuple[int, str], dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for run in runs:
        if run["changed"]:
            continue  # not what the configs say
        kind = run["sampling"], run["environment"]["device"]
        groups.setdefault((run["steps"], run["rnn"]), {}).setdefault(kind, []).append(run)
    wanted = [(steps, rnn) for steps in LENGTHS for rnn in ("GILRLSTM", LSTM)]
    for steps, rnn in [*wanted, *sorted(groups.keys() - set(wanted))]:
        paper = TABLE_3.get((steps, rnn))
        printed = f"{NOTHING:>13}{NOTHING:>15}"
        if paper is not None:
            thousands = f"{paper.thousands:g} ± {paper.of_thousands:g}"
            printed = f"{thousands:>13}{f'{paper.hours:g} ± {paper.of_hours:g}':>15}"
        if (steps, rnn) == (1048576, LSTM):
            printed = f"{'not in days':>28}"
        for kind, group in groups.get((steps, rnn), {("", ""): []}).items():
            line = f"  {steps:9,}  {rnn:14}{kind[0]:9}{kind[1]:12}{printed}"
            print(line + of_runs(group))


def of_runs(group: list[dict[str, Any]]) -> str:
    solved = [run for run in group if run["solved"]]
    share = f"{len(solved)}/{len(group)}" if group else NOTHING
    seconds = [run["seconds"] for run in solved]
    iterations = spread([run["optimizer_steps"] / 1e3 for run in solved])
    hours, minutes = (spread([s / unit for s in seconds]) for unit in (3600, 60))
    words = f"{share:>10}{iterations:>16}{hours:>18}{minutes:>16}"
    if group and not solved:
        words += f"   within {max(run['seconds'] for run in group) / 60:.0f} minutes"
    return words


def spread(values: list[float]) -> str:
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.3g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def throughput(cell: Cell, name: str) -> float:
    """Thousands of time steps per second, by the median."""
    seconds = statistics.median(cell["samples_in_seconds"][name])
    return cell["batch"] * cell["steps"] / seconds / 1e3


def show_heat(reports: Reports) -> None:
    print(
        f"\nHeat map: GILR-LSTM (scan), {network(reports, 'heat')}, forward + backward, "
        f"thousand steps/s and, in brackets, times those of {LSTM}"
    )
    for kind, record in of_table(reports, "heat").items():
        by_place = {(cell["steps"], cell["batch"]): cell for cell in record["cells"]}
        batches = sorted({batch for _, batch in by_place})
        print(f"  {KINDS[kind]:>9}" + "".join(f"{f'batch {b}':>15}" for b in batches))
        for steps in sorted({steps for steps, _ in by_place}):
            words = [in_heat(by_place.get((steps, batch))) for batch in batches]
            print(f"  {steps:9,}" + "".join(f"{word:>15}" for word in words))
        reasons = {cell["left_out"] for cell in record["cells"] if "left_out" in cell}
        if reasons:
            print(f"  {NOTHING}: left out: {'; '.join(sorted(reasons))}")
    best, batch, steps = POSTER_BEST
    print("  Poster (a GPU of 2017, GILR-LSTM against cuDNN's LSTM):")
    print("    batch 1, by steps: " + ", ".join(f"{T:,}: {x:g}" for T, x in POSTER_GILR.items()))
    print(f"    the best cell {best:g} (batch {batch}, {steps:,} steps); at batch 1, 65,536 steps "
          f"{POSTER_GILR[65536] / POSTER_LSTM[1]:.1f} times cuDNN")  # fmt: skip
    print("    cuDNN, by batch: " + ", ".join(f"{B}: {x:g}" for B, x in POSTER_LSTM.items()))


def in_heat(cell: Cell | None) -> str:
    if cell is None or "left_out" in cell:
        return NOTHING
    ours, theirs = throughput(cell, "scan"), throughput(cell, LSTM)
    return f"{number(ours)} ({number(ours / theirs)})"


def draw(report: dict[str, Any], path: Path) -> None:
    """PNGs beside the JSON: ratios over length, and the heat map."""
    try:
        from lightning_lrnn.cli.figures import new_figure, save
    except ImportError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return
    if "1" in report or "2" in report:
        save(ratios(report, new_figure(1000, 420)), path.with_name(f"{path.stem}-speedup.png"))
    if "heat" in report:
        save(heat(report["heat"], new_figure(900, 420)), path.with_name(f"{path.stem}-heat.png"))


def ratios(report: dict[str, Any], figure: Any) -> Any:
    """Of the paper (crosses), against its plain loop (lines) and the serial one (dashes)."""
    panels = figure.subplots(1, 2)
    titles = {"1": "Table 1: kernels, by features", "2": "Table 2: layers, float32"}
    for axes, (table, title) in zip(panels, titles.items(), strict=True):
        name = "features" if table == "1" else "layer"
        cells = [c for c in report.get(table, {"cells": []})["cells"] if "left_out" not in c]
        cells = [c for c in cells if c.get("dtype", "float32") == "float32"]
        for index, group in enumerate(dict.fromkeys(cell[name] for cell in cells)):
            mine, color = [c for c in cells if c[name] == group], f"C{index}"
            steps = [c["steps"] for c in mine]
            for serial, style in (("plain", "o-"), ("serial", ".--")):
                speedups = [ratio(c, serial) or float("nan") for c in mine]
                label = str(group) if serial == "plain" else None
                axes.plot(steps, speedups, style, color=color, markersize=4, label=label)
            axes.plot(steps, [published(c) or float("nan") for c in mine], "x", color=color)
        axes.axhline(1, color="0.5", linewidth=1)
        axes.set(xlabel="steps", title=title, xscale="log", yscale="log")
        lengths = sorted({c["steps"] for c in cells})
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths], fontsize=8, rotation=30)
        axes.minorticks_off()
        if cells:
            axes.legend(fontsize=8)
    panels[0].set_ylabel("serial time / parallel time")
    about = next(iter(report.values()))
    figure.suptitle(
        f"{machine(about)}: over the plain loop (lines), over the serial backend (dashes); "
        "crosses: paper",
        fontsize=9,
    )
    return figure


def machine(about: dict[str, Any]) -> str:
    """A GPU, or a CPU and the threads that worked on it."""
    if about["kind"] == "cuda":
        return str(about["device"])
    return f"{about['device']}, {about['threads']} thread{'s' * (about['threads'] > 1)}"


def heat(about: dict[str, Any], figure: Any) -> Any:
    """The ratio as colour; ratio and throughput as text. Empty: left out."""
    axes = figure.subplots()
    cells = about["cells"]
    batches, lengths = (sorted({cell[name] for cell in cells}) for name in ("batch", "steps"))
    grid = [[float("nan")] * len(batches) for _ in lengths]
    for cell in cells:
        if "left_out" in cell:
            continue
        row, column = lengths.index(cell["steps"]), batches.index(cell["batch"])
        ours, times_theirs = (
            throughput(cell, "scan"),
            throughput(cell, "scan") / throughput(cell, LSTM),
        )
        grid[row][column] = math.log2(times_theirs)
        text = f"{number(times_theirs)}x\n{number(ours)}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8)
    most = max([1.0, *(abs(x) for line in grid for x in line if not math.isnan(x))])
    image = axes.imshow(grid, cmap="RdYlGn", vmin=-most, vmax=most, aspect="auto", alpha=0.7)
    bar = figure.colorbar(image, label=f"steps per second, over those of {LSTM}")
    powers = range(-math.floor(most), math.floor(most) + 1)
    bar.set_ticks(powers, labels=[f"{2**k}x" if k >= 0 else f"1/{2**-k}" for k in powers])
    axes.set_xticks(range(len(batches)), batches)
    axes.set_yticks(range(len(lengths)), [f"{steps:,}" for steps in lengths])
    axes.set(xlabel="rows in a batch", ylabel="time steps")
    axes.set_title(
        f"GILR-LSTM: its steps per second over those of {LSTM};\n"
        f"below, thousands of its steps per second. {machine(about)}",
        fontsize=9,
    )
    return figure
