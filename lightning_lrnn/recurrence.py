"""The operation: h_t = a_t * h_{t-1} + b_t. What users call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn import backends, gates
from lightning_lrnn.backends import BackendError, Request, recipes
from lightning_lrnn.backends.recipes import Recipe
from lightning_lrnn.core import arguments
from lightning_lrnn.core.checks import check_flags
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import broadcastable, operands
from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.problem import Problem, problem_of, sequence, sequence_dtype
from lightning_lrnn.core.pytorch import (
    constant,
    forward_mode,
    functorch,
    plain_eager,
    plain_mode,
)
from lightning_lrnn.core.ranks import Ranks, check_together, checksum, ranks_of
from lightning_lrnn.gates import WANTED, Gate, GateError
from lightning_lrnn.ops import eager
from lightning_lrnn.ops import ranks as over_ranks
from lightning_lrnn.ops.call import call
from lightning_lrnn.ops.eager import last_backend, record_backend

__all__ = ["gated_recurrence", "last_backend", "linear_recurrence"]


def linear_recurrence(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Linear recurrence h_t = a_t * h_{t-1} + b_t over time, elementwise in B and D.

    Equivalent to, in float64 and for one row,

        h = h0
        for t in range(T):
            h = a[t] * h + b[t]
            y[t] = h
        h_final = h

    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length",
    ICLR 2018. NaN and infinities propagate as in the loop.

    Args:
        a: decays, (B, T, D) or (D,), float16, bfloat16, float32, float64, complex64 or complex128;
            of any sign and size. Read in place whatever its strides are.
        b: impulses, (B, T, D), of the same dtype.
        h0: initial state, (B, D); zeros if None. Its dtype is that of the state: float32 for
            16-bit inputs, else the dtype of `b`.
        reverse: walk from the last step to the first.
        exclusive: return the state before each step, h_{t-1}, in place of h_t.
        lengths: integers (B,), 0 <= lengths <= T. Steps t >= lengths[b] are padding: they leave the
            state as it is, their output is 0, and their values (NaN too) reach nothing.
        reset: bool (B, T), True where a new document starts. The state starts anew from 0 there,
            and in reverse no state passes from a document to the one before it.
        backend: "auto" or a name from `lightning_lrnn.backends.names()`. A named one runs or
            raises; see `lightning_lrnn.backends.resolve`.
        group: a ProcessGroup, or a DeviceMesh of one dimension, whose ranks hold one sequence in
            order of time, T steps each; None if all of it is here. a, b and `reset` are this
            rank's segment, h0 and `lengths` those of the whole sequence, the same on all ranks.

    Returns:
        y (B, T, D), contiguous, in the dtype of `b`, and the final state (B, D) in the dtype of
        the state. For T = 0: an empty y and h0. Both are differentiable in a, b and h0, twice in
        eager mode. With a `group`: y of this rank's segment, and on every rank the final state of
        the whole sequence; differentiable once, see `lightning_lrnn.ops.ranks.run`.

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    problem = problem_of((gates.IDENTITY, "", (a, b), h0, lengths, reset, reverse, exclusive))
    if isinstance(a, Tensor) and a.ndim == 1:
        problem = _parameters_as_gate(problem)
    if group is not None and (ranks := ranks_of(group)) is not None:
        check = partial(_check_plain, a, b, problem)
        return _over_ranks(ranks, problem, backend, check)
    recipe = _known(problem, backend)
    if recipe is not None:
        return eager.run(recipe, problem)
    _check_plain(a, b, problem)
    return _check_and_run(problem, backend)


def gated_recurrence(
    gate: Callable[..., tuple[Tensor, Tensor]],
    *pre: Tensor,
    h0: Tensor | None = None,
    readout: Callable[..., Tensor] | None = None,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Recurrence whose decay and impulse are a pointwise function of pre-activations.

    (a, b) = gate(*pre);  h_t = a_t * h_{t-1} + b_t;  y_t = readout(h_t, *pre_t), or h_t.

    With `exclusive=True` the readout gets h_{t-1}. Everything else is as in `linear_recurrence`,
    which is this with the gate `lambda a, b: (a, b)`.

    Args:
        gate: from pre-activations to `(a, b)`: a function decorated with `lightning_lrnn.gate`, or
            any pointwise function (which no backend can fuse).
        pre: pre-activations (B, T, D) of one dtype and device, and parameters (D,) or (B, D).
        h0: initial state, (B, D).
        readout: from `h` and the pre-activations to the output, pointwise; the state if None.
        reverse: walk from the last step to the first.
        exclusive: hand out the state before each step.
        lengths: integers (B,); padding (also NaN in it) reaches nothing and its output is 0.
        reset: bool (B, T), True where a new document starts.
        backend: "auto" or a name.
        group: whose ranks hold one sequence in order of time, see `linear_recurrence`; parameters
            are the same on all ranks, and each has the gradient of its segment.

    Returns:
        y (B, T, D) and the final state (B, D).

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    fusible = isinstance(gate, Gate) and (readout is None or isinstance(readout, Gate))
    programs = ("", "")
    if fusible:
        programs = gate.program, "" if readout is None else readout.program  # type: ignore[attr-defined]
    problem = problem_of((*programs, pre, h0, lengths, reset, reverse, exclusive))
    if group is not None and (ranks := ranks_of(group)) is not None:
        check = partial(_check_gated, gate, readout, problem)
        if fusible:
            return _over_ranks(ranks, problem, backend, check)
        _check_with_others(ranks, problem, backend, check)
        return _run_gate_in_pytorch(gate, readout, problem, backend, ranks)
    recipe = _known(problem, backend) if fusible else None
    if recipe is not None:
        return eager.run(recipe, problem)
    _check_gated(gate, readout, problem)
    if fusible:
        # torch.func differentiates what it can look into: there PyTorch evaluates the gate.
        if not functorch() or _uses_autograd(problem, backend):
            return _check_and_run(_parameters_as_gate(problem), backend)
    return _run_gate_in_pytorch(gate, readout, problem, backend)


def _check_plain(a: Tensor, b: Tensor, problem: Problem) -> None:
    check_flags(TypeError, reverse=problem.reverse, exclusive=problem.exclusive)
    arguments.check_decays_and_impulses(a, b)


def _check_gated(gate: Any, readout: Any, problem: Problem) -> None:
    for name, function in (("gate", gate), ("readout", readout)):
        if not (callable(function) or (name == "readout" and function is None)):
            raise TypeError(f"`{name}` must be a function of tensors, got {function!r}")
    check_flags(TypeError, reverse=problem.reverse, exclusive=problem.exclusive)
    arguments.check_pre(problem.pre, gate)
    if problem.gate:
        _check_inputs("gate", gate, problem.gate, len(problem.pre))
        _check_outputs("gate", problem.gate, 2)
        if problem.readout:
            _check_inputs("readout", readout, problem.readout, len(problem.pre) + 1)
            _check_outputs("readout", problem.readout, 1)


def _known(problem: Problem, backend: str) -> Recipe | None:
    """The recipe of a problem whose arguments are still to be checked.

    None if none of its form was checked before, and where PyTorch does not run eagerly. The values
    of lengths are checked here.
    """
    gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
    if type(backend) is not str or type(reverse) is not bool or type(exclusive) is not bool:
        return None
    if not plain_mode():
        return None
    name = backends.default() if backend == "auto" else backend
    tensors, which = pre, (True, True, True)
    if h0 is not None or lengths is not None or reset is not None:
        tensors = [x for x in (*pre, h0, lengths, reset) if x is not None]
        which = h0 is None, lengths is None, reset is None
    key = name, gate, readout, reverse, exclusive, which, len(tensors), torch.get_num_threads()
    recipe = None
    for check, known in recipes.by_guard.get(key, ()):
        if check(*tensors):
            recipe = known
            break
    if recipe is None:
        recipe = _by_form(problem, name, tensors)
        if recipe is None:
            return None
        recipes.guard(key, tensors, recipe)
    if lengths is not None and lengths.device.type == "cpu":
        arguments.check_length_values(lengths, problem.x.shape[1])
    return recipe


def _by_form(problem: Problem, name: str, tensors: Sequence[Tensor]) -> Recipe | None:
    if not plain_eager(*tensors):
        return None
    try:
        return recipes.by_form.get((name, problem.form()))
    except (AttributeError, RuntimeError):  # not all are tensors, or not dense ones
        return None


def _check_and_run(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """After the last checks, by the backend that is asked for."""
    arguments.check_optional(problem)
    x, dense = problem.x, problem.dense()
    name = backends.resolve(backend, Request(x.device, x.dtype, problem.gate, problem.readout))
    if backends.uses_autograd(name):
        record_backend(name)
        y, _, final = backends.loaded[name].prepared(dense).forward(dense)
        return y, final
    if not plain_eager(*problem.pre, *problem.optional):
        return call(name, dense)
    same = all([x is y for x, y in zip(problem.optional, dense.optional, strict=True)])
    recipe = recipes.of(name, backends.prepared(name, dense), problem)._replace(dense=same)
    recipes.keep(problem, backends.default() if backend == "auto" else backend, recipe)
    return eager.run(recipe, problem)


def _over_ranks(
    ranks: Ranks, problem: Problem, backend: str, check: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """A segment of a sequence that the ranks of a group hold; `check` is of its arguments."""
    if functorch() or forward_mode():
        raise RuntimeError(
            "a recurrence over ranks is not for torch.func and forward-mode derivatives; leave "
            "`group` out"
        )
    _check_with_others(ranks, problem, backend, check)
    x = problem.x
    problem = _parameters_as_gate(problem)
    name = backends.resolve(backend, Request(x.device, x.dtype, problem.gate, problem.readout))
    lengths = problem.lengths
    lengths = None if lengths is None else ranks.within(lengths.long(), x.shape[1])
    return over_ranks.run(ranks, name, problem._replace(lengths=lengths).dense())


def _check_with_others(
    ranks: Ranks, problem: Problem, backend: str, check: Callable[[], None]
) -> None:
    """Raises on every rank of a group if one was given what cannot be, or something else."""

    def checked() -> dict[str, object]:
        check()
        x = problem.x
        arguments.check_optional(problem, x.shape[1] * ranks.size)
        of_backend = _parameters_as_gate(problem)
        request = Request(x.device, x.dtype, of_backend.gate, of_backend.readout)
        name = backends.resolve(backend, request)
        if backends.uses_autograd(name):
            raise BackendError(
                f"backend {name!r} leaves gradients to PyTorch, and cannot be given the state of "
                f"the segment before; name another one"
            )
        if torch.compiler.is_compiling():
            return {}
        return {
            "The shape of segments": tuple(x.shape),
            "Their dtype": x.dtype,
            "Their backend": name,
            "The gate": (problem.gate, problem.readout),
            "`reverse` and `exclusive`": (bool(problem.reverse), bool(problem.exclusive)),
            "`reset`, given or None,": problem.reset is not None,
            "`h0` (its checksum)": checksum(problem.h0),
            "`lengths` (their checksum)": checksum(problem.lengths),
        }

    form: object = None
    if not torch.compiler.is_compiling():
        try:
            form = (backend, problem.form())
        except (AttributeError, RuntimeError):  # not all are tensors
            form = None
    check_together(ranks, form, checked)


def _parameters_as_gate(problem: Problem) -> Problem:
    """Turns a plain recurrence with parameters into a gate of these."""
    pre = problem.pre
    if not problem.is_plain or all(p.ndim == 3 for p in pre):
        return problem
    if functorch():
        x = sequence(pre)
        pre = tuple(broadcastable(p).to(x.dtype).expand(x.shape) for p in pre)
        return problem._replace(pre=pre)
    # Sums the gradient of a parameter in double precision, in a fixed order.
    return problem._replace(gate=gates.SWAPPED, pre=pre[::-1])


def _uses_autograd(problem: Problem, backend: str) -> bool:
    x = problem.x
    request = Request(x.device, x.dtype, problem.gate, problem.readout)
    return backends.uses_autograd(backends.resolve(backend, request))


def _check_inputs(role: str, function: Any, program: str, inputs: int) -> None:
    if (takes := _inputs(program)) != inputs:
        name, names = gates.signature_of(function)
        raise GateError(
            f"the {role} takes {takes} inputs, got {inputs}: it is {name}({', '.join(names)})"
        )


@constant
def _inputs(program: str) -> int:
    return gates.parse(program).inputs


@constant
def _check_outputs(role: str, program: str, outputs: int) -> None:
    gates.check_outputs(role, program, outputs)


def _run_gate_in_pytorch(
    gate: Callable[..., Any],
    readout: Callable[..., Any] | None,
    problem: Problem,
    backend: str,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluates gate and readout, any functions, by PyTorch, which differentiates them."""
    x, pre, lengths = problem.x, problem.pre, problem.lengths
    padding = None
    if lengths is not None:
        if ranks is None:
            arguments.check_lengths(lengths, x)
        local_lengths = lengths if ranks is None else ranks.within(lengths, x.shape[1])
        padding = padding_mask(local_lengths, x)
        # The gate's derivative at a NaN is NaN even where the gradient that reaches it is 0.
        pre = tuple(p.masked_fill(padding, 0) if p.ndim == 3 else p for p in pre)
    inputs = operands(pre)
    results = gate(*inputs)
    if not isinstance(results, tuple | list) or len(results) != 2:
        returned = arguments.description(results)
        raise GateError(f"the gate must return {WANTED['gate']}, returns {returned}")
    a, b = (arguments.pointwise("gate", value, x) for value in results)
    # Whatever autocast made of it.
    dtype = state_dtype(sequence_dtype(x, is_complex=a.is_complex() or b.is_complex()))
    shape = torch.broadcast_shapes(a.shape, b.shape, x.shape)
    h, final = linear_recurrence(
        a.to(dtype).expand(shape),
        b.to(dtype).expand(shape),
        problem.h0,
        reverse=problem.reverse,
        exclusive=problem.exclusive,
        lengths=lengths,
        reset=problem.reset,
        backend=backend,
        group=ranks,
    )
    if readout is None:
        return h.to(sequence_dtype(x, is_complex=h.is_complex())), final
    y = arguments.pointwise("readout", readout(h, *inputs), x).expand(x.shape)
    y = y.to(sequence_dtype(x, is_complex=y.is_complex()))
    return (y if padding is None else y.masked_fill(padding, 0)), final
