"""Replaces the recurrent layers of PyTorch inside any module by layers of this package."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lightning_lrnn.core.checks import check_choice, check_flags
from lightning_lrnn.nn.cells.gilr_lstm import GILRRNN
from lightning_lrnn.nn.cells.surrogate import SurrogateRNNCell
from lightning_lrnn.nn.checks import check_backend, check_module
from lightning_lrnn.nn.layer import Layer, import_named
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch import optimizers
from lightning_lrnn.switch.distil import carry_weights
from lightning_lrnn.switch.recommended import of_the_same_function, recommended
from lightning_lrnn.switch.step_time import SIZES, step_times
from lightning_lrnn.switch.subclass import SwitchError, drop_in, is_drop_in

__all__ = ["Replacement", "Report", "SwitchError", "matches", "replace_rnn"]

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
SINGLE = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
STATES = ("strict", "carried")
WEIGHTS = ("new", "carried")
LEARNS = "it learns from the old layer first"
OWN_FUNCTION = "`state`: carried would start at the old layer's own function"
SHARE = 0.5
"""Share of the state's columns for a surrogate that may not add columns of its own."""

FIXED = {
    name: (None, "it is that of the layer that is replaced; leave it out")
    for name in ("num_layers", "bias", "dropout", "bidirectional", "proj_size", "device", "dtype")
} | {"backend": (None, "give it as `backend`, not as an option")}
"""Options that a replacement takes from the old layer, or from `backend`."""


@dataclass(frozen=True)
class Replacement:
    """One recurrent layer, and its replacement if there is one.

    Attributes:
        path: of the layer in the module.
        old: the old layer's `repr`.
        new: the new layer's `repr`; "" where the old one was left.
        before: number of parameters of the old layer.
        after: number of parameters of the new one.
        notes: differences for code that uses the layer; or why it was left.
    """

    path: str
    old: str
    new: str
    before: int
    after: int
    notes: tuple[str, ...] = ()


class Report(tuple[Replacement, ...]):
    """The replacements in the order of the module; prints as a table."""

    @property
    def replaced(self) -> Report:
        """The layers that were replaced."""
        return Report(r for r in self if r.new)

    @property
    def left(self) -> Report:
        """The layers that were left as they are."""
        return Report(r for r in self if not r.new)

    def __str__(self) -> str:
        lines = []
        for r in self:
            if r.new:
                lines.append(f"{r.path}: {r.old}")
                lines.append(f"  -> {r.new}, {r.before:,} -> {r.after:,} parameters")
            else:
                lines.append(f"{r.path}: {r.old}\n  left as it is")
            lines += [f"     {note}" for note in r.notes]
        if any(r.new and LEARNS not in r.notes for r in self):
            lines.append("The parameters of what was replaced start anew.")
        return "\n".join(lines) or "no torch.nn.LSTM, GRU or RNN"


def replace_rnn(
    module: nn.Module,
    rnn: Any = "auto",
    *,
    options: Mapping[str, Any] | None = None,
    backend: str = "auto",
    state: str = "strict",
    weights: str = "new",
    where: str | Sequence[str] | None = None,
    measure: bool = False,
) -> Report:
    """Replaces every `torch.nn.LSTM`, `GRU` and `RNN` in a module, in place.

    Sizes, layers, directions, projection, dropout, `bias`, `batch_first`, device, dtype and hooks
    are kept. **The parameters start anew**, but for `weights`. The new layer is still an instance
    of the class that it replaces; a subclass keeps its own methods and attributes. The state keeps
    its form: (h, c) in the place of an LSTM, where a layer with one state has its last output as h,
    and a tensor in the place of a GRU or RNN. Layers that are shared stay shared. In a `state_dict`
    each has a mark, by which it is loaded, see `lightning_lrnn.switch.loading`.

    Nothing is changed if an error is raised. Existing optimizers get the new parameters in the
    places of the old ones; see `lightning_lrnn.switch.optimizers`.

    Args:
        module: any module; a LightningModule before its optimizers are made.
        rnn: "auto" takes what `lightning_lrnn.switch.recommended` has for each layer; where `state`
            and `weights` are both carried, fixed-point passes of the old layer's own function. Or
            the new layer: a name of `lightning_lrnn.nn.CELLS`, a class, or another form that
            `lightning_lrnn.nn.layer.Layer.of` reads; it replaces all layers that it can, and the
            report has the rest. Or {"LSTM": layer, "GRU": layer, "RNN": layer}, any of the three:
            each of these must be possible.
        options: of the new layers, such as {"window": 1}.
        backend: of the new layers.
        state: "strict": the state has exactly the shapes and dtypes of `torch.nn`'s. A surrogate
            then has a share of its columns; a layer that needs more is not taken. "carried": any
            layer; a state may be wider, since all that the next window needs is in it, and is
            float32 in 16-bit modules.
        weights: "new": parameters start anew. "carried": the layer learns from the one that it
            replaces, in `lightning_lrnn.fit_surrogate` or, of a `SwitchRNN`, in the first steps of
            fit; parameters that both have, by name and shape, are copied.
        where: patterns of paths as in `fnmatch` ("encoder.*"), one of which must match; None for
            all.
        measure: whether the report says how long a training step of each layer takes before and
            after, on some short sequences; it takes some tenths of a second.

    Returns:
        The replacements, and the layers that were left, with reasons.

    Raises:
        SwitchError: if a layer that is named for a class cannot replace one of it, if no layer can
            be replaced and none was before, or if `module` is itself a recurrent layer.
        ValueError: for arguments that cannot be. TypeError: if `module` is no module.
    """
    check_backend(backend)
    check_choice(STATES, state=state)
    check_choice(WEIGHTS, weights=weights)
    check_flags(measure=measure)
    if not isinstance(options or {}, Mapping):
        raise ValueError(f"`options` must be options by name, got {options!r}")
    patterns = [where] if isinstance(where, str) else where or []
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise ValueError(f"`where` must be patterns of paths, got {where!r}")
    check_module(module)
    if isinstance(module, nn.RNNBase):
        raise SwitchError(
            f"the module is itself a {type(module).__name__}: make the new layer in its place, or "
            f"give the module that has it"
        )
    by_class = _layers(rnn, options)
    new_layers: dict[int, Stack] = {}
    report = []
    for path, old in _recurrent(module):
        paths = [name for name, m in module.named_modules(remove_duplicate=False) if m is old]
        if not any(matches(name, where) for name in paths):
            continue
        before = sum(p.numel() for p in old.parameters())
        entry = Replacement(path, _line(old), "", before, before)
        try:
            layer = _choose(old, by_class, state == weights == "carried")
            _check_tied(module, old)
            new = _make(old, layer, backend, state)
            notes = _differences(old, new, weights)
            if weights == "carried" and state == "strict" and by_class[_base_name(old)] is None:
                notes.append(OWN_FUNCTION)
            new_layers[id(old)] = drop_in(old, new)
        except SwitchError as error:
            if isinstance(rnn, Mapping) and "class_path" not in rnn and _base_name(old) in by_class:
                raise SwitchError(f"{path}: {error}") from error
            report.append(replace(entry, notes=(str(error),)))
            continue
        if measure:
            notes.append(_speed(old, new))
        after = sum(p.numel() for p in new.parameters())
        report.append(replace(entry, new=_line(new), after=after, notes=tuple(notes)))
    if report and not new_layers and not any(is_drop_in(m) for m in module.modules()):
        reasons = "; ".join(f"{r.path}: {r.notes[0]}" for r in report)
        raise SwitchError(f"nothing could be replaced: {reasons}")
    if weights == "carried":
        for _, old in _recurrent(module):
            if id(old) in new_layers:
                carry_weights(old, new_layers[id(old)])
    _swap(module, new_layers)
    # Old parameters without another reference are freed first, and need no search.
    old = None
    optimizers.exchange_all()
    return Report(report)


def matches(path: str, where: str | Sequence[str] | None) -> bool:
    """Whether a path is one of those that `where` names; None names all."""
    patterns = [where] if isinstance(where, str) else where
    return patterns is None or any(fnmatchcase(path, pattern) for pattern in patterns)


def _line(layer: nn.Module) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _layers(rnn: Any, options: Mapping[str, Any] | None) -> dict[str, Layer | None]:
    """The new layer by the name of the old class; None for the recommended one."""
    choices, by_class = rnn, isinstance(rnn, Mapping) and "class_path" not in rnn
    if not by_class:
        choices = dict.fromkeys(KINDS, rnn)
    layers: dict[str, Layer | None] = {}
    for name, value in choices.items():
        class_name = str(name).removeprefix("torch.nn.").removeprefix("nn.")
        if class_name not in KINDS:
            raise ValueError(f"`rnn` replaces {', '.join(KINDS)}; there is no {name!r} among them")
        if value == "auto":
            if options:
                raise ValueError(f"`options` are of a layer that is named, and `rnn` is {value!r}")
            layers[class_name] = None
            continue
        import_named(value)
        layer = Layer.of(value, FIXED)
        if taken := FIXED.keys() & (options or {}).keys():
            raise ValueError(
                f"`options` may not have {', '.join(sorted(taken))}: kept, or given apart"
            )
        if not issubclass(layer.layer_class, Stack):
            raise ValueError(
                f"`rnn` must name layers of lightning_lrnn.nn or subclasses of "
                f"lightning_lrnn.nn.Stack, got {layer.path}{f' for {name}' if by_class else ''}"
            )
        layers[class_name] = replace(layer, options={**layer.options, **(options or {})})
    return layers


def _recurrent(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """Paths and recurrent layers of PyTorch, single cells too, without drop-in layers.

    A layer with several paths comes once.
    """
    return [
        (path, m)
        for path, m in module.named_modules()
        if isinstance(m, (*KINDS.values(), *SINGLE)) and not isinstance(m, Stack)
    ]


def _base_name(old: nn.Module) -> str:
    return next((name for name, rnn_class in KINDS.items() if isinstance(old, rnn_class)), "")


def _choose(old: nn.RNNBase, by_class: Mapping[str, Layer | None], carried: bool) -> Layer:
    class_name = _base_name(old)
    if not class_name:
        raise SwitchError("a single cell, which is called step by step, is not replaced")
    if class_name not in by_class:
        raise SwitchError(f"`rnn` names nothing for {class_name}")
    return by_class[class_name] or (of_the_same_function if carried else recommended)(old)


def _check_tied(module: nn.Module, old: nn.Module) -> None:
    """Raises if a layer has a weight that is another module's too."""
    own = {id(p): name for name, p in old.named_parameters()}
    inside = set(old.modules())
    for path, other in module.named_modules():
        for name, p in () if other in inside else other._parameters.items():
            if id(p) in own:
                raise SwitchError(
                    f"its {own[id(p)]} is also {path + '.' if path else ''}{name}, and a new layer "
                    f"would have one of its own; untie them first"
                )


def _make(old: nn.RNNBase, layer: Layer, backend: str, state: str) -> Stack:
    """A layer with the sizes of the old one, its state in the old one's form."""
    layer_class: Any = layer.layer_class
    name, pair = layer_class.__name__, isinstance(old, nn.LSTM)
    derived = [n for n in old._flat_weights_names if old._parameters.get(n) is None]
    if derived or torch.nn.utils.parametrize.is_parametrized(old):
        raise SwitchError(
            f"its weights ({', '.join(derived) or 'parametrized'}) are made of other parameters "
            f"before each call, by a parametrization, weight_norm, prune, or a module around it, "
            f"which would act on nothing; undo that first"
        )
    if old.proj_size and not layer_class.cell_type.projects:
        raise SwitchError(f"{name} has no projection, and this layer has proj_size={old.proj_size}")
    weight = next(old.parameters())
    make = functools.partial(
        layer_class,
        old.input_size,
        old.hidden_size,
        old.num_layers,
        old.bias,
        old.batch_first,
        # With a single layer dropout does nothing but warn.
        old.dropout if old.num_layers > 1 else 0.0,
        old.bidirectional,
        old.proj_size,
        backend,
        device=weight.device,
        dtype=weight.dtype,
    )
    options = dict(layer.options)
    if issubclass(layer_class, GILRRNN) and isinstance(old, nn.RNN):
        options.setdefault("nonlinearity", old.nonlinearity)
    try:
        new: Stack = _with_pairs(make(**options), pair)
        if state == "strict" and new._cells()[0].packed_size != old.hidden_size:
            new = _strict(new, lambda: _with_pairs(make(**options, surrogate_size=SHARE), pair))
    except SwitchError:
        raise
    except (TypeError, ValueError) as error:
        raise SwitchError(f"{name} cannot be made: {error}") from error
    new.dropout, new.strict_state = old.dropout, state == "strict"
    return new.train(old.training)


def _with_pairs(new: Stack, pair: bool) -> Stack:
    """Sets the form of the state: that of an LSTM, or that of a GRU; returns `new`."""
    for cell in new._cells():
        cell.remembers_output = pair
    return new


def _strict(new: Stack, sharing: Callable[[], Stack]) -> Stack:
    """Replaces a layer of wider state by one whose surrogate has a share of the columns."""
    cell, name = new._cells()[0], type(new).__name__
    if isinstance(cell, SurrogateRNNCell) and not cell.shares:
        try:
            return sharing()
        except ValueError as error:
            # The switch has chosen the size that the error names.
            raise SwitchError(
                f"{name} cannot be made with a state of hidden_size={cell.hidden_size} columns: "
                f"{error}; or take a wider state, `state`: carried"
            ) from error
    part = "c_n" if cell.remembers_output else "h_n"
    raise SwitchError(
        f"{part} of {name} has {cell.packed_size} features, not {cell.hidden_size}: all that the "
        f"next window needs; `state`: carried takes it so"
    )


def _differences(old: nn.RNNBase, new: Stack, weights: str) -> list[str]:
    """Differences that code which uses the layer may notice; raises for a forbidden one."""
    cell = new._cells()[0]
    name = type(new).__name__
    part = "c_n" if cell.remembers_output else "h_n"
    notes = []
    if cell.packed_size != old.hidden_size:
        notes.append(
            f"{part} of {name} has {cell.packed_size} features, not {old.hidden_size}: all that "
            f"the next window needs"
        )
    if cell.carry_dtype.is_complex:
        if new.strict_state:
            raise SwitchError(f"{part} of {name} is complex; `state`: carried takes it so")
        notes.append(f"{part} of {name} is complex")
    if not cell.remembers_output and not cell.output_is_state:
        notes.append(f"h_n of {name} is its state, not its last output")
    same_function = isinstance(cell, SurrogateRNNCell) and cell.is_surrogate_of(old)
    if getattr(old, "nonlinearity", "tanh") != "tanh" and not same_function:
        notes.append(f"the old layer's nonlinearity was {old.nonlinearity}")
    if weights == "carried":
        notes.append(LEARNS)
    elif not any(p.requires_grad for p in old.parameters()):
        notes.append("the old parameters were frozen, and the new ones start anew")
    return notes


def _speed(old: nn.RNNBase, new: Stack) -> str:
    before, after = step_times(old, new)
    rows, steps = SIZES
    return (
        f"a training step of {rows} rows of {steps} steps took {before:.1f} ms and takes "
        f"{after:.1f} ms, {after / before:.2f} of it"
    )


def _swap(module: nn.Module, new_layers: Mapping[int, Stack]) -> None:
    """Puts new layers in the places of old ones, wherever those are."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in new_layers:
                parent._modules[name] = new_layers[id(child)]
                optimizers.replaced(dict(child.named_parameters()), new_layers[id(child)])
