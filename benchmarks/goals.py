"""What the project promises, and whether the samples show it. Nothing here measures."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from implementations import NO_CARRY, STEPS

NOISY = 1.5
PASSES = ("forward", "backward", "forward + backward")
OURS = ("scan", "serial", NO_CARRY)
TABLE_1 = [(1, T, m) for m in (4, 32, 128) for T in (16, 64, 256, 1024, 4096, 16384, 65536)]
SMALL = [(1, 1048576, 1)]
"""Shapes of the plain recurrence that are replayed from a graph: the paper's, and one more."""

Samples = dict[str, list[float]]


class Case(NamedTuple):
    """A shape, dtype and gate, of which all implementations are measured in turn."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    gate: str = "plain"

    def __str__(self) -> str:
        extra = [word for word in (self.dtype, self.gate) if word not in ("float32", "plain")]
        return ", ".join([str(self.shape), *extra])


class Goal(NamedTuple):
    text: str
    figure: float | None
    """None if it was not measured."""
    reached: bool

    def __str__(self) -> str:
        if self.figure is None:
            return f"  {'not measured':16}   {self.text}"
        return f"  {'reached' if self.reached else 'MISSED ':8} {self.figure:7.2f}   {self.text}"


def medians(samples: Samples) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in samples.items()}


def reference(samples: Samples) -> str:
    """addcmul moves what the plain recurrence needs and a sum more; gates have a copy alone."""
    return "addcmul" if "addcmul" in samples else "copy for forward"


def void(samples: Samples, name: str = "") -> bool:
    """Whether the machine was too noisy: the reference's own median is far from its minimum."""
    times = samples[name or reference(samples)]
    return statistics.median(times) > NOISY * min(times)


def of_a_copy(median: dict[str, float], name: str, step: str) -> float:
    """Percent: the time of a copy of equal bytes over that of a pass."""
    copy = sum(median[f"copy for {part}"] for part in step.split(" + "))
    return 100 * copy / median[f"{name} {step}"]


def step_of(name: str) -> tuple[str, str]:
    """The implementation and the pass of a timed name; ("", "") for a reference."""
    for step in reversed(PASSES):  # the longest first
        if name.endswith(f" {step}") and not name.startswith("copy for"):
            return name[: -len(step) - 1], step
    return "", ""


def at_least(text: str, figure: float | None, limit: float) -> Goal:
    return Goal(f"{text}, at least {limit:g}", figure, figure is not None and figure >= limit)


def at_most(text: str, figure: float | None, limit: float) -> Goal:
    return Goal(f"{text}, at most {limit:g}", figure, figure is not None and figure <= limit)


def ratio(time: float | None, to: float | None) -> float | None:
    """None if either was not measured."""
    return None if time is None or to is None else time / to


ON_CPU = {
    (8, 1024, 256): (1.0, 7.0),
    (32, 256, 512): (1.0, 7.0),
    (1, 65536, 32): (1.0, 7.0),
    (1, 1048576, 1): (3.0, 4.0),
}
"""Of the plain recurrence: most times addcmul, least speed-up over the best baseline."""


def on_cpu(case: Case, samples: Samples) -> list[Goal]:
    if case.shape not in ON_CPU or case[1:] != ("float32", "plain"):
        return []
    median, (at_addcmul, at_baseline) = medians(samples), ON_CPU[case.shape]
    forward = median["scan forward"] / median["addcmul"]
    goals = [at_most(f"{case} scan forward / addcmul", forward, at_addcmul)]
    both = "forward + backward"
    baselines = {
        name: time
        for name, time in median.items()
        if step_of(name)[1] == both and step_of(name)[0] not in OURS
    }
    if baselines:
        name = min(baselines, key=baselines.__getitem__)
        ratio = baselines[name] / median[f"scan {both}"]
        goals.append(at_least(f"{case} best baseline ({name}) / scan", ratio, at_baseline))
    return goals


def percent_promised(case: Case, step: str) -> float | None:
    """Of a copy, by the shape; None: nothing is promised."""
    B, T, D = case.shape
    if case.gate == "plain":
        if B * D >= 2048 and 4 * B * T * D >= 64e6:
            return 90
        if B * D == 256 and T == 65536:
            return 80 if case.dtype == "float32" else 70
        return 75 if case.shape == (1, 1048576, 32) and case.dtype == "float32" else None
    if 4 * B * T * D < 64e6:
        return None
    few = B * D < 2048
    return 70 if few and case.gate == "lstm" and case.dtype == "bfloat16" else 85


def on_cuda(case: Case, samples: Samples, *, baselines: bool = False) -> list[Goal]:
    """Every goal of a case, of what was not measured too; `baselines`: also those against them."""
    median, goals = medians(samples), []
    for step in ("forward", "backward"):
        promised = percent_promised(case, step)
        if promised is not None:
            percent = of_a_copy(median, "scan", step) if f"scan {step}" in median else None
            goals.append(at_least(f"{case} scan {step}, % of a copy", percent, promised))
    if case.gate != "plain":
        both = "forward + backward"
        for name, limit in (("eager gates + scan", 3.0), ("compiled gates + scan", 1.5)):
            times = ratio(median.get(f"{name} {both}"), median.get(f"scan {both}"))
            goals.append(at_least(f"{case} {name} / scan fused, both passes", times, limit))
    elif baselines:
        for step in ("forward", "forward + backward"):
            for in_its_layout, limit in ((False, 1.5), (True, 0.97)):
                goals.append(against_baselines(case, median, step, in_its_layout, limit))
    return goals


def against_baselines(
    case: Case, median: dict[str, float], step: str, in_its_layout: bool, limit: float
) -> Goal:
    chosen = {
        name: time
        for name, time in median.items()
        if name.endswith(f" {step}")
        and not name.startswith((*OURS, "copy", "addcmul"))
        and ("[" in name) is in_its_layout
    }
    if not chosen:
        which = "best baseline in its own form" if in_its_layout else "best baseline"
        return at_least(f"{case} {which} / scan {step}", None, limit)
    name = min(chosen, key=chosen.__getitem__)
    times = ratio(chosen[name], median.get(f"scan {step}"))
    return at_least(f"{case} best baseline ({name}) / scan", times, limit)


def of_small(replayed: Samples) -> list[Goal]:
    """Under graph replay, in microseconds; every goal, of what was not measured too."""
    limits = {
        "(1, 1048576, 1) scan forward": 10.0,
        "(1, 65536, 32) scan forward": 12.0,
        "(1, 65536, 32) scan backward": 14.0,
        "(1, 65536, 4) scan forward": 14.0,
    }
    microseconds = {name: 1e6 * time for name, time in medians(replayed).items()}
    goals = [
        at_most(f"{name}, graph replay, us", microseconds.get(name), limit)
        for name, limit in limits.items()
    ]
    for shape in [*SMALL, *TABLE_1]:
        for step in ("forward", "backward"):
            names = [f"{shape} {name} {step}" for name in ("serial", STEPS)]
            serial = min((microseconds[n] for n in names if n in microseconds), default=None)
            times = ratio(microseconds.get(f"{shape} scan {step}"), serial)
            text = f"{shape} scan {step} / the faster serial kernel"
            goals.append(at_most(text, times, 1.05))
    return goals


def of_host(host: dict[str, float]) -> list[Goal]:
    limits = {"without gradient": 25.0, "differentiable": 45.0}
    goals = []
    for name, limit in limits.items():
        seconds = host.get(name)
        microseconds = None if seconds is None else 1e6 * seconds
        goals.append(at_most(f"host, {name}, us", microseconds, limit))
    return goals
